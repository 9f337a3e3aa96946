"""Halt: run unit after unit until a sample's halting scores sum to one; mix the states.

Adaptive computation time, Graves 2016, arXiv:1603.08983, in the form for residual networks of
Figurnov et al. 2017, arXiv:1612.02297.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from math import log

import torch
from torch import Tensor

from robustdyn.decision import Decision
from robustdyn.execution import is_sparse
from robustdyn.kernels import gather_rows, scatter_rows
from robustdyn.trace import decide, mark_sparse, region

ENOUGH = 0.99  # a sample halts when its scores sum to this: 1 - epsilon, with epsilon = 0.01


def until_halted(
    name: str,
    x: Tensor,
    units: Iterable[Callable[[Tensor], Tensor]],
    scores: Iterable[Callable[[Tensor], Tensor]],
) -> Tensor:
    """Return sum over units l of p_l * state_l, (B, ...), where state_l = units[l](state_(l-1)).

    With the scores h_l in (0, 1), a sample halts at the first unit N where h_1 + ... + h_N reaches
    ENOUGH, at the last unit at the latest. Then p_l = h_l before N, p_N is the remainder
    1 - h_1 - ... - h_(N-1), and p_l = 0 after N: what has halted is not updated. The decisions
    f"{name}.unit{l}" to run unit l, from 1 (the second), have the margin
    log(ENOUGH) - log(h_1 + ... + h_l): the log-odds of what is needed against what is spent.

    N itself has no gradient, whatever the estimator: the result is continuous in the scores where
    N changes, up to epsilon, and the weights carry its gradient. With all gates forced open, the
    states after N have what is left, at most epsilon, as their weights.

    Args:
        name: of the stretch, unique within the model.
        x: (B, ...), the input of the first unit.
        units: map (n, ...) to (n, ...), sample by sample; their outputs have one shape.
        scores: of all units but the last, (n, ...) -> (n,), the log-odds of h.
    """
    run = _sparse if is_sparse() else _dense
    return run(name, x, list(units), list(scores))


def ponder(gates: Sequence[Decision]) -> Tensor:
    """Return the ponder cost N + R, (B,), of one stretch, from its decisions in order.

    N is the number of units run, R = p_N the remainder. The gradient is that of R: more halting
    before the last unit run costs less.
    """
    kept = torch.stack([gate.kept for gate in gates])  # (units - 1, B)
    spent = ENOUGH * torch.exp(-torch.stack([gate.margin for gate in gates]))
    remainder = 1 - torch.where(kept, spent, 0).amax(0)
    return 1 + kept.sum(0) + remainder


def _dense(name: str, x: Tensor, units: list, scores: list) -> Tensor:
    left, spent = x.new_ones(len(x)), x.new_zeros(len(x))  # (B,): weight to give, sum of scores
    out: Tensor | float = 0.0
    with ExitStack() as regions:
        for k, (unit, score) in enumerate(zip(units[:-1], scores, strict=True)):
            x = unit(x)
            gate, weight, spent = _halt(f"{name}.unit{k + 1}", score(x), left, spent)
            out, left = out + _per_sample(weight, x) * x, left - weight
            regions.enter_context(region(gate.share()))
        x = units[-1](x)
        return out + _per_sample(left, x) * x


def _sparse(name: str, x: Tensor, units: list, scores: list) -> Tensor:
    mark_sparse()
    left, spent = x.new_ones(len(x)), x.new_zeros(len(x))
    rows = torch.arange(len(x), device=x.device)  # the samples still running
    out: Tensor | None = None
    for k, (unit, score) in enumerate(zip(units[:-1], scores, strict=True)):
        x = unit(x)
        gate, weight, spent = _halt(f"{name}.unit{k + 1}", score(x), left, spent)
        out, left = _add(out, rows, _per_sample(weight, x) * x), left - weight
        on = gate.kept.nonzero().flatten()
        if not len(on):
            return out
        x, rows, left, spent = (gather_rows(part, on) for part in (x, rows, left, spent))
    x = units[-1](x)
    return _add(out, rows, _per_sample(left, x) * x)


def _halt(name: str, score: Tensor, left: Tensor, spent: Tensor) -> tuple[Decision, Tensor, Tensor]:
    """The decision to go on after a unit, the unit's weight (n,), and the sum of scores (n,)."""
    h = torch.sigmoid(score)
    spent = spent + h
    gate = decide(name, log(ENOUGH) - torch.log(spent), kind="step")
    return gate, torch.where(gate.kept, torch.minimum(h, left), left), spent


def _add(out: Tensor | None, rows: Tensor, y: Tensor) -> Tensor:
    return y if out is None else scatter_rows(gather_rows(out, rows) + y, rows, out)


def _per_sample(weight: Tensor, like: Tensor) -> Tensor:
    return weight.reshape(-1, *[1] * (like.dim() - 1))
