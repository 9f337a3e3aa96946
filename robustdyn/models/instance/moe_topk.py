"""Hard mixture of experts: the k best of E experts run for every sample (Shazeer et al. 2017)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.losses import described
from robustdyn.models.instance.moe import MixtureNet
from robustdyn.primitives import route_top_k
from robustdyn.recipe import Loss, Recipe
from robustdyn.registry import register_model
from robustdyn.trace import Trace

EXPERTS_PER_SAMPLE = 2


@described
def balanced_experts(*, weight: float) -> Loss:
    """Return CE + weight * (CV^2(importance) + CV^2(load)), a sum over the mixtures.

    CV is the standard deviation over the mean, over experts; an expert's importance is the sum of
    its weights over the batch, its load the expected number of samples it gets. Shazeer et al.
    2017, arXiv:1701.06538; deviation: the chance that a sample goes to an expert is
    sigmoid(margin) instead of that of the noise.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        total = F.cross_entropy(logits, y)
        for routing in trace.decisions.values():
            masked = routing.margin.masked_fill(~routing.kept, float("-inf"))
            importance, load = torch.softmax(masked, 1).sum(0), torch.sigmoid(routing.margin).sum(0)
            total = total + weight * (_squared_variation(importance) + _squared_variation(load))
        return total

    return loss


def _squared_variation(values: Tensor) -> Tensor:
    return values.var(correction=0) / values.mean().square()


@register_model(
    family="instance.width.experts.hard",
    paper="Shazeer et al., Outrageously Large Neural Networks, 2017, arXiv:1701.06538",
    task="image",
    static_compute=True,
    recipe=Recipe(
        epochs=5, loss=balanced_experts(weight=0.02), augment="none", precision="float32"
    ),
)
def moe_topk(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A network that routes each sample to the best 2 of 4 convolutional experts per mixture.

    Which experts run depends on the input, how many does not: compute is constant. Experts
    have no capacity, so that a sample does not depend on its batch.
    """
    route = partial(route_top_k, k=EXPERTS_PER_SAMPLE)
    return MixtureNet(num_classes, in_channels, mean, std, route)
