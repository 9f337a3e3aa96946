"""Objectives: what an attack maximises, one value per sample."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.errors import UserError, suggest
from robustdyn.trace import Trace

Value = Callable[[Tensor, Tensor, Trace], Tensor]  # (logits (B, K), y (B,), trace) -> (B,)


@dataclass(frozen=True)
class Objective:
    """What to maximise, and how an iterate is judged.

    Attributes:
        name: as in suites and results.
        value: differentiable; its sum over the batch gives the gradient.
        score: judged on the hard model; the iterate with the largest score is kept.
        reached: (score (B,), trace) -> (B,) bool, whether a sample has nothing left to gain.
        traced: whether value and score read the trace.
        targeted: whether y is the class to reach instead of the class to leave.
    """

    name: str
    value: Value
    score: Value
    reached: Callable[[Tensor, Trace], Tensor]
    traced: bool = False
    targeted: bool = False


def class_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the logit of y minus the largest other logit, (B,); positive = classified as y."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], float("-inf"))
    return own[:, 0] - others.amax(1)


def _cross_entropy(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _expected_compute(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    return trace.expected_macs() / trace.max_macs()


OBJECTIVES = {
    objective.name: objective
    for objective in (
        # Madry et al. 2018, arXiv:1706.06083; judged by the margin, positive = wrong.
        Objective(
            "cross_entropy",
            value=_cross_entropy,
            score=lambda logits, y, trace: -class_margin(logits, y),
            reached=lambda score, trace: score > 0,
        ),
        Objective(
            "targeted_cross_entropy",
            value=lambda logits, y, trace: -_cross_entropy(logits, y, trace),
            score=lambda logits, y, trace: class_margin(logits, y),
            reached=lambda score, trace: score > 0,
            targeted=True,
        ),
        # Expected MACs as a part of the reachable maximum; judged by the exact MACs.
        Objective(
            "compute",
            value=_expected_compute,
            score=lambda logits, y, trace: trace.macs(),
            reached=lambda score, trace: score >= trace.max_macs() * (1 - 1e-9),
            traced=True,
        ),
    )
}


def get_objective(objective: "str | Objective | Value") -> Objective:
    """Return an objective by name, or a function `(logits, y, trace) -> (B,)` as an objective.

    Raises:
        UserError: if there is none of that name.
    """
    if isinstance(objective, Objective):
        return objective
    if callable(objective):
        name = getattr(objective, "__name__", "custom")
        return Objective(
            name,
            value=objective,
            score=objective,
            reached=lambda score, trace: torch.zeros_like(score, dtype=torch.bool),
            traced=True,
        )
    if objective not in OBJECTIVES:
        raise UserError(
            f"Unknown objective '{objective}'.",
            f"{suggest(objective, OBJECTIVES)}Choose one of: {', '.join(OBJECTIVES)}.",
        )
    return OBJECTIVES[objective]


def least_likely(logits: Tensor) -> Tensor:
    """Return the class with the smallest logit, (B,) int64: the usual hard target."""
    return torch.argmin(logits, dim=1)
