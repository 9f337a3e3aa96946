"""NES: a gradient estimated from queries of the hard score."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.attacks.ascent import aimed
from robustdyn.attacks.ball import steepest
from robustdyn.attacks.draws import normal
from robustdyn.attacks.look import judge, judge_all
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.parameters import check_number, check_whole
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import filled_up, over_values
from robustdyn.threat import Threat

_DRAWS = 5 << 32
_MOMENTUM = 0.9


def _check_values(*, queries: int, pairs: int, spread: float, step: float) -> None:
    check_whole(queries=queries, pairs=pairs)
    check_number(spread=spread, step=step, hint=", in units of eps")


@register_attack(objectives=("cross_entropy", "*"), check_values=_check_values)
def nes(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    queries: int = 1000,
    pairs: int = 10,
    spread: float = 2.0,
    step: float = 0.5,
) -> Tensor:
    """Return inputs (B, ...) that raise the hard score of `objective`, by an estimated gradient.

    Natural evolution strategies with antithetic pairs, Ilyas et al. 2018, arXiv:1804.08598. Each
    pair asks the score on both sides of the iterate; the estimate is the sum of the directions,
    each signed towards the better side. Deviations: only the sign of a difference counts, since
    MACs come in steps; the probes are wide, for the same reason; the best of all queries is kept,
    probes too; a sample that has nothing left to gain leaves.

    Args:
        model, x, y, seeds: as in `pgd`.
        objective: only its score is read.
        queries: forward passes per sample.
        pairs: of probes for one step.
        spread: the usual length of a probe before it is cut to the threat, in eps.
        step: in eps.
    """
    goal = get_objective(objective)
    y = aimed(model, x, y, goal)
    best = x.clone()
    score, reached = (part.clone() for part in judge_all(model, x, y, goal))
    here, gathered = x.clone(), torch.zeros_like(x)
    asked, number = 1, 0

    def ask(candidate: Tensor, rows: Tensor, count: int) -> Tensor:
        verdict = judge(model, candidate, y[rows], goal)
        found, own = verdict.first(count), rows[:count]
        better = found.score > score[own]
        best[own[better]] = candidate[:count][better]
        score[own[better]] = found.score[better]
        reached[own[better]] |= found.reached[better]
        return verdict.score

    while asked + 2 * pairs < queries + 1:
        left = (~reached).nonzero().flatten()
        if not len(left):
            break
        rows = filled_up(left)
        limits, origin, centre = threat.at(rows, x), x[rows], here[rows]
        each = [seeds[row] for row in rows.tolist()]
        estimate = torch.zeros_like(origin)
        for pair in range(pairs):
            way = normal(each, origin, stream=_DRAWS + number * pairs + pair)
            probe = spread * threat.eps * way / _usual_length(origin, threat.norm)
            tried = (limits.project(centre + s * probe, origin) for s in (1, -1))
            up, down = (ask(candidate, rows, len(left)) for candidate in tried)
            sign = (up > down).to(way) - (up < down).to(way)
            estimate = estimate + over_values(sign, way) * way
        momentum = _MOMENTUM * gathered[rows] + (1 - _MOMENTUM) * estimate
        gathered[left] = momentum[: len(left)]
        stride = step * threat.eps * steepest(momentum, threat.norm)
        here[left] = limits.project(centre + stride, origin)[: len(left)]
        asked, number = asked + 2 * pairs, number + 1
    return best


def _usual_length(x: Tensor, norm: str) -> float:
    """The usual length in the norm of normal numbers shaped as a sample of x; 1 under linf."""
    values = x[0].numel()
    return {"linf": 1.0, "l2": values**0.5, "l1": 0.8 * values}[norm]
