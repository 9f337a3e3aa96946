"""CondConv: each input's kernel is a weighted sum of expert kernels (Yang et al. 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.losses import cross_entropy
from robustdyn.models.layers import BasicBlock, pooled
from robustdyn.models.small_resnet import SmallResNet
from robustdyn.primitives import conv_own
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model


class CondConv(nn.Module):
    """A 3x3 convolution with kernel sum_n sigmoid(route(mean over positions))_n * W_n, no bias.

    One convolution and one weighted sum of `experts` kernels for each sample.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, experts: int = 3):
        super().__init__()
        self.stride, self.shape = stride, (outputs, inputs, 3, 3)
        self.route = nn.Linear(inputs, experts)
        self.kernels = nn.Parameter(torch.empty(experts, outputs, inputs * 9))
        for kernel in self.kernels.detach():
            nn.init.kaiming_normal_(kernel)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.route(pooled(x)))  # (B, experts)
        mixed = weights @ self.kernels.flatten(1)  # (B, outputs * inputs * 9)
        return conv_own(x, mixed.unflatten(1, self.shape), stride=self.stride)


class CondConvBlock(BasicBlock):
    """A basic block whose 3x3 convolutions are conditional, each with a routing of its own."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, stride)
        self.conv1[0] = CondConv(inputs, outputs, stride)
        self.conv2[0] = CondConv(outputs, outputs)


@register_model(
    family="instance.parameters.weight_attention",
    paper="Yang et al., CondConv, 2019, arXiv:1904.04971",
    task="image",
    static_compute=True,
    recipe=Recipe(epochs=4, loss=cross_entropy(), augment="none", precision="float32"),
)
def condconv(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network whose kernels are mixed for each input from three expert kernels."""
    plan = ((16, 32, 2), (32, 48, 2))
    return SmallResNet(num_classes, in_channels, mean, std, block=CondConvBlock, plan=plan)
