"""Black boxes that answer with one bit: is the goal reached, or is this one no better."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustdyn.attacks.ascent import aimed
from robustdyn.attacks.ball import surface
from robustdyn.attacks.draws import uniform
from robustdyn.attacks.look import judge_all
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.parameters import check_whole
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import over_values
from robustdyn.threat import Threat, distance

_STARTS = 20  # queries at most to find any input that reaches the goal
_HALVINGS = 8
_GROW, _SHRINK = 1.5, 0.9  # of a step after a success and a failure: one success in five
_DRAWS = 6 << 32


def _check_values(*, queries: int) -> None:
    check_whole(queries=queries)


@register_attack(objectives=("cross_entropy", "*"), check_values=_check_values)
def boundary(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    queries: int = 1000,
) -> Tensor:
    """Return inputs (B, ...) found by asking only whether the goal of `objective` is reached.

    The boundary attack, Brendel et al. 2018, arXiv:1712.04248: from any input that reaches the
    goal (a wrong answer; full compute; `at_least:0.8`; `exit:5`) it walks towards x, and stays
    where the goal is reached. Once inside the threat it stops; else the last place is cut to the
    threat, reached or not, unless the goal forbids it. A sample for which random inputs find no
    start stays as it is.
    Deviations: distances in the threat's norm; one step size per sample, of which the walk around
    and the step inwards are fixed parts.

    Args:
        model, x, y, seeds: as in `pgd`.
        objective: only whether its goal is reached is read.
        queries: forward passes per sample, at most.
    """
    goal = get_objective(objective)
    y = aimed(model, x, y, goal)

    def reached(at: Tensor) -> Tensor:
        return judge_all(model, at, y, goal).reached

    low, high = threat.bounds
    widest = replace(threat, eps=(high - low) * x[0].numel())
    done = reached(x)
    place, found = x.clone(), done.clone()
    starts = min(_STARTS, queries - 1)
    for k in range(starts):  # from near to far
        drawn = low + (high - low) * uniform(seeds, x, stream=_DRAWS + k)
        candidate = widest.project(x + (k + 1) / starts * (drawn - x), x)
        new = reached(candidate) & ~found
        place, found = torch.where(over_values(new, x), candidate, place), found | new
    near = x.clone()
    for _ in range(min(_HALVINGS, queries - 1 - starts)):
        middle = (near + place) / 2
        inside = over_values(reached(middle), x)
        place, near = torch.where(inside, middle, place), torch.where(inside, near, middle)
    step = torch.full_like(x.flatten(1)[:, 0], 0.2)
    for k in range(queries - 1 - starts - _HALVINGS):
        radius = distance(place, x, threat.norm)
        walking = found & (radius > threat.eps)
        if not walking.any():
            break
        around = surface(x, threat, seeds, stream=_DRAWS + _STARTS + k) / max(threat.eps, 1e-12)
        moved = place + over_values(step * radius, x) * around
        candidate = _shrunk(moved, x, widest, (1 - 0.5 * step) * radius)
        good = reached(candidate) & walking
        place = torch.where(over_values(good, x), candidate, place)
        step = torch.where(good, step * _GROW, step * _SHRINK).clamp(1e-4, 0.5)
    place = threat.project(place, x)
    forbidden = judge_all(model, place, y, goal).score == -torch.inf
    return torch.where(over_values(forbidden, x), x, place)


def _shrunk(at: Tensor, x: Tensor, widest: Threat, radius: Tensor) -> Tensor:
    """Inputs brought to a distance of at most `radius` (B,) from x, along the line to x."""
    change = widest.project(at, x) - x
    length = distance(x + change, x, widest.norm)
    part = (radius / length.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)
    return widest.project(x + over_values(part, x) * change, x)


@register_attack(objectives=("cross_entropy", "*"), check_values=_check_values)
def comparison(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    queries: int = 1000,
) -> Tensor:
    """Return inputs (B, ...) found by asking only which of two has the larger score.

    A random walk inside the threat that goes wherever the score does not fall: for who learns
    which exit was taken or which of two inputs cost more, but neither how much nor how close.

    Args:
        model, x, y, seeds: as in `pgd`.
        objective: only the order of its scores is read.
        queries: forward passes per sample.
    """
    goal = get_objective(objective)
    y = aimed(model, x, y, goal)
    return random_walk(
        lambda at: judge_all(model, at, y, goal).score,
        x,
        threat=threat,
        seeds=seeds,
        queries=queries,
        again=False,
    )


def random_walk(
    measure: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    threat: Threat,
    seeds: Sequence[int],
    queries: int,
    again: bool,
) -> Tensor:
    """Return where a walk inside the threat ends that steps wherever `measure` does not fall.

    The step grows by half after a success and shrinks by a tenth after a failure, so that about one
    in five succeeds (Rechenberg's rule).

    Args:
        measure: inputs (B, ...) -> (B,).
        queries: measurements per sample.
        again: measure the place anew beside every candidate, for measurements that scatter: a
            lucky one must not stand for ever. Costs two queries a step.
    """
    here, best = x.clone(), measure(x)
    step = torch.ones_like(x.flatten(1)[:, 0])
    for k in range((queries - 1) // (2 if again else 1)):
        way = surface(x, threat, seeds, stream=_DRAWS + k)
        candidate = threat.project(here + over_values(step, x) * way, x)
        if again:
            best = measure(here)
        value = measure(candidate)
        good = (value >= best) & (value > -torch.inf)
        here = torch.where(over_values(good, x), candidate, here)
        best = torch.where(good, value, best)
        step = torch.where(good, step * _GROW, step * _SHRINK).clamp(1e-2, 2)
    return here
