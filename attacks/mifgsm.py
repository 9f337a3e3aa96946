"""Iterative gradient ascent with momentum (MI-FGSM), for any objective."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustdyn.attacks.ascent import State, Step, ascend
from robustdyn.attacks.ball import steepest
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.parameters import check_not_negative, check_run, check_step_size
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import over_values
from robustdyn.threat import Threat


class MomentumStep(NamedTuple):
    """A step of `size` along the gathered gradients, each of mean absolute value 1."""

    size: float
    decay: float

    def begin(self, here: Tensor, threat: Threat) -> State:
        return (torch.zeros_like(here),)

    def move(self, step: Step, state: State) -> tuple[Tensor, State]:
        gradient = step.look.gradient
        scale = gradient.abs().flatten(1).mean(1)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        gathered = self.decay * state[0] + gradient / over_values(scale, gradient)
        stride = self.size * steepest(gathered, step.threat.norm)
        return step.threat.project(step.here + stride, step.origin), (gathered,)


def _check_values(
    *, steps: int, step_size: float | None, decay: float, restarts: int, random_start: bool
) -> None:
    check_run(steps=steps, restarts=restarts, random_start=random_start)
    check_step_size(step_size)
    check_not_negative(decay=decay, zero="PGD")


@register_attack(objectives=("cross_entropy", "*"), check_values=_check_values)
def mifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    restarts: int = 1,
    random_start: bool = False,
) -> Tensor:
    """Return inputs (B, ...) that maximise `objective` inside `threat`, by steps with momentum.

    Dong et al. 2018, arXiv:1710.06081. Deviations as in `pgd`: the best iterate as judged by the
    hard model; any objective, norm and mask.

    Args:
        model, x, y, seeds, restarts: as in `pgd`.
        steps: gradient steps per restart.
        step_size: in units of the input; by default eps / steps, as in the paper.
        decay: of the gathered gradients; 0 is PGD.
        random_start: by default it starts at the clean input, as in the paper.
    """
    return ascend(
        MomentumStep(threat.eps / steps if step_size is None else step_size, decay),
        model,
        x,
        y,
        threat=threat,
        objective=get_objective(objective),
        seeds=seeds,
        steps=steps,
        restarts=restarts,
        random_start=random_start,
    ).x
