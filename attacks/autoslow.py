"""autoslow: the parameter-free ensemble of attacks on compute."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from robustdyn.attacks.cascade import Stage, alone, ascent, cascade, check_budget, outputs
from robustdyn.attacks.cascade import queries as queried
from robustdyn.attacks.deepsloth import STEPS as DEEPSLOTH_STEPS
from robustdyn.attacks.goals import slow, slow_and_right, slow_and_wrong
from robustdyn.attacks.objectives import Objective
from robustdyn.attacks.registry import get, register_attack
from robustdyn.errors import UserError
from robustdyn.threat import Threat

STEPS = 50  # of each APGD run, at which the published attacks have their papers' steps
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
    steps: int = STEPS,
    queries: int = 1000,
) -> Tensor:
    """Return inputs (B, ...) of the largest exact compute that a fixed list of attacks finds.

    Each sample's worst case over the list below; one that is at its reachable maximum leaves. It
    is to compute what AutoAttack (Croce and Hein 2020, arXiv:2003.01690) is to accuracy: runs
    whose objectives fail in different places, nothing to choose, then queries without a gradient.

         1  APGD, margin hinge, straight-through, random start
         2  APGD, log reach, straight-through, random start
         3  APGD, uniform exits, random start: where the model has exits
         4  DeepSloth, from the clean input: where the model has exits
         5  ILFO, from the clean input
         6  GradAuto, from the clean input
         7  GradMDM, from the clean input
         8  APGD, non-conflicting gradient, from the best so far
         9  APGD, sharp compute, straight-through, from the best so far
        10  APGD, compute, soft forward pass ("sigmoid"), from the best so far
        11  Square on the exact MACs, from the best so far

    Stages 4 to 7 are the published attacks as they are here at the steps of their papers, so no
    sample costs less than under any of them; they know the goal "slow" alone, and are left out
    for the others. Under linf and with G gates at most 26 * steps + 2 * steps * (G + 1) backward
    passes, of which those four take 19 * steps and the second term, and `queries` further forward
    passes.

    Args:
        model, x, y, seeds: as in `pgd`.
        objective: "slow", "slow_and_right" or "slow_and_wrong", see robustdyn.attacks.goals.
        steps: of each APGD run; a published attack has its paper's at the default, and its part
            of them at others.
        queries: of Square. Results in tables use the defaults.
    """
    if objective not in _GOALS:
        raise UserError(
            f"autoslow has no goal '{objective}'.", f"Choose one of: {', '.join(_GOALS)}."
        )
    goal = _GOALS[objective]
    stages = _stages(goal, threat.norm, steps, queries, exits=outputs(model, x).exits)
    goals: dict[str, Any] = {"threat": threat, "objective": goal("compute"), "seeds": seeds}
    return cascade(stages, model, x, y, **goals).x


def _stages(
    goal: Callable[[str], Objective], norm: str, steps: int, count: int, *, exits: bool
) -> list[Stage]:
    stages = [
        ascent(goal("margin_hinge"), steps=steps, fine=False),
        ascent(goal("log_reach"), steps=steps, fine=False),
    ]
    if exits:
        stages.append(ascent(goal("uniform_exits"), steps=steps, fine=False))
    if goal is slow:
        stages += _published(norm, steps, exits=exits)
    return [
        *stages,
        ascent(goal("non_conflicting"), steps=steps, fine=True),
        ascent(goal("sharp_compute"), steps=steps, fine=True),
        ascent(goal("compute"), steps=steps, by="sigmoid", fine=True),
        queried(goal("compute"), count=count),
    ]


def _published(norm: str, steps: int, *, exits: bool) -> list[Stage]:
    names = ["deepsloth"] * exits + ["ilfo", "gradauto", "gradmdm"]
    stages = []
    for attack in map(get, names):
        of_paper = attack.params["steps"] or DEEPSLOTH_STEPS[norm]
        part = max(of_paper * steps // STEPS, 1)
        stages.append(alone(attack.run, slow("compute"), steps=part))
    return stages
