"""GradMDM: gate by gate, gradients of equal length, led by the gates that are nearly open."""

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
from robustdyn.attacks.rows import over_values
from robustdyn.threat import Threat
from robustdyn.trace import Trace

POWER = 3.5  # of the loss on closed gates
GATE_WEIGHT = 1.5e5


def gradmdm_direction(logits: Tensor, y: Tensor, trace: Trace, x: Tensor) -> Tensor:
    """Return the direction (B, ...) of length 1 in l2 that opens the gates nearest to opening.

    Each gate's gradient is brought to length 1, cleared of what conflicts with the gates that are
    open, and weighted by chance^(POWER - 1), which is how the norm of order POWER over the
    chances weighs them.
    """
    chances = gate_chances(trace)
    held = torch.zeros_like(logits[:, 0])
    for chance in chances:
        held = held + (chance * (chance.detach() >= 0.5)).sum(1)
    keep_open = gradient_of(held, x)
    total = torch.zeros_like(x)
    for chance in chances:
        closed = chance * (chance.detach() < 0.5)  # (B, elements)
        powered = closed.clamp(min=1e-12).pow(POWER).sum(1)
        pull = (2 * closed.detach().amax(1)).pow(POWER - 1)
        own = without_conflict(steepest(gradient_of(powered, x), "l2"), keep_open)
        total = total + over_values(pull, x) * own
    return steepest(total, "l2")


@register_attack(check_values=check_adam)
def gradmdm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: None,
    seeds: Sequence[int],
    steps: int = 100,
    rate: float = 0.01,
    pull: float = 100.0,
) -> Tensor:
    """Return inputs (B, ...) whose gates are open, by gate gradients of equal length: GradMDM.

    Pan et al., TPAMI 2023 ("GradMDM: Adversarial Attack on Dynamic Networks"). Adam along
    1.5e5 * direction - pull * gradient of |x' - x|^2, with `gradmdm_direction`. Costs one backward
    pass a step for each gate, and one more. Deviations: the paper normalises and projects inside
    the network's backward pass, block by block, here it is done at the input, gate by gate; the
    power is 3.5 from the first step on, without ten plain steps before; and those of `gradauto`.

    Args:
        steps: of Adam.
        rate: of Adam, in units of the input.
        pull: of the squared distance (gamma in the paper).
    """
    goal = replace(
        by_macs("gradmdm", closed_gates),
        gradient=lambda *passed: GATE_WEIGHT * gradmdm_direction(*passed),
    )
    limits: dict[str, Any] = {"threat": threat, "objective": goal, "seeds": seeds}
    step = AdamStep(rate, pull)
    return ascend(step, model, x, y, **limits, steps=steps, random_start=False).x
