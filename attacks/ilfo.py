"""ILFO: open the gates by their intermediate outputs, with the smallest change."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.attacks.adam import AdamStep, check_adam
from robustdyn.attacks.ascent import ascend
from robustdyn.attacks.compute_objectives import by_macs, guarded
from robustdyn.attacks.registry import register_attack
from robustdyn.threat import Threat
from robustdyn.trace import Trace


def gate_chances(trace: Trace) -> list[Tensor]:
    """Return the chance of running of each gate that guards work, (B, elements), in order."""
    named = {id(g.share.decision): g.share.decision for g in guarded(trace)}
    return [torch.sigmoid(d.margin).reshape(len(d.margin), -1) for d in named.values() if d]


def closed_gates(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return minus what the chances of the closed gates lack to a half, summed, (B,)."""
    total = torch.zeros_like(logits[:, 0])
    for chance in gate_chances(trace):
        total = total - F.relu(0.5 - chance).sum(1)
    return total


@register_attack(check_values=check_adam)
def ilfo(
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
    weight: float = 10.0,
) -> Tensor:
    """Return inputs (B, ...) whose gates are open, near the clean input: ILFO.

    Haque et al., CVPR 2020 ("ILFO: Adversarial Attack on Adaptive Neural Networks"). Minimises
    pull * |x' - x|^2 + weight * sum over gates of max(0, 1/2 - chance of running) by Adam. The
    paper bounds nothing. Deviations: inside the threat; without their change of variables
    (see AdamStep); keeps the iterate with the largest exact MACs, and a sample at its reachable
    maximum leaves. Every position, channel, token or time step with a decision is a gate.

    Args:
        steps: gradients.
        rate: of Adam, in units of the input.
        pull, weight: of the squared distance, and of the gates.
    """
    goal = by_macs("ilfo", lambda *passed: weight * closed_gates(*passed))
    limits: dict[str, Any] = {"threat": threat, "objective": goal, "seeds": seeds}
    step = AdamStep(rate, pull)
    return ascend(step, model, x, y, **limits, steps=steps, random_start=False).x
