"""ACT ResNet: every stage runs blocks until a sample's halting scores sum to one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.decision import Decision
from robustdyn.losses import described
from robustdyn.models.layers import BasicBlock, Stem, pooled
from robustdyn.primitives import ponder, until_halted
from robustdyn.recipe import Loss, Recipe
from robustdyn.registry import register_model
from robustdyn.trace import Trace


class HaltingScore(nn.Module):
    """Log-odds (B,) of the halting score: global average pooling, batch norm, one linear layer."""

    def __init__(self, channels: int, bias: float):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, 1)
        nn.init.constant_(self.linear.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(pooled(x)))[:, 0]


class ActStage(nn.Module):
    """Blocks of one width; the first may halve the resolution, and always runs."""

    def __init__(self, inputs: int, outputs: int, stride: int, blocks: int, bias: float):
        super().__init__()
        self.units = nn.ModuleList(
            BasicBlock(outputs if k else inputs, outputs, 1 if k else stride) for k in range(blocks)
        )
        self.scores = nn.ModuleList(HaltingScore(outputs, bias) for _ in range(blocks - 1))

    def forward(self, x: Tensor, name: str) -> Tensor:
        return until_halted(name, x, self.units, self.scores)


class ActResNet(nn.Module):
    """A residual network with adaptive computation time in every stage.

    The first stage, whose blocks take the most time for their MACs, has one block, which always
    runs. Deviation from the paper: scores start at the log-odds -1 instead of -3, since training
    is short.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (16, 24, 40),
        blocks: Sequence[int] = (1, 4, 4),
        bias: float = -1.0,
    ):
        super().__init__()
        self.stem = Stem(in_channels, widths[0], mean, std, stride=2)
        inputs = [widths[0], *widths[:-1]]
        self.stages = nn.ModuleList(
            ActStage(i, o, 2 if k else 1, count, bias)
            for k, (i, o, count) in enumerate(zip(inputs, widths, blocks, strict=True))
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k, stage in enumerate(self.stages):
            x = stage(x, f"stage{k}")
        return self.head(pooled(x))


@described
def ponder_cost(*, weight: float, spread: float) -> Loss:
    """Return CE + weight * mean ponder cost, N + R summed over the stages, - spread * variance.

    Figurnov et al. 2017, arXiv:1612.02297, section 3.1. Deviation: the variance over the batch of
    the sum of the halting scores after each unit, at most 1, is a bonus, summed over the units;
    without it every input halts after one and the same unit, give or take one.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        stages: dict[str, list[Decision]] = {}
        for gate in trace.decisions.values():
            stages.setdefault(gate.name.split(".")[0], []).append(gate)
        cost = sum(ponder(gates).mean() for gates in stages.values())
        margins = torch.stack([gate.margin for gate in trace.decisions.values()], 1)
        variance = torch.exp(-margins).clamp(max=1).var(0, correction=0).sum()
        return F.cross_entropy(logits, y) + weight * cost - spread * variance

    return loss


@register_model(
    family="instance.depth.layer_skip.halting",
    paper="Figurnov et al., Spatially Adaptive Computation Time, 2017, arXiv:1612.02297",
    task="image",
    recipe=Recipe(
        epochs=5,
        loss=ponder_cost(weight=0.03, spread=0.1),
        augment="none",
        precision="float32",
    ),
)
def act_resnet(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network whose stages stop when their halting scores sum to one."""
    return ActResNet(num_classes, in_channels, mean, std)
