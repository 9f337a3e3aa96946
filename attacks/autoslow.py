"""autoslow: the parameter-free ensemble of attacks on compute."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from robustdyn.attacks.cascade import Stage, ascent, cascade, check_budget, outputs
from robustdyn.attacks.cascade import queries as queried
from robustdyn.attacks.goals import slow, slow_and_right, slow_and_wrong
from robustdyn.attacks.objectives import Objective
from robustdyn.attacks.registry import register_attack
from robustdyn.errors import UserError
from robustdyn.threat import Threat

_GOALS = {"slow": slow, "slow_and_right": slow_and_right, "slow_and_wrong": slow_and_wrong}


@register_attack(objectives=tuple(_GOALS), check_values=check_budget)
def autoslow(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: str = "slow",
    seeds: Sequence[int],
    steps: int = 50,
    queries: int = 1000,
) -> Tensor:
    """Return inputs (B, ...) of the largest exact compute that a fixed list of attacks finds.

    Each sample's worst case over the list below; one that is at its reachable maximum leaves. It
    is to compute what AutoAttack (Croce and Hein 2020, arXiv:2003.01690) is to accuracy: runs
    whose objectives fail in different places, nothing to choose, then queries without a gradient.

        1  APGD, margin hinge, straight-through, random start
        2  APGD, log reach, straight-through, random start
        3  APGD, sharp compute, straight-through, from the best so far
        4  APGD, compute, soft forward pass ("sigmoid"), from the best so far
        5  APGD, uniform exits, random start: where the model has exits
        6  APGD, non-conflicting gradient, from the best so far
        7  Square on the exact MACs, from the best so far

    At most 6 * steps gradients (7 backward passes for every 6: stage 6 needs two each) and
    `queries` further forward passes.

    Args:
        model, x, y, seeds: as in `pgd`.
        objective: "slow", "slow_and_right" or "slow_and_wrong", see robustdyn.attacks.goals.
        steps, queries: the budget of each stage; results in tables use the defaults.
    """
    if objective not in _GOALS:
        raise UserError(
            f"autoslow has no goal '{objective}'.", f"Choose one of: {', '.join(_GOALS)}."
        )
    goal = _GOALS[objective]
    stages = _stages(goal, steps, queries, exits=outputs(model, x).exits)
    goals: dict[str, Any] = {"threat": threat, "objective": goal("compute"), "seeds": seeds}
    return cascade(stages, model, x, y, **goals).x


def _stages(
    goal: Callable[[str], Objective], steps: int, count: int, *, exits: bool
) -> list[Stage]:
    stages = [
        ascent(goal("margin_hinge"), steps=steps, fine=False),
        ascent(goal("log_reach"), steps=steps, fine=False),
        ascent(goal("sharp_compute"), steps=steps, fine=True),
        ascent(goal("compute"), steps=steps, by="sigmoid", fine=True),
    ]
    if exits:
        stages.append(ascent(goal("uniform_exits"), steps=steps, fine=False))
    stages.append(ascent(goal("non_conflicting"), steps=steps, fine=True))
    return [*stages, queried(goal("compute"), count=count)]
