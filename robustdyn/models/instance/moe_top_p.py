"""Mixture of experts with top-p routing: unsure routers run more experts (Huang et al. 2024)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.losses import described
from robustdyn.models.instance.moe import MixtureNet
from robustdyn.primitives import route_top_p
from robustdyn.recipe import Loss, Recipe
from robustdyn.registry import register_model
from robustdyn.trace import Trace

PROBABILITY = 0.8  # above 3/4, so that all of 4 experts can be needed


@described
def balanced_budget(*, balance: float, target: float, weight: float, spread: float) -> Loss:
    """Return CE + balance * E * sum_e f_e q_e + weight * (used - target)^2 - spread * var(used).

    f_e is the part of the routed samples that expert e gets, q_e its mean chance to run, as a part
    of the experts' sum: the load balance loss of Huang et al. 2024, arXiv:2403.07652. `used` is
    the expected part of a mixture's experts, a mean or variance over the batch. All are means over
    the mixtures. Deviation: the paper's entropy loss, which alone would drive every router to one
    expert, is replaced by the target, which falls from 1 over the first third of training.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        warm = min(1.0, progress / 0.33)
        total = torch.zeros(())
        for routing in trace.decisions.values():
            chance = torch.sigmoid(routing.margin)
            got, ran = routing.keep.detach().mean(0), chance.mean(0)
            even = len(ran) * (got / got.sum() * ran / ran.sum()).sum()
            used = chance.mean(1)
            off = (used.mean() - (1 + warm * (target - 1))).square()
            total = total + balance * even + weight * off - warm * spread * used.var()
        return F.cross_entropy(logits, y) + total / len(trace.decisions)

    return loss


@register_model(
    family="instance.width.experts.threshold",
    paper="Huang et al., Harder Tasks Need More Experts, 2024, arXiv:2403.07652",
    task="image",
    recipe=Recipe(
        epochs=5,
        loss=balanced_budget(balance=0.05, target=0.45, weight=2.0, spread=1.0),
        full_share=0.15,
        augment="none",
        precision="float32",
    ),
)
def moe_top_p(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A network that runs, per mixture, the fewest experts whose probabilities sum to 0.8.

    Deviation: as the mixture's weights, the probabilities are normalised over the experts that run.
    """
    route = partial(route_top_p, p=PROBABILITY)
    return MixtureNet(num_classes, in_channels, mean, std, route)
