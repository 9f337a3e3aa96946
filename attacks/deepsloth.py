"""DeepSloth: every exit as unsure as can be."""

from collections.abc import Sequence
from math import cos, pi
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.attacks.ascent import Method, State, Step, ascend
from robustdyn.attacks.ball import steepest
from robustdyn.attacks.compute_objectives import by_macs
from robustdyn.attacks.parameters import check_run, check_step_size
from robustdyn.attacks.pgd import FixedStep
from robustdyn.attacks.registry import register_attack
from robustdyn.errors import UserError
from robustdyn.threat import Threat
from robustdyn.trace import Trace

STEPS = {"linf": 30, "l2": 550, "l1": 250}  # of the paper
LINF_STEP = 0.064  # in eps: .002 at eps .03125
LEAST_L2_STEP = 0.01


class CosineStep(NamedTuple):
    """An l2 step whose length falls from `first` to a hundredth of it, along a cosine."""

    first: float
    steps: int

    def begin(self, here: Tensor, threat: Threat) -> State:
        return ()

    def move(self, step: Step, state: State) -> tuple[Tensor, State]:
        fall = (1 + cos(pi * step.number / self.steps)) / 2
        size = self.first * (LEAST_L2_STEP + (1 - LEAST_L2_STEP) * fall)
        stride = size * steepest(step.look.gradient, "l2")
        return step.threat.project(step.here + stride, step.origin), state


def unsure_exits(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return minus the cross-entropies of all exits but the last to the uniform answer, (B,).

    Raises:
        UserError: if the model has gates but no exits.
    """
    if len(trace.exits) < 2 and (trace.macs() < trace.max_macs()).any():
        raise UserError(
            "DeepSloth attacks exits, and this model has none.",
            "Choose a model of instance.depth.early_exit, or the attack 'autoslow'.",
        )
    total = torch.zeros_like(logits[:, 0])
    for exit in trace.exits[:-1]:
        total = total + F.log_softmax(exit.logits, 1).mean(1)
    return total


def _check_values(*, steps: int | None, step_size: float | None) -> None:
    check_run(steps=1 if steps is None else steps, restarts=1, random_start=False)
    check_step_size(step_size)


@register_attack(check_values=_check_values, needs="exits")
def deepsloth(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: None,
    seeds: Sequence[int],
    steps: int | None = None,
    step_size: float | None = None,
) -> Tensor:
    """Return inputs (B, ...) at which every early exit is unsure: DeepSloth.

    Hong et al. 2021, arXiv:2010.02432. Minimises the sum over early exits of the cross-entropy of
    their answer to the uniform one; neither thresholds nor MACs enter. linf: signs, 30 steps of
    .064 eps. l2: 550 steps that fall from eps to eps / 100 along a cosine. l1: 250 steps on the
    1 % of the values with the largest gradients. Deviations: l1 projects exactly; l2 keeps the
    radius, where theirs shrinks by .9 every 50 steps; starts at the clean input, where theirs does
    within a step of it; keeps the iterate with the largest exact MACs, not the last, and a sample
    at its reachable maximum leaves. A model without gates is left alone.

    Args:
        steps: gradient steps; by default the paper's for the norm.
        step_size: in units of the input; by default the paper's in linf and l2, 2.5 eps / steps in
            l1. In l2 the first one.

    Raises:
        UserError: if the model has gates but no exits.
    """
    steps = STEPS[threat.norm] if steps is None else steps
    method: Method
    if threat.norm == "l2":
        method = CosineStep(threat.eps if step_size is None else step_size, steps)
    else:
        usual = LINF_STEP if threat.norm == "linf" else 2.5 / steps
        method = FixedStep(usual * threat.eps if step_size is None else step_size)
    goal = by_macs("deepsloth", unsure_exits)
    limits: dict[str, Any] = {"threat": threat, "objective": goal, "seeds": seeds}
    return ascend(method, model, x, y, **limits, steps=steps, random_start=False).x
