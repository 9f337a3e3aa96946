"""MSDNet: dense connections over scales, classifiers on the coarsest (Huang et al. 2018)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from robustdyn.exit_calibration import fit_exit_shares
from robustdyn.exit_losses import exit_cross_entropies
from robustdyn.models.layers import Stem, conv_bn
from robustdyn.primitives import confidence, early_exits
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model

Scales = tuple[Tensor, ...]  # (B, C_s, H / 2^s, W / 2^s), finest first


def _conv(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_bn(inputs, outputs, size=size, stride=stride), nn.ReLU())


class FirstLayer(nn.Module):
    """The image at every scale, each by a strided convolution of the finer one."""

    def __init__(self, stem: nn.Module, channels: Sequence[int]):
        super().__init__()
        self.stem = stem
        self.down = nn.ModuleList(_conv(c, own, stride=2) for c, own in pairwise(channels))

    def forward(self, x: Tensor) -> Scales:
        scales = [self.stem(x)]
        for conv in self.down:
            scales.append(conv(scales[-1]))
        return tuple(scales)


class DenseLayer(nn.Module):
    """Appends `growth` channels to every scale: a 3x3 convolution of the scale's own features.

    Where there is a finer scale, half of them come from a strided 3x3 convolution of that one.
    """

    def __init__(self, channels: Sequence[int], growth: Sequence[int]):
        super().__init__()
        part = [growth[0], *(g // 2 for g in growth[1:])]
        self.same = nn.ModuleList(_conv(c, p) for c, p in zip(channels, part, strict=True))
        finer = zip(channels[:-1], part[1:], strict=True)
        self.down = nn.ModuleList(_conv(c, p, stride=2) for c, p in finer)

    def forward(self, scales: Scales) -> Scales:
        grown = []
        for s, (x, same) in enumerate(zip(scales, self.same, strict=True)):
            finer = [self.down[s - 1](scales[s - 1])] if s > 0 else []
            grown.append(torch.cat([x, same(x), *finer], 1))
        return tuple(grown)


class Transition(nn.Module):
    """Drops the finest scale and halves the channels of the others by 1x1 convolutions."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.halve = nn.ModuleList(_conv(c, c // 2, size=1) for c in channels[1:])

    def forward(self, scales: Scales) -> Scales:
        return tuple(halve(x) for halve, x in zip(self.halve, scales[1:], strict=True))


class Classifier(nn.Module):
    """Reads the coarsest scale: two strided 3x3 convolutions, pooling, one linear layer."""

    def __init__(self, channels: int, width: int, num_classes: int):
        super().__init__()
        self.convs = nn.Sequential(
            _conv(channels, width, stride=2), _conv(width, width, stride=2), nn.AdaptiveAvgPool2d(1)
        )
        self.linear = nn.Linear(width, num_classes)

    def forward(self, scales: Scales) -> Tensor:
        return self.linear(self.convs(scales[-1]).flatten(1))


class MSDNet(nn.Module):
    """Parts of dense layers over ever fewer scales, with a classifier after every second layer.

    The first part has all scales; between parts the finest is dropped. Each exit has a threshold
    of its own, a quantile among the calibration samples still inside. Deviation from the paper:
    no 1x1 bottlenecks, which at this width are no cheaper.

    Args:
        width: channels of the finest scale; each coarser scale has twice as many.
        growth: channels that a layer adds to the finest scale, likewise doubled.
        scales: of the first part, and so the number of parts.
        layers: per part.
        head_width: channels of the classifiers' convolutions.
    """

    thresholds: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        width: int = 12,
        growth: int = 6,
        scales: int = 3,
        layers: int = 2,
        head_width: int = 32,
    ):
        super().__init__()
        channels = [width * 2**s for s in range(scales)]
        growths = [growth * 2**s for s in range(scales)]
        stem = Stem(in_channels, width, mean, std, stride=2)
        pending: list[nn.Module] = [FirstLayer(stem, channels)]
        self.segments, self.heads = nn.ModuleList(), nn.ModuleList()
        for layer in range(scales * layers):
            if layer and layer % layers == 0:
                pending.append(Transition(channels))
                channels, growths = [c // 2 for c in channels[1:]], growths[1:]
            pending.append(DenseLayer(channels, growths))
            channels = [c + g for c, g in zip(channels, growths, strict=True)]
            if layer % 2 == 0 or layer == scales * layers - 1:
                self.segments.append(nn.Sequential(*pending))
                self.heads.append(Classifier(channels[-1], head_width, num_classes))
                pending = []
        self.register_buffer("thresholds", torch.full((len(self.heads) - 1,), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        return early_exits(x, self.segments, self.heads, confidence(self.thresholds))


@register_model(
    family="instance.depth.early_exit",
    paper="Huang et al., Multi-Scale Dense Networks, 2018, arXiv:1703.09844",
    task="image",
    recipe=Recipe(
        epochs=8,
        loss=exit_cross_entropies(weights=(1.0,) * 4),
        calibrate=fit_exit_shares(measure="confidence", max_drop=0.004),
        precision="float32",
    ),
)
def msdnet(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """Dense connections over three scales with four exits on the coarsest."""
    return MSDNet(num_classes, in_channels, mean, std)
