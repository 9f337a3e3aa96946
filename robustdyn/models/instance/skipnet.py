"""SkipNet: gates that skip whole residual blocks (Wang et al. 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.losses import gate_rates
from robustdyn.models.layers import BasicBlock, Stem, pooled, residual_plan
from robustdyn.primitives import run_or_bypass
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model
from robustdyn.trace import decide

GATE_WIDTH = 10


class RecurrentGate(nn.Module):
    """One LSTM shared by all blocks: reads a block's output, decides on the next block."""

    def __init__(self, opening_bias: float = 2.0):
        super().__init__()
        self.cell = nn.LSTMCell(GATE_WIDTH, GATE_WIDTH)
        self.linear = nn.Linear(GATE_WIDTH, 1)
        nn.init.constant_(self.linear.bias, opening_bias)

    def forward(
        self, features: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        state = self.cell(features, state)
        return self.linear(state[0])[:, 0], state  # margin (B,)


class SkipNet(nn.Module):
    """x <- keep * F(x) + (1 - keep) * bypass, where F is the whole block.

    Where a block changes the shape, the bypass is a 1x1 convolution of its own that always runs.
    Deviation from the paper: gates are trained with Gumbel noise and a rate for every gate instead
    of supervised pre-training and REINFORCE.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 3,
    ):
        super().__init__()
        plan = residual_plan(widths, blocks)
        self.stem = nn.Sequential(Stem(in_channels, widths[0], mean, std), BasicBlock(*plan[0]))
        self.blocks = nn.ModuleList(BasicBlock(*p) for p in plan[1:])
        self.projections = nn.ModuleList(nn.Linear(i, GATE_WIDTH) for i, _, _ in plan[1:])
        self.bypasses = nn.ModuleList(
            nn.Identity() if i == o else nn.Conv2d(i, o, 1, stride, bias=False)
            for i, o, stride in plan[1:]
        )
        self.gate = RecurrentGate()
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        state = None
        parts = zip(self.blocks, self.projections, self.bypasses, strict=True)
        for k, (block, project, bypass) in enumerate(parts):
            margin, state = self.gate(torch.relu(project(pooled(x))), state)
            gate = decide(f"block{k + 1}", margin, kind="skip")
            x = run_or_bypass(gate, block, x, bypass(x))
        return self.head(pooled(x))


@register_model(
    family="instance.depth.layer_skip.gate",
    paper="Wang et al., SkipNet, 2018, arXiv:1711.09485",
    task="image",
    recipe=Recipe(
        epochs=8,
        loss=gate_rates(target=0.45, weight=2.0, spread=0.5),
        estimator="gumbel",
        full_share=0.15,
    ),
)
def skipnet(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network whose recurrent gate skips blocks."""
    return SkipNet(num_classes, in_channels, mean, std)
