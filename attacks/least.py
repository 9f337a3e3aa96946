"""The least perturbation that reaches a goal: a search over eps, sample by sample."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustdyn.attacks.apgd import auto_step
from robustdyn.attacks.ascent import aimed, ascend
from robustdyn.attacks.cascade import FINE_STEP
from robustdyn.attacks.look import judge_all
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.registry import register_attack
from robustdyn.errors import UserError
from robustdyn.threat import Threat


def _check_values(*, steps: int, halvings: int) -> None:
    for name, value, most in (("steps", steps, 10**6), ("halvings", halvings, 20)):
        if isinstance(value, bool) or not (isinstance(value, int) and 1 <= value <= most):
            raise UserError(f"{name} is {value!r}.", f"Give a whole number from 1 to {most}.")


@register_attack(objectives=("at_least:0.9", "*"), check_values=_check_values)
def least_perturbation(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "at_least:0.9",
    seeds: Sequence[int],
    steps: int = 20,
    halvings: int = 5,
) -> Tensor:
    """Return inputs (B, ...) that reach the goal of `objective` with as little change as it finds.

    APGD at threat.eps first, then bisection of every sample's eps on the grid of multiples of
    threat.eps / 2 ** halvings; each run but the first starts at the smallest success so far, cut
    to the new eps. A sample that never reaches the goal comes back as the best found at
    threat.eps; one that has reached it already comes back unchanged.

    Args:
        model, x, y, seeds: as in `pgd`.
        threat: its eps is the largest to try.
        objective: one with a goal that can be reached, such as "at_least:0.8", "wrong", "exit:3";
            most others never count as reached, and give what APGD gives.
        steps: gradient steps per eps.
        halvings: of eps.
    """
    goal = get_objective(objective)
    labels = aimed(model, x, y, goal)
    verdict = judge_all(model, x, labels, goal)
    best = x.clone()
    cells = 2**halvings
    fails = torch.zeros(len(x), dtype=torch.long, device=x.device)
    works = torch.where(verdict.reached, 0, cells)  # not known yet, but it bounds the search
    for halving in range(halvings + 1):
        tried = (fails + works) // 2 if halving else works
        searched = works - fails > 1
        for size in tried[searched].unique().tolist():
            rows = (searched & (tried == size)).nonzero().flatten()
            smaller = replace(threat, eps=threat.eps * size / cells).at(rows, x)
            found = ascend(
                auto_step(threat.norm, steps, first=FINE_STEP if halving else 2.0),
                model,
                x[rows],
                y[rows],
                threat=smaller,
                objective=goal,
                seeds=[seeds[row] for row in rows.tolist()],
                steps=steps,
                random_start=not halving,
                start=smaller.project(best[rows], x[rows]) if halving else None,
                stream=halving,
            )
            keep = found.reached if halving else found.score > verdict.score[rows]
            best[rows[keep]] = found.x[keep]
            works[rows[found.reached]] = size
            fails[rows[~found.reached]] = size
    return best
