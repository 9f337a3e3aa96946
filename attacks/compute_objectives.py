"""Objectives that open gates, whatever their kind, judged by the exact MACs of the hard model."""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.attacks.objectives import TOLERANCE, Objective, Value, register_objective
from robustdyn.attacks.rows import over_values
from robustdyn.decision import Share
from robustdyn.trace import Trace

REACH_FLOOR = 0.05  # of a gate that the sample does not reach: it still counts this much
KAPPA = 1.0  # the margin, in log-odds, beyond which a gate is open enough
SHARPNESS = 0.3  # temperature of the soft step that stands for a gate's hard one


class Guarded(NamedTuple):
    """A share, and what it guards: the partial derivative of the compute in it.

    `macs` (B,) is the derivative at the soft shares, without a gradient: small where the sample
    hardly reaches the gate. `most` is the derivative with every other share at its maximum, or
    fully open where its maximum is 0.
    """

    share: Share
    macs: Tensor
    most: float


def guarded(trace: Trace) -> list[Guarded]:
    """Return what every share of the trace guards, in the order of the forward pass."""
    found: dict[int, Guarded] = {}
    for macs, shares in trace.terms():
        soft = [share.soft.detach() for share in shares]
        for k, share in enumerate(shares):
            if share.maximum == 0:  # closed at the maximum, as a tree's cheaper path: not a gate
                continue
            others = soft[:k] + soft[k + 1 :]
            here = macs * prod(others, start=torch.ones_like(soft[k]))
            most = macs * prod(s.maximum or 1.0 for j, s in enumerate(shares) if j != k)
            before = found.get(id(share))
            if before is not None:
                here, most = before.macs + here, before.most + most
            found[id(share)] = Guarded(share, here, most)
    return list(found.values())


def compute(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the expected MACs as a part of the reachable maximum, (B,)."""
    return trace.expected_macs() / trace.max_macs()


def expected_bit_operations(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the expected bit operations as a part of the reachable maximum, (B,)."""
    return trace.expected_bit_operations() / trace.max_bit_operations()


def margin_hinge(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return minus what the closed gates lack to open, weighted by what they guard, (B,).

    -sum over gates of max(dC/dshare, .05 * its largest value) * log(1 + max(0, KAPPA - margin)),
    a mean over the positions, channels or tokens of a gate. It does not saturate: a gate far from
    opening pulls with 1 / margin where a probability pulls with exp(-margin), at any scale of the
    margins; and the floor keeps gates alive that the sample does not reach yet.
    """
    return _weighted(logits, trace, guarded(trace), _lack)


def _weighted(
    logits: Tensor, trace: Trace, gates: list[Guarded], lack: Callable[[Tensor], Tensor]
) -> Tensor:
    total = torch.zeros_like(logits[:, 0])
    for share, macs, most in gates:
        weight = macs.clamp(min=REACH_FLOOR * most) / trace.max_macs()
        total = total - weight.to(logits.dtype) * _mean(lack(margin_of(share)))
    return total


def _lack(margin: Tensor) -> Tensor:
    return torch.log1p(F.relu(KAPPA - margin))


def margin_of(share: Share) -> Tensor:
    """Return the margins (B, ...) that a share rises with; where no gate is named, its log-odds."""
    if share.decision is not None:
        return share.decision.margin
    return torch.logit(share.soft / share.maximum, eps=1e-6)


def sharp_compute(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the gates' chances at a low temperature, weighted by what they guard, (B,).

    sum over gates of max(dC/dshare, .05 * its largest value) * sigmoid(margin / .3): close to the
    hard compute, so it spends the budget on gates that are about to open and gives up those that
    are far from it. Of use to refine, and for many small gates such as the positions of a mask.
    """
    return _weighted(logits, trace, guarded(trace), lambda m: -torch.sigmoid(m / SHARPNESS))


def log_reach(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return sum over stacks of MACs * sum of log chance of each gate above them, (B,).

    Behind several closed gates a product of chances vanishes, and its gradient; the sum of their
    logarithms does not. A mean over the positions, channels or tokens of a gate. Stacks that are
    closed at the maximum, as a tree's cheaper path, are left out.
    """
    total = torch.zeros_like(logits[:, 0])
    for macs, shares in trace.terms():
        for share in shares if all(s.maximum for s in shares) else ():
            chance = _mean(F.logsigmoid(margin_of(share)))
            total = total + macs / trace.max_macs() * chance
    return total


def non_conflicting(logits: Tensor, y: Tensor, trace: Trace, x: Tensor) -> Tensor:
    """Return the direction that opens closed gates without closing open ones, (B, ...).

    The gradient of the margin hinge over the closed gates, minus its component against the
    gradient that widens the open ones, where the two conflict. GradAuto, Pan et al., ECCV 2022;
    deviations: gates weigh by the MACs they guard, and all gates of a sample make one gradient.
    Shares of no single gate are not held open: one may be what the other branch leaves.
    """
    gates = guarded(trace)
    ours = [gate for gate in gates if gate.share.decision is not None]
    closed = gradient_of(_weighted(logits, trace, gates, lambda m: _lack(m) * (m <= 0)), x)
    held = gradient_of(_weighted(logits, trace, ours, lambda m: -torch.log1p(F.relu(m))), x)
    return without_conflict(closed, held)


def without_conflict(direction: Tensor, held: Tensor) -> Tensor:
    """Return `direction` (B, ...) minus what of it goes against `held` (B, ...)."""
    along = (direction * held).flatten(1).sum(1)
    length = held.flatten(1).square().sum(1).clamp(min=torch.finfo(held.dtype).tiny)
    conflict = over_values(along.clamp(max=0) / length, held)
    return direction - conflict * held


def gradient_of(value: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of the sum of `value` in x, zero where there is none; keeps the graph."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def exact_macs(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the exact MACs, (B,) float64: the score of every objective on compute."""
    return trace.macs()


def at_maximum(score: Tensor, trace: Trace) -> Tensor:
    """Return where the MACs are at the reachable maximum, (B,) bool."""
    return score >= trace.max_macs() * (1 - TOLERANCE)


def by_macs(name: str, value: Value) -> Objective:
    """Return the objective that climbs `value` and is judged by the exact MACs."""
    return Objective(name, value=value, score=exact_macs, reached=at_maximum, traced=True)


for _value in (compute, margin_hinge, sharp_compute, log_reach):
    register_objective(by_macs(_value.__name__, _value))
register_objective(
    Objective(
        "bit_operations",
        value=expected_bit_operations,
        score=lambda logits, y, trace: trace.bit_operations(),
        reached=lambda score, trace: score >= trace.max_bit_operations() * (1 - TOLERANCE),
        traced=True,
    )
)
register_objective(
    Objective(
        "non_conflicting",
        value=margin_hinge,
        score=exact_macs,
        reached=at_maximum,
        traced=True,
        gradient=non_conflicting,
    )
)
