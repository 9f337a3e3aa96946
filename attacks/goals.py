"""Goals: what an attacker wants, out of objectives and a constraint. Every goal is an Objective.

slow               the gates open, whatever the answer (any objective of compute)
wrong              the answer wrong, whatever it costs (any objective of accuracy)
slow_and_wrong     both: among wrong answers the slowest
slow_and_right     slow, and the answer stays what it was
fast_and_wrong     wrong, and among wrong answers the fastest
exit:K             the sample stops at exit K, counted from 0
cost:PART          the compute is as near as possible to a part of the reachable maximum
at_least:PART      the compute is at least that part

Where two things are wanted, one is the constraint of the other, held by dual ascent: see
Objective.constraint. Iterates are always judged by the hard model.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.attacks.accuracy_objectives import dlr
from robustdyn.attacks.compute_objectives import exact_macs
from robustdyn.attacks.objectives import (
    FAMILIES,
    TOLERANCE,
    Objective,
    Value,
    class_margin,
    get_objective,
    register_objective,
)
from robustdyn.errors import UserError
from robustdyn.trace import Trace


def slow(by: str = "margin_hinge") -> Objective:
    """Return the goal of the largest compute, climbing the objective `by`."""
    return replace(get_objective(by), name=_named("slow", by))


def wrong(by: str = "dlr") -> Objective:
    """Return the goal of a wrong answer, climbing the objective `by`."""
    return replace(get_objective(by), name=_named("wrong", by))


def slow_and_wrong(by: str = "margin_hinge") -> Objective:
    """Return the goal of the largest compute among wrong answers.

    A right answer counts for less than any wrong one, and the slower of two right ones for more.
    """
    return _ranked("slow_and_wrong", by, get_objective(by), wrongness)


def slow_and_right(by: str = "margin_hinge") -> Objective:
    """Return the goal of the largest compute at which the clean input's answer stays.

    No iterate with another answer is ever kept; where there is none, the clean input is.
    """
    base = get_objective(by)

    def score(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
        return torch.where(_is(logits, y), base.score(logits, y, trace), -torch.inf)

    return replace(
        base,
        name=_named("slow_and_right", by),
        score=score,
        constraint=lambda logits, y, trace: -dlr(logits, y, trace),
        aim=lambda logits, y: logits.argmax(1),
    )


def fast_and_wrong() -> Objective:
    """Return the goal of the smallest compute among wrong answers: the earliest exit, no block."""

    def value(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
        return -trace.expected_macs() / trace.max_macs()

    fast = Objective(
        "fast",
        value=value,
        score=lambda logits, y, trace: -trace.macs(),
        reached=lambda score, trace: -score <= least_macs(trace) * (1 + TOLERANCE),
        traced=True,
    )
    return _ranked("fast_and_wrong", "margin_hinge", fast, wrongness)


def _ranked(name: str, by: str, base: Objective, constraint: Value) -> Objective:
    """`base` under a constraint, broken ones ranked below all others: for scores in MACs."""

    def score(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
        macs = base.score(logits, y, trace)
        broken = constraint(logits, y, trace) <= 0
        return torch.where(broken, macs - 2 * trace.max_macs(), macs)

    return replace(base, name=_named(name, by), score=score, constraint=constraint)


def wrongness(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the difference-of-logits ratio, (B,): positive where the answer is not y."""
    return dlr(logits, y, trace)


def _is(logits: Tensor, y: Tensor) -> Tensor:
    return class_margin(logits, y) > 0


def least_macs(trace: Trace) -> float:
    """Return the MACs that no gate guards: no sample costs less."""
    return sum(macs for macs, shares in trace.terms() if not shares)


def exit_at(text: str) -> Objective:
    """Return the goal of stopping at exit `text`, counted from 0.

    Climbs the log of the chance of stopping there; judged by how many exits away the sample stops.
    Without that exit nothing moves.

    Raises:
        UserError: if `text` is no whole number.
    """
    if not text.isdecimal():
        raise UserError(f"'{text}' is no place of an exit.", "Write exit:0 for the first.")
    place = int(text)

    def value(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
        gates = [d.margin for d in trace.decisions.values() if d.kind == "exit"]
        total = torch.zeros_like(logits[:, 0])
        for margin in gates[:place]:
            total = total + F.logsigmoid(margin)
        return total + F.logsigmoid(-gates[place]) if place < len(gates) else total

    def score(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
        if not trace.exits:
            return torch.full_like(logits[:, 0], -torch.inf)
        taken = torch.stack([exit.taken for exit in trace.exits]).int().argmax(0)
        return -(taken - place).abs().to(logits.dtype)

    return Objective(
        f"exit:{place}",
        value=value,
        score=score,
        reached=lambda score, trace: score >= 0,
        traced=True,
    )


def cost(text: str) -> Objective:
    """Return the goal of spending `text` (0 to 1) of the reachable maximum, no less and no more.

    Raises:
        UserError: if `text` is no number from 0 to 1.
    """
    part = _part("cost", text)
    return Objective(
        f"cost:{part:g}",
        value=lambda logits, y, trace: -(trace.expected_macs() / trace.max_macs() - part).abs(),
        score=lambda logits, y, trace: -(trace.macs() / trace.max_macs() - part).abs(),
        reached=lambda score, trace: score >= -TOLERANCE,
        traced=True,
    )


def at_least(text: str) -> Objective:
    """Return the goal of spending at least `text` (0 to 1) of the reachable maximum.

    Climbs the margin hinge; a sample is done as soon as it spends that much.

    Raises:
        UserError: if `text` is no number from 0 to 1.
    """
    part = _part("at_least", text)
    return replace(
        get_objective("margin_hinge"),
        name=f"at_least:{part:g}",
        score=exact_macs,
        reached=lambda score, trace: score >= part * trace.max_macs() * (1 - TOLERANCE),
    )


def _part(name: str, text: str) -> float:
    try:
        part = float(text)
    except ValueError:
        part = -1.0
    if not 0 <= part <= 1:
        raise UserError(f"'{text}' is no part of the maximum.", f"Write for example {name}:0.8.")
    return part


def _named(name: str, by: str) -> str:
    return name if by in ("margin_hinge", "dlr") else f"{name}:{by}"


for _goal in (slow(), wrong(), slow_and_wrong(), slow_and_right(), fast_and_wrong()):
    register_objective(_goal)
_FAMILIES: dict[str, Callable[[str], Objective]] = {
    "slow": slow,
    "slow_and_wrong": slow_and_wrong,
    "slow_and_right": slow_and_right,
    "wrong": wrong,
    "exit": exit_at,
    "cost": cost,
    "at_least": at_least,
}
FAMILIES.update(_FAMILIES)
