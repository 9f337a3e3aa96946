"""Projected gradient descent for any objective."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from robustdyn.attacks.ascent import State, Step, ascend
from robustdyn.attacks.ball import steepest
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.parameters import check_run, check_step_size
from robustdyn.attacks.registry import register_attack
from robustdyn.threat import Threat


class FixedStep(NamedTuple):
    """A step of `size`, in units of the input, along the steepest direction."""

    size: float

    def begin(self, here: Tensor, threat: Threat) -> State:
        return ()

    def move(self, step: Step, state: State) -> tuple[Tensor, State]:
        direction = steepest(step.look.gradient, step.threat.norm)
        return step.threat.project(step.here + self.size * direction, step.origin), state


def _check_values(
    *, steps: int, step_size: float | None, restarts: int, random_start: bool
) -> None:
    check_run(steps=steps, restarts=restarts, random_start=random_start)
    check_step_size(step_size)


@register_attack(objectives=("cross_entropy", "*"), check_values=_check_values)
def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
) -> Tensor:
    """Return inputs (B, ...) that maximise `objective` inside `threat`.

    Madry et al. 2018, arXiv:1706.06083. Deviations: keeps the best iterate as judged by the hard
    model, not the last; a sample that has nothing left to gain (wrong, or at full compute) leaves
    the batch. Under l1 a step changes the 1 % of the values with the largest gradients.

    Args:
        model: maps inputs to logits (B, K); in eval mode.
        x: (B, ...) inputs inside the threat's bounds.
        y: (B,) labels; for a targeted objective they only serve as labels: the target is the
            class that the clean input makes least likely.
        seeds: one per sample, for the random start.
        steps: gradient steps per restart.
        step_size: in units of the input; by default 2.5 * eps / steps.
        restarts: random starts; the best iterate of all is kept.
        random_start: False starts at the clean input.
    """
    return ascend(
        FixedStep(2.5 * threat.eps / steps if step_size is None else step_size),
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
