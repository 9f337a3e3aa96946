"""Conditional neurons: a perceptron that computes only blocks of its hidden units (Bengio 2015)."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.decision import Decision
from robustdyn.losses import described
from robustdyn.models.layers import Normalise
from robustdyn.primitives import masked_channels
from robustdyn.recipe import Loss, Recipe
from robustdyn.registry import register_model
from robustdyn.trace import Trace, decide


class LowRankPredictor(nn.Module):
    """Margins (B, G) of G blocks, U norm(Vx) + b of rank r: costs r(d + G), whatever is kept."""

    def __init__(self, features: int, blocks: int, rank: int, opening_bias: float = 1.0):
        super().__init__()
        self.reduce = nn.Linear(features, rank, bias=False)
        self.norm = nn.BatchNorm1d(rank, affine=False)
        self.expand = nn.Linear(rank, blocks)
        nn.init.constant_(self.expand.bias, opening_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.norm(self.reduce(x)))


class ConditionalMLP(nn.Module):
    """h <- keep * relu(Wh + b), where keep is one gate per block of hidden units.

    Bengio et al. 2015 (arXiv:1511.06297) switch blocks of units by a learned policy, Davis and
    Arel 2013 (arXiv:1312.4461) predict with a matrix of low rank which units will be active; here
    a predictor of low rank is the policy. A layer reads only the units that the one before kept.
    Deviation: gates are trained with Gumbel noise instead of REINFORCE.
    """

    def __init__(
        self,
        num_classes: int,
        features: int,
        mean: Sequence[float],
        std: Sequence[float],
        hidden: Sequence[int] = (160, 160),
        block: int = 8,
        rank: int = 16,
    ):
        super().__init__()
        widths = [features, *hidden]
        self.normalise = Normalise(mean, std)
        self.layers = nn.ModuleList(nn.Linear(d, n) for d, n in pairwise(widths))
        self.predictors = nn.ModuleList(
            LowRankPredictor(d, n // block, rank) for d, n in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.normalise(x).flatten(1)  # (B, d)
        live: list[Decision] = []
        for k, (layer, predict) in enumerate(zip(self.layers, self.predictors, strict=True)):
            gate = decide(f"layer{k}", predict(h), kind="channel")
            h = F.relu(masked_channels(layer, h, outputs=gate, inputs=live))
            live = [gate]
        return masked_channels(self.head, h, inputs=live)


@described
def block_rates(*, target: float, weight: float, spread: float) -> Loss:
    """Return CE + weight * (unit rates + sample rates) - spread * variance, of the chances to run.

    Unit rates: sum over blocks of (mean over samples - target)^2, so that each block is used.
    Sample rates: mean over samples of (mean over blocks - target)^2, so that each sample is cheap.
    Variance: sum over blocks of that over samples, so that gates depend on the input. Bengio et
    al. 2015, arXiv:1511.06297. The target falls from 1 over the first third of training.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        warm = min(1.0, progress / 0.33)
        aim = 1.0 + warm * (target - 1.0)
        total = F.cross_entropy(logits, y)
        for decision in trace.decisions.values():
            chance = torch.sigmoid(decision.margin.float())  # (B, G)
            units = (chance.mean(0) - aim).square().sum()
            samples = (chance.mean(1) - aim).square().mean()
            variance = chance.var(0).sum()
            total = total + weight * (units + samples) - warm * spread * variance
        return total

    return loss


@register_model(
    family="instance.width.fully_connected",
    paper="Bengio et al., Conditional Computation in Neural Networks, 2015, arXiv:1511.06297",
    task="image",
    recipe=Recipe(
        epochs=6,
        loss=block_rates(target=0.5, weight=0.1, spread=0.003),
        optimizer="adamw",
        lr=3e-3,
        weight_decay=0.3,
        augment="none",
        estimator="gumbel",
        full_share=0.2,
        precision="float32",
    ),
)
def conditional_mlp(
    num_classes: int, input_shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
):
    """A perceptron whose hidden units run in blocks, each switched per input."""
    return ConditionalMLP(num_classes, prod(input_shape), mean, std)
