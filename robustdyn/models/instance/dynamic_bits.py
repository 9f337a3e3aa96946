"""Dynamic bit-width: every layer reads as many bits of its input as the sample needs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.decision import Decision
from robustdyn.losses import gate_rates
from robustdyn.models.layers import Stem, pooled, residual_plan
from robustdyn.primitives import conv_in_bits
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model
from robustdyn.trace import decide

WEIGHT_BITS = 4
WEIGHT_LEVELS = 2**WEIGHT_BITS - 1
LEVELS = (3, 15, 255)  # of 2, 4 and 8 bits: each grid holds the coarser ones
PLANE_BITS = (2, 3, 5)  # of the coarse value and of the two signed remainders


def rounded(x: Tensor) -> Tensor:
    """Return x rounded to whole numbers, with the gradient of x (straight-through)."""
    return x + (x.round() - x).detach()


class BitConv(nn.Conv2d):
    """A 3x3 convolution without bias of whole numbers by weights of WEIGHT_BITS (DoReFa).

    Zhou et al. 2016, arXiv:1606.06160: tanh, scaled into [-1, 1], rounded to 2^bits levels. Here
    the weights are the odd whole numbers up to WEIGHT_LEVELS, in units of `unit()`, so that sums
    in float32 are exact and do not depend on their order: what is rounded next cannot differ.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, 3, stride, 1, bias=False)

    def unit(self) -> Tensor:
        return self.weight.detach().abs().mean() / WEIGHT_LEVELS

    def forward(self, x: Tensor) -> Tensor:
        squashed = torch.tanh(self.weight)
        share = squashed / (2 * squashed.detach().abs().amax()) + 0.5
        weight = 2 * rounded(share * WEIGHT_LEVELS) - WEIGHT_LEVELS
        return F.conv2d(x, weight, None, self.stride, self.padding)


class BitLayer(nn.Module):
    """Clip at a learned height, cut into bit planes, convolve, normalise.

    Clipping and its gradient are PACT's, Choi et al. 2018, arXiv:1805.06085.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.height = nn.Parameter(torch.tensor(3.0))
        self.conv = BitConv(inputs, outputs, stride)
        self.norm = nn.BatchNorm2d(outputs)

    def planes(self, x: Tensor) -> list[Tensor]:
        """Return the planes of x, (B, C, H, W) each, in whole 255ths of the height.

        Their sum is x at 8 bits.
        """
        share = torch.minimum(torch.clamp(x, min=0), self.height) / self.height
        coarse, *finer = (rounded(share * n) * (LEVELS[-1] // n) for n in LEVELS)
        return [coarse, finer[0] - coarse, finer[1] - finer[0]]

    def forward(self, x: Tensor, gates: Sequence[Decision]) -> Tensor:
        planes = self.planes(x)
        y = conv_in_bits(gates, self.conv, planes, weight_bits=WEIGHT_BITS, plane_bits=PLANE_BITS)
        return self.norm(y * (self.height / LEVELS[-1] * self.conv.unit()))


class BitBlock(nn.Module):
    """A residual block of two such layers; the shortcut, where there is one, is in full bits."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.layers = nn.ModuleList([BitLayer(inputs, outputs, stride), BitLayer(outputs, outputs)])
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = nn.Identity()
        if not same:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, gates: Sequence[Sequence[Decision]]) -> Tensor:
        first, second = self.layers
        y = second(F.relu(first(x, gates[0])), gates[1])
        return F.relu(self.shortcut(x) + y)


class Controller(nn.Module):
    """Reads the stem's features once and decides for all layers: (B, C, H, W) -> (B, layers, 2)."""

    def __init__(self, channels: int, layers: int, hidden: int = 32, size: int = 4):
        super().__init__()
        self.size = size
        self.hidden = nn.Linear(channels * size * size, hidden)
        self.margins = nn.Linear(hidden, 2 * layers)
        nn.init.constant_(self.margins.bias, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, self.size).flatten(1)
        return self.margins(F.relu(self.hidden(x))).unflatten(1, (-1, 2))


class DynamicBits(nn.Module):
    """A residual network whose layers read 2, 4 or 8 bits of their input, as a controller says.

    After dynamic quantisation (Liu et al., CVPR 2022), where a controller chooses each
    layer's bits per sample, with the bit planes of Precision Gating (Zhang et al. 2020,
    arXiv:2002.07136): the first two bits always, then up to two remainders, so that more bits are
    more work. Deviations: only activations change their bits, weights have 4; remainders are
    signed; the choice is by two nested gates, not by an argmax.
    """

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
        self.stem = Stem(in_channels, widths[0], mean, std, stride=2)
        self.blocks = nn.ModuleList(BitBlock(*p) for p in plan)
        self.controller = Controller(widths[0], 2 * len(plan))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        margins = self.controller(x)
        for k, block in enumerate(self.blocks):
            x = block(x, [_gates(f"block{k}.conv{j + 1}", margins[:, 2 * k + j]) for j in (0, 1)])
        return self.head(pooled(x))


def _gates(name: str, margins: Tensor) -> list[Decision]:
    return [decide(f"{name}.{n}bit", margins[:, j], kind="bits") for j, n in enumerate((4, 8))]


@register_model(
    family="instance.depth.bit_width",
    paper="Liu et al., Instance-Aware Dynamic Neural Network Quantization, CVPR 2022",
    task="image",
    recipe=Recipe(
        epochs=5,
        loss=gate_rates(target=0.45, weight=5.0, spread=0.3),
        estimator="gumbel",
        full_share=0.2,
        precision="float32",
    ),
)
def dynamic_bits(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network that reads 2, 4 or 8 bits of every layer's input, as the sample needs."""
    return DynamicBits(num_classes, in_channels, mean, std)
