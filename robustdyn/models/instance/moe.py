"""The network that the mixtures of experts share: convolutional experts, routed per sample."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.models.layers import BasicBlock, Stem, conv_bn, pooled
from robustdyn.primitives import kept_softmax, mix_experts
from robustdyn.primitives.experts import Routing

Route = Callable[[str, Tensor], Routing]  # name, router logits (B, E) -> routing


class Router(nn.Module):
    """Logits (B, E) from pooled features, linear; in training with learned noise.

    x W + N(0, 1) * softplus(x V), Shazeer et al. 2017, arXiv:1701.06538.
    """

    def __init__(self, channels: int, experts: int):
        super().__init__()
        self.clean = nn.Linear(channels, experts)
        self.noise = nn.Linear(channels, experts)
        nn.init.zeros_(self.noise.weight)

    def forward(self, features: Tensor) -> Tensor:
        logits = self.clean(features).float()
        if not self.training:
            return logits
        return logits + torch.randn_like(logits) * F.softplus(self.noise(features).float())


class MixtureBlock(nn.Module):
    """relu(x + sum of the routed experts); an expert is a bottleneck of two 3x3 convolutions."""

    def __init__(self, channels: int, hidden: int, experts: int, route: Route):
        super().__init__()
        self.route = route
        self.router = Router(channels, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(conv_bn(channels, hidden), nn.ReLU(), conv_bn(hidden, channels))
            for _ in range(experts)
        )

    def forward(self, x: Tensor, name: str) -> Tensor:
        logits = self.router(pooled(x))
        routing = self.route(name, logits)
        weights = kept_softmax(logits, routing.decision.keep)
        return F.relu(x + mix_experts(routing, weights, list(self.experts), x))


class MixtureNet(nn.Module):
    """Stem, one residual block to a quarter of the resolution, mixture blocks, linear head."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        route: Route,
        widths: Sequence[int] = (16, 32),
        hidden: int = 8,
        blocks: int = 2,
        experts: int = 4,
    ):
        super().__init__()
        self.stem = nn.Sequential(
            Stem(in_channels, widths[0], mean, std, stride=2), BasicBlock(widths[0], widths[1], 2)
        )
        self.blocks = nn.ModuleList(
            MixtureBlock(widths[1], hidden, experts, route) for _ in range(blocks)
        )
        self.head = nn.Linear(widths[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k, block in enumerate(self.blocks):
            x = block(x, f"experts{k}")
        return self.head(pooled(x))
