"""Dynamic routing in a grid of cells and scales (Li et al. 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.losses import described
from robustdyn.models.layers import Stem, conv_bn, pooled
from robustdyn.primitives import any_open, run_or_bypass, run_paths
from robustdyn.recipe import Loss, Recipe
from robustdyn.registry import register_model
from robustdyn.trace import Trace, decide

OPENING_BIAS = 1.5
STEEPNESS = 4.0


class PathGate(nn.Module):
    """Margins (B, P), one per outgoing path: 1x1 convolution, norm, ReLU, pooling, linear."""

    def __init__(self, channels: int, paths: int):
        super().__init__()
        self.conv = conv_bn(channels, channels // 2, size=1)
        self.linear = nn.Linear(channels // 2, paths)
        nn.init.normal_(self.linear.weight, std=0.5)
        nn.init.constant_(self.linear.bias, OPENING_BIAS)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(pooled(F.relu(self.conv(x)))).float()


class Up(nn.Module):
    """To the finer scale above: 1x1 convolution, norm, ReLU, interpolation to `size`."""

    def __init__(self, inputs: int, outputs: int, size: int):
        super().__init__()
        self.conv = conv_bn(inputs, outputs, size=1)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.relu(self.conv(x)), size=self.size, mode="nearest")


class Cell(nn.Module):
    """One cell: an operation, and a gated path to every neighbour, by the neighbour's scale.

    A path of activation g = relu(tanh(margin)) passes g * operator(h). If any path is open,
    h = x + operation(x); else the cell is closed, and x goes on at its own scale unchanged.
    g is computed as keep * |tanh(margin)|, which is the same, but lets a closed path learn.
    """

    def __init__(self, channels: int, scale: int, operators: dict[int, nn.Module]):
        super().__init__()
        self.scale = scale
        self.targets = tuple(operators)
        self.operation = nn.Sequential(conv_bn(channels, channels), nn.ReLU())
        self.operators = nn.ModuleList(operators.values())
        self.gate = PathGate(channels, len(operators))

    def forward(self, x: Tensor, name: str) -> dict[int, Tensor]:
        gate = decide(name, self.gate(x), kind="path")
        cell = any_open(gate)
        h = run_or_bypass(cell, lambda part: part + self.operation(part), x, x)
        weights = torch.tanh(gate.margin).abs()
        passed = run_paths(gate, list(self.operators), h, weights)
        found = dict(zip(self.targets, passed, strict=True))
        closed = (1 - cell.keep)[:, None, None, None]
        found[self.scale] = found[self.scale] + closed * x
        return found


class RoutingSupernet(nn.Module):
    """Layers of cells at up to three scales; each passes its result up, on or down.

    Layer 0 has the finest scale alone, each next layer one more; what arrives at a cell is summed.
    The head is linear in the pooled results of all scales. Deviations from the paper:
    classification instead of segmentation, one 3x3 convolution with a shortcut as a cell's
    operation, and paths drop per sample, not for the whole batch.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        input_shape: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (16, 32, 64),
        layers: int = 3,
    ):
        super().__init__()
        self.stem = Stem(in_channels, widths[0], mean, std, stride=2)
        sizes = [-(-input_shape[-1] // 2 ** (scale + 1)) for scale in range(len(widths))]

        def operator(source: int, target: int) -> nn.Module:
            if target == source:
                return nn.Identity()
            if target > source:
                return nn.Sequential(conv_bn(widths[source], widths[target], stride=2), nn.ReLU())
            return Up(widths[source], widths[target], sizes[target])

        self.layers = nn.ModuleList()
        for layer in range(layers):
            cells = nn.ModuleList()
            for scale in range(min(layer + 1, len(widths))):
                near = [scale - 1, scale, scale + 1] if layer < layers - 1 else [scale]
                targets = [t for t in near if 0 <= t < len(widths)]
                operators = {t: operator(scale, t) for t in targets}
                cells.append(Cell(widths[scale], scale, operators))
            self.layers.append(cells)
        self.head = nn.Linear(sum(widths), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        scales = {0: self.stem(x)}
        for layer, cells in enumerate(self.layers):
            arriving: dict[int, Tensor] = {}
            for scale in scales:
                for target, y in cells[scale](scales[scale], f"cell{layer}.{scale}").items():  # type: ignore[index]
                    arriving[target] = arriving[target] + y if target in arriving else y
            scales = dict(sorted(arriving.items()))
        return self.head(torch.cat([pooled(y) for y in scales.values()], 1))


@described
def routing_budget(*, target: float, weight: float, floor: float, spread: float) -> Loss:
    """Return CE + weight * ((expected compute / full - target)^2 + bounds) - spread * variance.

    The paper's budget on the expected compute, a mean over the batch; the target falls from 1
    over the first third of training (its weight is warmed up in the paper). Two terms keep paths
    dependent on the input: the squares by which their rates leave [floor, 1 - floor], summed over
    the paths, and the mean variance of the chances over the batch. A rate is the mean over the
    batch of a sigmoid steep enough to count open paths, yet not so steep that it has no gradient.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        warm = min(1.0, progress / 0.33)
        used = (trace.expected_macs() / trace.max_macs()).mean()
        margin = torch.cat([d.margin for d in trace.decisions.values()], 1)
        chance = torch.sigmoid(margin)
        rate = torch.sigmoid(STEEPNESS * margin).mean(0)  # (paths,)
        outside = (F.relu(floor - rate) + F.relu(rate - (1 - floor))).square().sum()
        penalty = (used - (1 + warm * (target - 1))).square() + warm * outside
        task = F.cross_entropy(logits, y)
        return task + weight * penalty - warm * spread * chance.var(0).mean()

    return loss


@register_model(
    family="instance.routing.supernet",
    paper="Li et al., Learning Dynamic Routing for Semantic Segmentation, 2020, arXiv:2003.10401",
    task="image",
    recipe=Recipe(
        epochs=7,
        loss=routing_budget(target=0.45, weight=5.0, floor=0.2, spread=1.0),
        estimator="gumbel",
        full_share=0.2,
        augment="none",
        precision="float32",
    ),
)
def routing_supernet(
    num_classes: int,
    in_channels: int,
    input_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
):
    """A grid of cells at three scales, in which every cell opens or closes its paths."""
    return RoutingSupernet(num_classes, in_channels, input_shape, mean, std)
