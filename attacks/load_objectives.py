"""Objectives where compute does not show in MACs: expert load, routing, activation density.

Top-k routing costs the same whichever experts it picks, and a zero activation is a saved MAC only
on hardware that skips it. So these are judged by the exact load, routing margin or density.
"""

import torch
from torch import Tensor

from robustdyn.attacks.objectives import TOLERANCE, Objective, never, register_objective
from robustdyn.trace import Trace

TAU = 0.1  # temperature of the smooth maximum over experts
SIGMA = 1e-4  # of the smooth count of activations that are not zero
_ROUTED = ("expert", "path")


def expert_load(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the largest part of a sample's routing that one expert gets, smoothly, (B,).

    tau * log sum exp(load / tau) over the experts, a mean over layers. An expert's load is the mean
    over tokens of its softmax(margin). Margins are (B, E) or (B, T, E), experts last.
    """
    return _over_layers(logits, [torch.softmax(m, 2).mean(1) for m, _ in _routed(trace)], _smooth)


def _smooth(load: Tensor) -> Tensor:
    return TAU * torch.logsumexp(load / TAU, 1)


def exact_load(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the part of a sample's routed tokens that its fullest expert gets, (B,)."""
    kept = [keep.sum(1) for _, keep in _routed(trace)]
    return _over_layers(
        logits, [k / k.sum(1, keepdim=True).clamp(min=1) for k in kept], lambda load: load.amax(1)
    )


def router(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return minus the gap between the two best experts, (B,), a mean over tokens and layers.

    Where it nears 0 the routing flips. After the router attack of Zhang et al. 2023
    (arXiv:2308.10110); deviation: theirs raises the cross-entropy to the clean routing.
    """
    gaps = [-_gap(margin) for margin, _ in _routed(trace)]
    return _over_layers(logits, gaps, lambda gap: gap.mean(1))


def _gap(margin: Tensor) -> Tensor:
    if margin.shape[2] < 2:
        return torch.zeros_like(margin[:, :, 0])
    top = margin.topk(2, dim=2).values
    return top[:, :, 0] - top[:, :, 1]


def _routed(trace: Trace) -> list[tuple[Tensor, Tensor]]:
    """Margin and keep of every routing decision, (B, T, E)."""
    decisions = [d for d in trace.decisions.values() if d.kind in _ROUTED and d.margin.dim() > 1]
    return [(_tokens(d.margin), _tokens(d.keep)) for d in decisions]


def _tokens(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1, values.shape[-1])


def _over_layers(logits: Tensor, layers: list[Tensor], reduce) -> Tensor:
    if not layers:
        return torch.zeros_like(logits[:, 0])
    return torch.stack([reduce(layer) for layer in layers]).mean(0)


def activation_density(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the smooth part of activations that are not zero, (B,): mean of a^2 / (a^2 + sigma).

    Sponge examples (Shumailov et al. 2021, arXiv:2006.03463), with the smooth count of Cina et
    al. 2022 (arXiv:2203.08147). Every activation function counts, by its size.
    """
    return _density(logits, trace, lambda a: a.square() / (a.square() + SIGMA))


def exact_density(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the part of a sample's activations that are not exactly zero, (B,)."""
    return _density(logits, trace, lambda a: (a != 0).to(a))


def _density(logits: Tensor, trace: Trace, count) -> Tensor:
    total, values = torch.zeros_like(logits[:, 0]), 0
    for activation in trace.activations:
        flat = activation.reshape(len(logits), -1)
        total, values = total + count(flat).sum(1), values + flat.shape[1]
    return total / max(values, 1)


def _full(score: Tensor, trace: Trace) -> Tensor:
    return score >= 1 - TOLERANCE


register_objective(Objective("expert_load", expert_load, exact_load, _full, traced=True))
register_objective(Objective("router", router, router, never, traced=True))
register_objective(
    Objective(
        "activation_density", activation_density, exact_density, _full, traced=True, watched=True
    )
)
