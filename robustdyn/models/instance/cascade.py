"""Cascade: independent networks of growing size, the next only when unsure (Wang et al. 2017)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.exit_calibration import fit_exit_shares
from robustdyn.exit_losses import exit_cross_entropies
from robustdyn.models.layers import BasicBlock, Stem, residual_plan
from robustdyn.primitives import confidence, early_exits
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model


def _network(
    widths: Sequence[int],
    num_classes: int,
    in_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """Return a residual network with one block per stage, (B, C, H, W) -> (B, K)."""
    return nn.Sequential(
        Stem(in_channels, widths[0], mean, std, stride=2),
        *(BasicBlock(*p) for p in residual_plan(widths, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], num_classes),
    )


class Cascade(nn.Module):
    """Networks that each read the image anew; the first whose confidence suffices answers.

    Nothing is reused, so a sample that reaches network k costs the sum of networks 0 ... k, and
    the most that one can cost is more than the largest network alone. Deviations from the paper: a
    network's "I don't know" is a largest probability below its threshold, not a class of its own;
    the networks are trained in one run, which is the same as apart: they share no parameter.
    """

    thresholds: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        sizes: Sequence[Sequence[int]] = ((8, 16), (8, 16, 32), (16, 32, 48)),
    ):
        super().__init__()
        self.networks = nn.ModuleList(
            _network(widths, num_classes, in_channels, mean, std) for widths in sizes
        )
        self.register_buffer("thresholds", torch.full((len(sizes) - 1,), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        same = [nn.Identity()] * len(self.networks)
        return early_exits(x, same, self.networks, confidence(self.thresholds))


@register_model(
    family="instance.depth.cascade",
    paper="Wang et al., IDK Cascades, 2017, arXiv:1706.00885",
    task="image",
    recipe=Recipe(
        epochs=6,
        loss=exit_cross_entropies(weights=(1.0, 1.0, 1.0)),
        calibrate=fit_exit_shares(measure="confidence", max_drop=0.004),
        precision="float32",
    ),
)
def cascade(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """Three independent networks of growing size; the next runs only when the last is unsure."""
    return Cascade(num_classes, in_channels, mean, std)
