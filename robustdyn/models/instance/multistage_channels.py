"""Multi-stage channels: groups of channels are added while unsure (after Yuan et al. 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.exit_calibration import fit_exit_shares
from robustdyn.exit_losses import exit_cross_entropies
from robustdyn.models.layers import Normalise, conv_bn, pooled
from robustdyn.primitives import confidence, early_exits
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model

Layers = tuple[tuple[int, int], ...]  # channels and stride of each layer


class Stage(nn.Module):
    """Computes one group of channels of every layer, from the groups so far of the layer before.

    Maps (image, features of layer 0, 1 ...), each (B, groups so far, H, W), to the same with one
    group more. The first stage maps the image alone.
    """

    def __init__(self, in_channels: int, group: int, groups: int, layers: Layers):
        super().__init__()
        self.units = nn.ModuleList()
        inputs = in_channels
        for channels, stride in layers:
            own = channels // groups
            self.units.append(nn.Sequential(*conv_bn(inputs, own, stride=stride), nn.ReLU()))
            inputs = own * (group + 1)

    def forward(self, state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        image, *before = (state,) if isinstance(state, Tensor) else state
        features = [image]
        for k, unit in enumerate(self.units):
            new = unit(features[-1])
            features.append(torch.cat([before[k], new], 1) if before else new)
        return tuple(features)


class StageHead(nn.Module):
    """Global average pooling of all groups so far of the last layer, and one linear layer."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, state: tuple[Tensor, ...]) -> Tensor:
        return self.linear(pooled(state[-1]))


class MultiStageChannels(nn.Module):
    """A plain convolutional network whose channels come in groups, stage by stage.

    Stage g computes group g of every layer. Group g reads groups 0 ... g, so that weights are
    block lower-triangular and nothing is computed twice, and every group has its batch norm. A
    sample stops after the first stage whose classifier is sure. Per layer, stage g costs
    own * (g + 1) * inputs' own per kernel element and position, so that later stages cost more.
    Deviation from the paper: groups are equal, not searched for.
    """

    thresholds: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        groups: int = 3,
        layers: Layers = ((24, 2), (48, 2), (48, 1), (48, 1), (72, 2), (72, 1)),
    ):
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.stages = nn.ModuleList(Stage(in_channels, g, groups, layers) for g in range(groups))
        last = layers[-1][0] // groups
        self.heads = nn.ModuleList(StageHead(last * (g + 1), num_classes) for g in range(groups))
        self.register_buffer("thresholds", torch.full((groups - 1,), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        rule = confidence(self.thresholds)
        return early_exits(self.normalise(x), self.stages, self.heads, rule)


@register_model(
    family="instance.width.channels.multi_stage",
    paper="Yuan et al., S2DNAS, 2020, arXiv:1911.07033",
    task="image",
    recipe=Recipe(
        epochs=9,
        loss=exit_cross_entropies(weights=(1.0, 1.0, 1.0)),
        calibrate=fit_exit_shares(measure="confidence", max_drop=0.004),
        precision="float32",
    ),
)
def multistage_channels(
    num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]
):
    """Three groups of channels, added one after the other while the classifier is unsure."""
    return MultiStageChannels(num_classes, in_channels, mean, std)
