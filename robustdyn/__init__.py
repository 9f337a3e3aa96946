"""robustdyn: robustness of the accuracy and the compute of dynamic neural networks.

The public names below load on first use, so that importing the package (and with it
`robustdyn --help`) does not import torch.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"

# In a checkout, attacks/, kernels/ and reports/ lie beside this folder; in a wheel, inside it.
_here = Path(__file__).resolve().parent
if not (_here / "attacks").is_dir() and (_here.parent / "attacks" / "__init__.py").is_file():
    __path__.append(str(_here.parent))

_HOME = {
    "Decision": "decision",
    "Exit": "decision",
    "Share": "decision",
    "Trace": "trace",
    "trace": "trace",
    "decide": "trace",
    "region": "trace",
    "precision": "trace",
    "register_macs": "macs",
    "execution": "execution",
    "estimator": "gates",
    "register_model": "registry",
    "create_model": "registry",
    "list_models": "registry",
    "ModelSpec": "registry",
    "load_dataset": "data",
    "list_datasets": "data",
    "adapt": "adapters",
    "Region": "adapters",
    "without_cuda": "no_cuda",
    "Threat": "threat",
    "evaluate": "evaluation",
    "transfer": "transfer",
    "load_results": "results",
    "UserError": "errors",
}
_SUBMODULES = ("adapters", "attacks", "data", "kernels", "metrics", "primitives", "reports")

__all__ = [*_HOME, *_SUBMODULES, "__version__"]


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(f"robustdyn.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return import_module(f"robustdyn.{name}")
    raise AttributeError(f"module 'robustdyn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `robustdyn.trace` the function, though importing the file trace.py sets the module."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
