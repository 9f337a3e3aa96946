"""One look at the model: how the hard model judges an input, and where the objective climbs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustdyn.activations import watching
from robustdyn.attacks.draws import uniform
from robustdyn.attacks.objectives import Objective
from robustdyn.attacks.rows import filled_up
from robustdyn.gates import estimator, forward_is_hard, random_estimator, using
from robustdyn.trace import Trace, trace


class Verdict(NamedTuple):
    """How the hard model judges: score (n,) float64, and who has nothing left to gain (n,) bool."""

    score: Tensor
    reached: Tensor

    def first(self, count: int) -> "Verdict":
        """Return that of the first `count` rows: of rows that are filled up, those that count.

        A repeated row may round otherwise, and which of several is kept would be a race.
        """
        return Verdict(self.score[:count], self.reached[:count])


class Look(NamedTuple):
    """One look at the model.

    Attributes:
        verdict: of the hard model.
        value: (n,), what the objective climbs.
        slack: (n,), its constraint, positive where it holds; zeros without one.
        gradient: (n, ...), of value + price * slack.
    """

    verdict: Verdict
    value: Tensor
    slack: Tensor
    gradient: Tensor


@torch.no_grad()
def judge(model: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> Verdict:
    """Return how the hard model judges inputs (n, ...), whatever estimator is in force."""
    with estimator("straight_through"):
        logits, passed = _forward(model, x, objective)
        return _verdict(objective, logits, y, passed)


def judge_all(model: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> Verdict:
    """Return `judge` of a whole batch (B, ...), filled up as `filled_up` does."""
    rows = filled_up(torch.arange(len(x), device=x.device))
    return judge(model, x[rows], y[rows], objective).first(len(x))


def look(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    objective: Objective,
    *,
    price: Tensor,
    seeds: Sequence[int],
    stream: int,
    eot: int,
) -> Look:
    """Return the verdict on inputs (n, ...), and the objective's gradient in them.

    Args:
        price: (n,), the multiplier of the constraint.
        seeds, stream: of the random numbers of a random estimator.
        eot: passes whose gradients are averaged; more than one only helps where gates or the model
            are random (expectation over transformations, Athalye et al. 2018, arXiv:1707.07397).
    """
    verdict = None if forward_is_hard() else judge(model, x, y, objective)
    parts = []
    for draw in range(eot):
        with torch.enable_grad(), _draws(seeds, stream * eot + draw):
            leaf = x.detach().requires_grad_()
            logits, passed = _forward(model, leaf, objective)
            value, slack, gradient = _climb(objective, logits, y, passed, leaf, price)
        if verdict is None:
            with torch.no_grad():
                verdict = _verdict(objective, logits, y, passed)
        parts.append((value.detach(), slack.detach(), gradient))
    assert verdict is not None
    if eot == 1:
        return Look(verdict, *parts[0])
    value, slack, gradient = (torch.stack(part).mean(0) for part in zip(*parts, strict=True))
    return Look(verdict, value, slack, gradient)


def _climb(
    objective: Objective, logits: Tensor, y: Tensor, passed: Trace, x: Tensor, price: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    value = objective.value(logits, y, passed)
    if objective.constraint is None:
        slack, total = torch.zeros_like(value), value
    else:
        slack = objective.constraint(logits, y, passed)
        total = value + price * slack
    if objective.gradient is None:
        return value, slack, _gradient(total, x)
    own = objective.gradient(logits, y, passed, x).nan_to_num(nan=0.0)
    return value, slack, own + _gradient(price * slack, x)


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    """The gradient of the sum of value in x; zero where it does not depend on x, or is NaN."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.nan_to_num_(nan=0.0)


def _verdict(objective: Objective, logits: Tensor, y: Tensor, passed: Trace) -> Verdict:
    score = objective.score(logits, y, passed).double()
    return Verdict(score, objective.reached(score, passed))


def _forward(model: nn.Module, x: Tensor, objective: Objective) -> tuple[Tensor, Trace]:
    with trace() if objective.traced else nullcontext(Trace()) as passed:
        with watching(passed.activations) if objective.watched else nullcontext():
            return model(x), passed


@contextmanager
def _draws(seeds: Sequence[int], stream: int) -> Iterator[None]:
    """Let a random estimator in force draw from the samples' seeds, gate after gate."""
    random = random_estimator()
    if random is None:
        yield
        return
    gates = 0

    def draw(margin: Tensor) -> Tensor:
        nonlocal gates
        gates += 1
        return uniform(seeds, margin.detach(), stream=_GATE_STREAM + stream * _MOST_GATES + gates)

    with using(partial(random, uniform=draw)):
        yield


_GATE_STREAM = 1 << 32  # beyond the streams of random starts
_MOST_GATES = 1 << 16
