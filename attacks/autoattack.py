"""autoattack: the ensemble of attacks on the accuracy of dynamic networks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustdyn.attacks.cascade import Stage, ascent, cascade, check_budget, outputs
from robustdyn.attacks.cascade import queries as queried
from robustdyn.attacks.foreign import foreign_attack
from robustdyn.attacks.objectives import get_objective
from robustdyn.attacks.parameters import check_flag
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import over_values
from robustdyn.threat import Threat

MOST_TARGETS = 9


def _check_values(*, steps: int, queries: int, cross_check: bool) -> None:
    check_budget(steps=steps, queries=queries)
    check_flag(cross_check=cross_check)


@register_attack(objectives=("wrong",), check_values=_check_values, batch_coupled=True)
def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: str = "wrong",
    seeds: Sequence[int],
    steps: int = 50,
    queries: int = 5000,
    cross_check: bool = True,
) -> Tensor:
    """Return inputs (B, ...) that a fixed list of attacks makes wrong, sample by sample.

    AutoAttack (Croce and Hein 2020, arXiv:2003.01690) for models whose gates decide hard:

        1  torchattacks' AutoAttack, standard version, with its own budget
        2  APGD, cross-entropy, straight-through
        3  APGD, cross-entropy, soft forward pass ("sigmoid")
        4  APGD, mean and log-mean-exp of the cross-entropy over all exits: where there are exits
        5  APGD, targeted DLR, the 9 most likely wrong classes one by one, straight-through
        6  the same for the most likely one with a soft forward pass
        7  Square on the class margin

    A wrong sample leaves. FAB is not among ours; the first stage holds it.

    Stage 1 is what makes the result never weaker than torchattacks' AutoAttack of the same seed
    (the first sample's) on the same batch, sample by sample; and as that draws its random numbers
    for a whole batch, the result of a sample depends on its batch. It runs where torchattacks can:
    images (B, C, H, W) in [0, 1], four classes or more, linf or l2, no mask. With cross_check =
    False the rest decides alone, and a sample's result depends on its seed only.

    Args:
        model, x, y, seeds: as in `pgd`.
        steps, queries: the budget of each stage of ours.
        cross_check: whether stage 1 runs.
    """
    goal = get_objective("wrong")
    classes, exits = outputs(model, x)
    theirs = []
    if cross_check and x.dim() == 4 and classes > 3 and _is_plain(threat):
        theirs = [_theirs(model, x, y, threat, seeds, classes)]
    stages = _stages(steps, queries, classes=classes, exits=exits)
    goals: dict[str, Any] = {
        "threat": threat,
        "objective": goal,
        "seeds": seeds,
        "candidates": theirs,
    }
    return cascade(stages, model, x, y, **goals).x


def _is_plain(threat: Threat) -> bool:
    """Whether torchattacks' AutoAttack knows the threat."""
    return threat.eps > 0 and threat in (Threat("linf", threat.eps), Threat("l2", threat.eps))


def _stages(steps: int, count: int, *, classes: int, exits: bool) -> list[Stage]:
    def run(name: str, by: str = "straight_through") -> Stage:
        return ascent(get_objective(name), steps=steps, by=by, fine=False)

    over_exits = [run("exits_average"), run("exits_max_average")] if exits else []
    targets = [run(f"targeted_dlr:{k + 1}") for k in range(min(classes - 1, MOST_TARGETS))]
    return [
        run("cross_entropy"),
        run("cross_entropy", "sigmoid"),
        *over_exits,
        *targets,
        run("targeted_dlr:1", "sigmoid"),
        queried(get_objective("wrong"), count=count),
    ]


def _theirs(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seeds: Sequence[int], classes: int
) -> Tensor:
    run, _ = foreign_attack("torchattacks", "AutoAttack")
    params = {"n_classes": classes, "seed": seeds[0] % 2**31}
    x_adv = run(model, x, y, threat=threat, objective=None, seeds=seeds, **params)
    return torch.where(over_values(threat.is_met(x_adv, x), x), x_adv, x)
