"""Datasets with inputs in [0, 1] and stable sample ids.

What needs torch loads on first use; `list_datasets` and `get_info` do without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from robustdyn.data.info import DatasetInfo, get_info, list_datasets

if TYPE_CHECKING:
    from robustdyn.data.dataset import Dataset
    from robustdyn.data.load import load_dataset

__all__ = ["Dataset", "DatasetInfo", "get_info", "list_datasets", "load_dataset"]

_HOME = {"Dataset": "dataset", "load_dataset": "load"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'robustdyn.data' has no attribute {name!r}")
    return getattr(import_module(f"robustdyn.data.{_HOME[name]}"), name)
