"""Attacks of torchattacks and foolbox, called by name."""

import inspect
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustdyn.errors import UserError, suggest
from robustdyn.threat import Threat

LIBRARIES = ("torchattacks", "foolbox")
_TORCHATTACKS_NORMS = {"linf": "Linf", "l2": "L2"}


def foreign_attack(library: str, method: str) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Return `run(model, x, y, *, threat, objective, seeds, **params) -> x_adv`, and its params.

    The threat gives norm and eps, so they are no parameters.

    Both libraries attack accuracy. They draw from global random generators for the whole batch,
    so a sample's result depends on its batch; the generators are seeded from the first sample's
    seed and restored.

    Raises:
        UserError: if the library has no such attack.
    """
    namespace = _namespace(library)
    kind = namespace.get(method)
    if kind is None:
        raise UserError(
            f"{library} has no attack '{method}'.",
            f"{suggest(method, namespace)}See the documentation of {library}.",
        )
    call = _torchattacks if library == "torchattacks" else _foolbox

    def run(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threat: Threat,
        objective: None,
        seeds: Sequence[int],
        **params: Any,
    ) -> Tensor:
        with _seeded(seeds[0]):
            return call(kind, model, x, y, threat, params)

    defaults = {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if name not in ("model", "eps", "norm")
    }
    return run, defaults


def load_library(library: str) -> Any:
    """Return the module torchattacks or foolbox."""
    if library == "foolbox":  # without a git binary, its GitPython refuses to load otherwise
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    return import_module(library)


def _namespace(library: str) -> dict[str, type]:
    module = load_library(library)
    members = vars(module.attacks if library == "foolbox" else module)
    base: type = (module.attacks.base if library == "foolbox" else module.attack).Attack
    return {
        name: value
        for name, value in members.items()
        if isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)
    }


def _torchattacks(
    kind: type, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: dict[str, Any]
) -> Tensor:
    accepted = inspect.signature(kind).parameters
    if "eps" in accepted:
        params = {"eps": threat.eps} | params
    if "norm" in accepted:
        params = {"norm": _TORCHATTACKS_NORMS[threat.norm]} | params
    return kind(model, **params)(x, y)


def _foolbox(
    kind: type, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: dict[str, Any]
) -> Tensor:
    foolbox = load_library("foolbox")
    seen = foolbox.PyTorchModel(model, bounds=threat.bounds, device=x.device)
    attack = kind(**params)
    _, clipped, _ = attack(seen, x, foolbox.criteria.Misclassification(y), epsilons=threat.eps)
    return clipped


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python; give them back as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
