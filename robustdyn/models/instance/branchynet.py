"""BranchyNet: side branches on a trunk, left at low entropy (Teerapittayanon et al. 2016)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.exit_calibration import fit_exit_shares
from robustdyn.exit_losses import exit_cross_entropies
from robustdyn.models.layers import BasicBlock, Stem, conv_bn
from robustdyn.primitives import early_exits, entropy
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model


def _classifier(channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]


def _branch(channels: int, num_classes: int) -> nn.Module:
    """Return a side branch: a strided convolution, pooling, one linear layer."""
    conv = conv_bn(channels, 2 * channels, stride=2)
    return nn.Sequential(conv, nn.ReLU(), *_classifier(2 * channels, num_classes))


class BranchyNet(nn.Module):
    """A residual trunk with a branch after its first and its second stage; per sample.

    A sample leaves at the first branch whose answer has an entropy of at most the branch's
    threshold. Branches, a convolution and a linear layer, cost as soon as they are reached.
    Deviation from the paper: thresholds are fitted by shares of samples instead of screened.
    """

    thresholds: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: tuple[int, int, int] = (12, 24, 48),
    ):
        super().__init__()
        first, second, third = widths
        self.segments = nn.ModuleList(
            [
                nn.Sequential(
                    Stem(in_channels, first, mean, std, stride=2), BasicBlock(first, first)
                ),
                nn.Sequential(BasicBlock(first, second, 2), BasicBlock(second, second)),
                BasicBlock(second, third, 2),
            ]
        )
        self.heads = nn.ModuleList(
            [
                _branch(first, num_classes),
                _branch(second, num_classes),
                nn.Sequential(*_classifier(third, num_classes)),
            ]
        )
        self.register_buffer("thresholds", torch.full((2,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return early_exits(x, self.segments, self.heads, entropy(self.thresholds))


@register_model(
    family="instance.depth.early_exit",
    paper="Teerapittayanon et al., BranchyNet, 2016, arXiv:1709.01686",
    task="image",
    recipe=Recipe(
        epochs=6,
        loss=exit_cross_entropies(weights=(1.0, 1.0, 1.0)),
        calibrate=fit_exit_shares(measure="entropy", max_drop=0.004),
        precision="float32",
    ),
)
def branchynet(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A trunk with two side branches; a sample leaves where the answer's entropy is low."""
    return BranchyNet(num_classes, in_channels, mean, std)
