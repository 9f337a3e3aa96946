"""Squeeze-and-excitation: channels rescaled by what the whole map holds (Hu et al. 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.losses import cross_entropy
from robustdyn.models.layers import BasicBlock, pooled
from robustdyn.models.small_resnet import SmallResNet
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model


class SqueezeExcitation(nn.Module):
    """Return x * sigmoid(up(relu(down(mean over positions)))), channel by channel, (B, C, H, W)."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.down = nn.Linear(channels, channels // reduction, bias=False)
        self.up = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.up(F.relu(self.down(pooled(x)))))  # (B, C)
        return x * weights[:, :, None, None]


class SqueezeExcitationBlock(BasicBlock):
    """A basic block whose residual branch is rescaled before it joins the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, stride)
        self.excite = SqueezeExcitation(outputs)

    def residual(self, x: Tensor) -> Tensor:
        return self.excite(super().residual(x))


@register_model(
    family="instance.features.channel",
    paper="Hu et al., Squeeze-and-Excitation Networks, 2018, arXiv:1709.01507",
    task="image",
    static_compute=True,
    recipe=Recipe(epochs=4, loss=cross_entropy(), augment="none", precision="float32"),
)
def se_resnet(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network that weights its channels input by input.

    Deviation from the paper: the bottleneck has a quarter of the channels, not a sixteenth.
    """
    return SmallResNet(num_classes, in_channels, mean, std, block=SqueezeExcitationBlock)
