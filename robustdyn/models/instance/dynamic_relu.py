"""Dynamic ReLU: slopes and intercepts predicted from the input (Chen et al. 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.losses import cross_entropy
from robustdyn.models.layers import BasicBlock, pooled
from robustdyn.models.small_resnet import SmallResNet
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model

PIECES = 2


class DynamicReLU(nn.Module):
    """Return the maximum over k of a_k(x) * x + b_k(x), (B, C, H, W): each channel has its own.

    The paper's DY-ReLU-B with two pieces. Slopes are (1, 0) + t and intercepts 0.5 * t, where
    t = 2 * sigmoid(mlp(mean over positions)) - 1 lies between -1 and 1; with t = 0 this is ReLU.
    """

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.down = nn.Linear(channels, channels // reduction)
        self.up = nn.Linear(channels // reduction, 2 * PIECES * channels)

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return slopes and intercepts, each (PIECES, B, C, 1, 1)."""
        t = 2 * torch.sigmoid(self.up(F.relu(self.down(pooled(x))))) - 1
        t = t.reshape(len(x), 2, PIECES, -1).permute(1, 2, 0, 3)[..., None, None]
        start = t.new_tensor([1.0, 0.0]).reshape(PIECES, 1, 1, 1, 1)
        return start + t[0], 0.5 * t[1]

    def forward(self, x: Tensor) -> Tensor:
        (a, c), (b, d) = self.coefficients(x)
        return torch.maximum(a * x + b, c * x + d)


class DynamicReLUBlock(BasicBlock):
    """A basic block with a dynamic ReLU in place of both ReLUs."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, stride)
        self.activate1 = DynamicReLU(outputs)
        self.activate2 = DynamicReLU(outputs)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.activate1(self.conv1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.activate2(self.shortcut(x) + self.residual(x))


@register_model(
    family="instance.features.activation",
    paper="Chen et al., Dynamic ReLU, 2020, arXiv:2003.10027",
    task="image",
    static_compute=True,
    recipe=Recipe(epochs=4, loss=cross_entropy(), augment="none", precision="float32"),
)
def dynamic_relu(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network whose activation functions are predicted from the input."""
    return SmallResNet(num_classes, in_channels, mean, std, block=DynamicReLUBlock)
