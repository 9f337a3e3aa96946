"""GradAuto: open the closed gates without closing the open ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustdyn.attacks.adam import AdamStep, check_adam
from robustdyn.attacks.ascent import ascend
from robustdyn.attacks.ball import steepest
from robustdyn.attacks.compute_objectives import by_macs, gradient_of, without_conflict
from robustdyn.attacks.ilfo import closed_gates, gate_chances
from robustdyn.attacks.registry import register_attack
from robustdyn.threat import Threat
from robustdyn.trace import Trace


def gradauto_direction(logits: Tensor, y: Tensor, trace: Trace, x: Tensor) -> Tensor:
    """Return the direction (B, ...) of length 1 in l2 that opens gates and closes none.

    The gradient of the chances of the closed gates, less its component against the gradient of
    the chances of the open ones, where the two conflict.
    """
    closed = held = torch.zeros_like(logits[:, 0])
    for chance in gate_chances(trace):
        opened = chance.detach() >= 0.5
        closed = closed + (chance * ~opened).sum(1)
        held = held + (chance * opened).sum(1)
    return steepest(without_conflict(gradient_of(closed, x), gradient_of(held, x)), "l2")


@register_attack(check_values=check_adam)
def gradauto(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: None,
    seeds: Sequence[int],
    steps: int = 300,
    rate: float = 0.01,
    pull: float = 1.0,
    weight: float = 1.0,
) -> Tensor:
    """Return inputs (B, ...) whose gates are open, by gradients that do not conflict: GradAuto.

    Pan et al., ECCV 2022 ("GradAuto: Energy-oriented Attack on Dynamic Neural Networks"). Adam
    along weight * D * direction - pull * gradient of |x' - x|^2, with D values in an input and
    `gradauto_direction`. Two backward passes a step. Deviations: inside the threat, where theirs
    only penalises the distance; without tanh (see AdamStep); keeps the iterate with the largest
    exact MACs, where theirs counts blocks, and a sample at its reachable maximum leaves; a sample
    whose gradient is NaN stays where it is.

    Args:
        steps: of Adam.
        rate: of Adam, in units of the input.
        pull, weight: of the squared distance, and of the direction (K in the paper).
    """
    goal = replace(
        by_macs("gradauto", closed_gates),
        gradient=lambda *passed: weight * x[0].numel() * gradauto_direction(*passed),
    )
    limits: dict[str, Any] = {"threat": threat, "objective": goal, "seeds": seeds}
    step = AdamStep(rate, pull)
    return ascend(step, model, x, y, **limits, steps=steps, random_start=False).x
