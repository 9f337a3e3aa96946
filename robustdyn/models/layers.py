"""The layers that several image models share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Normalise(nn.Module):
    """Return (x - mean) / std along dimension `dim`, so that models read inputs in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, dim: int = 1, rank: int = 4):
        super().__init__()
        shape = [1] * rank
        shape[dim] = len(mean)
        self.register_buffer("mean", torch.tensor(mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def conv_bn(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution without bias that keeps the resolution (up to stride), and its norm."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Stem(nn.Module):
    """Normalise, 3x3 convolution, batch norm, ReLU: (B, C, H, W) in [0, 1] -> (B, width, H', W').

    `stride` 2 halves the resolution, which makes everything after it four times cheaper.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        stride: int = 1,
    ):
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.conv = conv_bn(in_channels, width, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(self.normalise(x)))


class BasicBlock(nn.Module):
    """The residual block of two 3x3 convolutions (He et al. 2016, arXiv:1512.03385).

    The shortcut is the identity, or a 1x1 convolution where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, stride=stride)
        self.conv2 = conv_bn(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, size=1, stride=stride)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.residual(x))


def residual_plan(widths: Sequence[int], blocks: int) -> list[tuple[int, int, int]]:
    """Return (inputs, outputs, stride) of `blocks` blocks per stage; stages halve the size."""
    plan = []
    for stage, width in enumerate(widths):
        for block in range(blocks):
            first = block == 0 and stage > 0
            plan.append((widths[stage - 1] if first else width, width, 2 if first else 1))
    return plan


def pooled(x: Tensor) -> Tensor:
    """Return the mean over positions, (B, C, H, W) -> (B, C)."""
    return x.mean((2, 3))
