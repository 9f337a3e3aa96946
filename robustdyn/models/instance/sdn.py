"""Shallow-Deep Network: a ResNet with internal classifiers (Kaya et al. 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.calibration import fit_confidence_threshold
from robustdyn.losses import deep_supervision
from robustdyn.models.layers import BasicBlock, Stem, pooled, residual_plan
from robustdyn.primitives import confidence, early_exits
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model


class InternalClassifier(nn.Module):
    """Feature reduction by a learned mix of max and average pooling, then one linear layer."""

    def __init__(self, channels: int, num_classes: int, size: int = 2):
        super().__init__()
        self.size = size
        self.mix = nn.Parameter(torch.zeros(()))
        self.linear = nn.Linear(channels * size * size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.mix)
        largest = F.adaptive_max_pool2d(x, self.size)
        average = F.adaptive_avg_pool2d(x, self.size)
        return self.linear((alpha * largest + (1 - alpha) * average).flatten(1))


class FinalClassifier(nn.Module):
    """Global average pooling and one linear layer."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(pooled(x))


class ShallowDeepResNet(nn.Module):
    """Exits after every block: the first whose largest probability reaches the threshold."""

    thresholds: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 2,
    ):
        super().__init__()
        plan = residual_plan(widths, blocks)
        stem = Stem(in_channels, widths[0], mean, std)
        body = [BasicBlock(*p) for p in plan]
        self.segments = nn.ModuleList([nn.Sequential(stem, body[0]), *body[1:]])
        self.heads = nn.ModuleList(
            [
                *(InternalClassifier(outputs, num_classes) for _, outputs, _ in plan[:-1]),
                FinalClassifier(widths[-1], num_classes),
            ]
        )
        self.register_buffer("thresholds", torch.full((len(plan),), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        rule = confidence(self.thresholds)
        return early_exits(x, self.segments, self.heads, rule, most_confident=True)


@register_model(
    family="instance.depth.early_exit",
    paper="Kaya et al., Shallow-Deep Networks, 2019, arXiv:1810.07052",
    task="image",
    recipe=Recipe(
        epochs=8,
        loss=deep_supervision(final_weight=0.9),
        calibrate=fit_confidence_threshold(max_drop=0.003),
    ),
)
def sdn_resnet(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network with an internal classifier after every block; exits when confident."""
    return ShallowDeepResNet(num_classes, in_channels, mean, std)
