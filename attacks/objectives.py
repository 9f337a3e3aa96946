"""Objectives: what an attack maximises, one value per sample, and how an iterate is judged."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustdyn.errors import UserError, suggest
from robustdyn.trace import Trace

TOLERANCE = 1e-9  # of a part of the reachable maximum
Value = Callable[[Tensor, Tensor, Trace], Tensor]  # (logits (B, K), y (B,), trace) -> (B,)


@dataclass(frozen=True)
class Objective:
    """What to maximise, how an iterate is judged, and what must hold meanwhile.

    Attributes:
        name: as in suites and results.
        value: differentiable; its sum over the batch gives the gradient.
        score: judged on the hard model; the iterate with the largest score is kept, and none with
            a score of -inf.
        reached: (score (B,), trace) -> (B,) bool, whether a sample has nothing left to gain.
        traced: whether value, score and constraint read the trace.
        targeted: whether y is a class to reach instead of the class to leave.
        aim: (logits of the clean input, y) -> what the other functions get as y, (B,) or (B, ...);
            None leaves y as it is.
        constraint: differentiable, positive where the constraint holds; attacks climb
            value + multiplier * constraint, with a multiplier per sample that rises while the
            constraint is broken.
        gradient: (logits, y, trace, x) -> (B, ...), the direction to climb, where it is not the
            gradient of `value`; it must keep the graph.
        watched: whether value and score read trace.activations.
    """

    name: str
    value: Value
    score: Value
    reached: Callable[[Tensor, Trace], Tensor]
    traced: bool = False
    targeted: bool = False
    aim: Callable[[Tensor, Tensor], Tensor] | None = None
    constraint: Value | None = None
    gradient: Callable[[Tensor, Tensor, Trace, Tensor], Tensor] | None = None
    watched: bool = False


OBJECTIVES: dict[str, Objective] = {}
FAMILIES: dict[str, Callable[[str], Objective]] = {}
"""Objectives with an argument, named "family:argument": functions of the argument's text."""


def register_objective(objective: Objective) -> Objective:
    """Register an objective under its name, and return it."""
    if objective.name in OBJECTIVES:
        raise ValueError(f"objective {objective.name!r} is registered twice")
    OBJECTIVES[objective.name] = objective
    return objective


def get_objective(objective: "str | Objective | Value") -> Objective:
    """Return an objective by name, or a function `(logits, y, trace) -> (B,)` as an objective.

    Raises:
        UserError: if there is none of that name.
    """
    if isinstance(objective, Objective):
        return objective
    if callable(objective):
        name = getattr(objective, "__name__", "custom")
        return Objective(name, value=objective, score=objective, reached=never, traced=True)
    family, colon, argument = objective.partition(":")
    if colon and family in FAMILIES:
        return FAMILIES[family](argument)
    if objective not in OBJECTIVES:
        names = [*OBJECTIVES, *(f"{name}:..." for name in FAMILIES)]
        raise UserError(
            f"Unknown objective '{objective}'.",
            f"{suggest(objective, names)}Choose one of: {', '.join(names)}.",
        )
    return OBJECTIVES[objective]


def class_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the logit of y minus the largest other logit, (B,); positive = classified as y."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], float("-inf"))
    return own[:, 0] - others.amax(1)


def positive(score: Tensor, trace: Trace) -> Tensor:
    """Return where the score is positive, (B,) bool."""
    return score > 0


def never(score: Tensor, trace: Trace) -> Tensor:
    """Return False for every sample, (B,) bool: there may always be more to gain."""
    return torch.zeros_like(score, dtype=torch.bool)


def least_likely(logits: Tensor, y: Tensor) -> Tensor:
    """Return the class with the smallest logit, (B,) int64: the usual hard target."""
    return torch.argmin(logits, dim=1)
