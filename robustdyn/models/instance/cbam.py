"""CBAM: attention over channels, then over positions (Woo et al. 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.losses import cross_entropy
from robustdyn.models.layers import BasicBlock, conv_bn, pooled
from robustdyn.models.small_resnet import SmallResNet
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model


class ChannelAttention(nn.Module):
    """Return x * sigmoid(mlp(mean over positions) + mlp(maximum over positions)), (B, C, H, W)."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels // reduction),
            nn.ReLU(),
            nn.Linear(channels // reduction, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.mlp(pooled(x)) + self.mlp(x.amax((2, 3))))  # (B, C)
        return x * weights[:, :, None, None]


class SpatialAttention(nn.Module):
    """Return x * sigmoid(norm(conv(maximum and mean over channels))), (B, C, H, W)."""

    def __init__(self, size: int = 7):
        super().__init__()
        self.conv = conv_bn(2, 1, size=size)

    def forward(self, x: Tensor) -> Tensor:
        over_channels = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(over_channels))  # (B, 1, H, W) weights


class AttentionBlock(BasicBlock):
    """A basic block whose residual branch passes both attentions before it joins the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, stride)
        self.attend = nn.Sequential(ChannelAttention(outputs), SpatialAttention())

    def residual(self, x: Tensor) -> Tensor:
        return self.attend(super().residual(x))


@register_model(
    family="instance.features.spatial",
    paper="Woo et al., CBAM, 2018, arXiv:1807.06521",
    task="image",
    static_compute=True,
    recipe=Recipe(epochs=4, loss=cross_entropy(), augment="none", precision="float32"),
)
def cbam_resnet(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network that weights its channels and its positions input by input.

    Deviation from the paper: the bottleneck has a quarter of the channels, not a sixteenth.
    """
    return SmallResNet(num_classes, in_channels, mean, std, block=AttentionBlock)
