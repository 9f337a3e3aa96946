"""Projected gradient descent for any objective."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustdyn.attacks.draws import normal, uniform
from robustdyn.attacks.objectives import Objective, get_objective, least_likely
from robustdyn.attacks.registry import register_attack
from robustdyn.errors import UserError
from robustdyn.gates import estimator, forward_is_hard
from robustdyn.threat import Threat
from robustdyn.trace import Trace, trace

# A matrix product of a few rows rounds otherwise than one of many: attack at least this many rows,
# by repeating some, so that a sample's result does not depend on how many run beside it.
MIN_ROWS = 16


def _check_values(
    *, steps: int, step_size: float | None, restarts: int, random_start: bool
) -> None:
    for name, value in (("steps", steps), ("restarts", restarts)):
        if not (isinstance(value, int) and value >= 1):
            raise UserError(f"{name} is {value!r}.", f"Give a whole number of {name}, 1 or more.")
    if step_size is not None and not (isinstance(step_size, int | float) and step_size > 0):
        raise UserError(f"step_size is {step_size!r}.", "Give a positive number, or leave it out.")
    if restarts > 1 and not random_start:
        raise UserError(
            "Several restarts without a random start all do the same.",
            "Set restarts = 1 or random_start = true.",
        )


@register_attack(
    objectives=("cross_entropy", "compute", "targeted_cross_entropy"), check_values=_check_values
)
def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
) -> Tensor:
    """Return inputs (B, ...) that maximise `objective` inside `threat`.

    Madry et al. 2018, arXiv:1706.06083. Deviations: keeps the best iterate as judged by the hard
    model, not the last; a sample that has nothing left to gain (wrong, or at full compute) leaves
    the batch.

    Args:
        model: maps inputs to logits (B, K); in eval mode.
        x: (B, ...) inputs inside the threat's bounds.
        y: (B,) labels; for a targeted objective they only serve as labels: the target is the
            class that the clean input makes least likely.
        seeds: one per sample, for the random start.
        steps: gradient steps per restart.
        step_size: in units of the input; by default 2.5 * eps / steps.
        restarts: random starts; the best iterate of all is kept.
        random_start: False starts at the clean input.
    """
    goal = get_objective(objective)
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    if goal.targeted:
        with torch.no_grad():
            y = least_likely(model(x))
    best = x.clone()
    best_score = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    running = torch.arange(len(x), device=x.device)  # the samples that can still gain
    for restart in range(restarts):
        iterate = x.clone()
        if random_start:
            iterate = threat.project(x + _inside(x, threat, seeds, stream=restart), x)
        for step in range(steps + 1):
            if not len(running):
                return best
            rows = at_least(running, MIN_ROWS)
            here = iterate[rows]
            probe = _probe(model, here, y[rows], goal, gradient=step < steps)
            better = probe.score > best_score[rows]
            best[rows[better]] = here[better]
            best_score[rows[better]] = probe.score[better]
            if probe.gradient is not None:
                moved = here + size * _direction(probe.gradient, threat.norm)
                iterate[rows] = threat.project(moved, x[rows])
            running = running[~probe.reached[: len(running)]]
    return best


class _Probe(NamedTuple):
    """One look at the model: hard score (n,), who is done (n,), and the gradient (n, ...)."""

    score: Tensor
    reached: Tensor
    gradient: Tensor | None


def _probe(model: nn.Module, x: Tensor, y: Tensor, goal: Objective, *, gradient: bool) -> _Probe:
    if not (gradient and forward_is_hard()):
        with torch.no_grad(), estimator("straight_through"):
            hard_logits, hard_trace = _forward(model, x, goal)
            score = goal.score(hard_logits, y, hard_trace).double()
        reached = goal.reached(score, hard_trace)
        if not gradient:
            return _Probe(score, reached, None)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits, passed = _forward(model, x, goal)
        value = goal.value(logits, y, passed).sum()
        if forward_is_hard():
            with torch.no_grad():
                score = goal.score(logits, y, passed).double()
            reached = goal.reached(score, passed)
        return _Probe(score, reached, _gradient(value, x))


def _forward(model: nn.Module, x: Tensor, goal: Objective) -> tuple[Tensor, Trace]:
    with trace() if goal.traced else nullcontext(Trace()) as passed:
        return model(x), passed


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    """The gradient of value in x; zero where the model's compute does not depend on x at all."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest ascent of length 1 in the norm; NaN counts as no gradient."""
    gradient = torch.nan_to_num(gradient, nan=0.0)
    if norm == "linf":
        return gradient.sign()
    gradient = gradient / _over_values(gradient.abs().flatten(1).amax(1), gradient)
    return gradient / _over_values(gradient.flatten(1).norm(dim=1), gradient)


def _over_values(length: Tensor, like: Tensor) -> Tensor:
    length = torch.where(length > 0, length, torch.ones_like(length))
    return length.reshape(-1, *[1] * (like.dim() - 1))


def _inside(x: Tensor, threat: Threat, seeds: Sequence[int], *, stream: int) -> Tensor:
    """Uniform random points inside the ball around 0, (B, ...)."""
    if threat.norm == "linf":
        return threat.eps * uniform(seeds, x, stream=stream).mul(2).sub(1)
    values = x[0].numel()
    radius = uniform(seeds, x[:, :1].flatten(1)[:, :1], stream=stream) ** (1 / values)
    direction = _direction(normal(seeds, x, stream=stream), "l2")
    return threat.eps * radius.reshape(-1, *[1] * (x.dim() - 1)) * direction


def at_least(rows: Tensor, count: int) -> Tensor:
    """Return `rows` (n,), repeated from the front until there are `count` of them."""
    if len(rows) >= count:
        return rows
    return rows[torch.arange(count, device=rows.device) % len(rows)]
