"""The models of foreign_models.py, kept out of the registry that other tests see."""

from functools import cache

import torch
from torch import Tensor

import robustdyn as rd
from robustdyn import registry
from robustdyn.adapters import Adapted
from robustdyn.registry import ModelSpec


def _register() -> dict[str, ModelSpec]:
    rd.list_models()
    before = dict(registry._MODELS)
    import foreign_models  # noqa: F401

    found = {name: spec for name, spec in registry._MODELS.items() if name not in before}
    registry._MODELS.clear()
    registry._MODELS.update(before)
    return found


SPECS = _register()
MODELS = list(SPECS)


@cache
def build(name: str) -> Adapted:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SPECS[name].build().eval()


def inputs(name: str, count: int) -> Tensor:
    """Return images or sequences that differ enough for the gates to differ."""
    generator = torch.Generator().manual_seed(0)
    if SPECS[name].task == "sequence":
        return torch.rand(count, 7, 12, generator=generator)
    images = rd.load_dataset("fashion_mnist", "calibration").stack(range(count))
    noise = torch.rand(images.shape, generator=generator)
    part = torch.linspace(0, 1, count).reshape(-1, 1, 1, 1)
    return images * (1 - part) + noise * part
