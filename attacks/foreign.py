"""Attacks of torchattacks and foolbox, called by name."""

import inspect
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustdyn.attacks.budget import BudgetView
from robustdyn.attacks.foreign_support import check_budget_params, support
from robustdyn.attacks.rows import filled_up
from robustdyn.errors import UserError, suggest
from robustdyn.threat import Threat

LIBRARIES = ("torchattacks", "foolbox")
_TORCHATTACKS_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def foreign_attack(library: str, method: str) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Return `run(model, x, y, *, threat, objective, seeds, **params) -> x_adv`, and its params.

    The threat gives norm and eps, so they are no parameters. Without an objective they attack
    accuracy; the objective "at_least:PART" lets them attack a budget of compute instead, see
    `robustdyn.attacks.budget`.

    Both libraries draw from global random generators for the whole batch, so a sample's result
    depends on its batch; the generators are seeded from the first sample's seed and restored.

    Raises:
        UserError: if the library has no such attack; `run` does if it does not fit the inputs, the
            model or the threat.
    """
    namespace = _namespace(library)
    kind = namespace.get(method)
    if kind is None:
        raise UserError(
            f"{library} has no attack '{method}'.",
            f"{suggest(method, namespace)}See `robustdyn list attacks`.",
        )
    defaults = _params(kind)
    call = _torchattacks if library == "torchattacks" else _foolbox

    def run(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threat: Threat,
        objective: str | None,
        seeds: Sequence[int],
        **params: Any,
    ) -> Tensor:
        if not isinstance(objective, str | None):
            raise UserError(
                f"{library} cannot climb an objective of ours.",
                'It attacks accuracy, or a budget: objective = "at_least:0.8".',
            )
        classes = _classes(model, x)
        _check_fit(f"{library}:{kind.__name__}", x, classes, threat, bool(objective))
        if objective:
            model, y = BudgetView(model, float(objective.partition(":")[2])), torch.zeros_like(y)
            classes = 2
        if "seed" in defaults and defaults["seed"] is None:  # the library would ask the clock
            params = {"seed": seeds[0] % 2**31} | params
        made_with = _made_with(library, kind, threat, classes, params)
        with _seeded(seeds[0]):
            return call(kind, model, x, y, threat, made_with)

    return run, defaults


def canonical(name: str) -> str:
    """Return the name of a library's attack without aliases: "foolbox:PGD" is LinfPGD in full."""
    library, _, method = name.partition(":")
    kind = _namespace(library).get(method)
    return f"{library}:{kind.__name__}" if kind else name


def check_foreign(name: str, objective: str, params: Mapping[str, Any]) -> None:
    """Check what a library's attack is asked for, as far as that can be told without inputs.

    Raises:
        UserError: if it does not work, cannot attack a budget, or lacks a parameter.
    """
    known = support(canonical(name))
    if known.broken:
        raise UserError(f"'{name}' does not work: {known.broken}.", "See `robustdyn list attacks`.")
    for key in known.required:
        if params.get(key) is None:
            raise UserError(f"'{name}' needs a value of '{key}'.", f"Give {key}, for example 10.")
    if objective:
        check_budget_params(known.name, params)


def _params(kind: type) -> dict[str, Any]:
    given = ("model", "eps", "max_epsilon", "norm", "distance", "constraint")
    return {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if name not in given
    }


@torch.no_grad()
def _classes(model: nn.Module, x: Tensor) -> int:
    logits = model(x[filled_up(torch.arange(1, device=x.device))])
    return logits.shape[1] if isinstance(logits, Tensor) and logits.dim() == 2 else 0


def _check_fit(name: str, x: Tensor, classes: int, threat: Threat, budget: bool) -> None:
    reasons = support(name).not_supported_reasons(
        shape=x.shape[1:], classes=classes, norm=threat.norm, budget=budget
    )
    if threat.mask is not None:
        reasons.append("it knows no mask")
    if reasons:
        raise UserError(
            f"'{name}' cannot attack this: {'; '.join(reasons)}.",
            "Choose another attack, or another norm; see `robustdyn list attacks`.",
        )


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
    kind: type, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, made_with: dict[str, Any]
) -> Tensor:
    return kind(model, **made_with)(x, y)


def _foolbox(
    kind: type, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, made_with: dict[str, Any]
) -> Tensor:
    foolbox = load_library("foolbox")
    seen = foolbox.PyTorchModel(model, bounds=threat.bounds, device=x.device)
    goal = foolbox.criteria.Misclassification(y)
    _, clipped, _ = kind(**made_with)(seen, x, goal, epsilons=threat.eps)
    return clipped


def _made_with(
    library: str, kind: type, threat: Threat, classes: int, params: dict[str, Any]
) -> dict[str, Any]:
    """What an attack's constructor gets: threat and classes as far as it takes them, and params."""
    if library == "torchattacks":
        norm = _TORCHATTACKS_NORMS[threat.norm]
        given = {"eps": threat.eps, "max_epsilon": threat.eps, "norm": norm, "n_classes": classes}
    else:
        distance = getattr(load_library("foolbox").distances, threat.norm)
        given = {"distance": distance, "constraint": threat.norm}
    accepted = inspect.signature(kind).parameters
    return {key: value for key, value in given.items() if key in accepted} | params


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
