"""ConvNet-AIG: every residual branch has a gate of its own (Veit and Belongie 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.losses import gate_rates
from robustdyn.models.layers import BasicBlock, Stem, pooled, residual_plan
from robustdyn.primitives import add_if_kept
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model
from robustdyn.trace import decide

GATE_WIDTH = 16


class RelevanceGate(nn.Module):
    """Margin (B,) of running a branch, from its input (B, C, H, W).

    Global average pooling and two layers to the logits of "skip" and "run", whose difference is
    the margin. At first the branch runs for about 87 % of all samples.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = nn.Linear(channels, GATE_WIDTH, bias=False)
        self.norm = nn.BatchNorm1d(GATE_WIDTH)
        self.choose = nn.Linear(GATE_WIDTH, 2)
        nn.init.normal_(self.choose.weight, std=0.001)
        with torch.no_grad():
            self.choose.bias.copy_(torch.tensor([0.1, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        skip, run = self.choose(F.relu(self.norm(self.reduce(pooled(x))))).unbind(1)
        return run - skip


class GatedBlock(BasicBlock):
    """x <- relu(shortcut(x) + keep * F(x)); the shortcut and the gate always run."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, stride)
        self.gate = RelevanceGate(inputs)

    def forward(self, x: Tensor, name: str) -> Tensor:  # type: ignore[override]
        gate = decide(name, self.gate(x), kind="skip")
        return F.relu(add_if_kept(gate, self.residual, x, self.shortcut(x)))


class ConvNetAIG(nn.Module):
    """A residual network whose branches run where they are relevant to the input.

    The first stage, whose blocks take the most time for their MACs, has one block.
    Gates are trained with Gumbel noise at temperature 1. Deviations from the paper: a gate opens
    where the difference of its logits is positive, without noise, once trained (the authors' code
    still draws there); its rate is the mean of its chances, not of its draws, and the variance of
    these chances is rewarded, or a gate without noise would be open or shut for all inputs; a part
    of the batches is trained with all gates open.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (16, 24, 48),
        blocks: int = 3,
    ):
        super().__init__()
        self.stem = Stem(in_channels, widths[0], mean, std, stride=2)
        plan = residual_plan(widths, blocks)[blocks - 1 :]
        self.blocks = nn.ModuleList(GatedBlock(*p) for p in plan)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k, block in enumerate(self.blocks):
            x = block(x, f"block{k}")
        return self.head(pooled(x))


@register_model(
    family="instance.depth.layer_skip.gate",
    paper="Veit and Belongie, ConvNet-AIG, 2018, arXiv:1711.11503",
    task="image",
    recipe=Recipe(
        epochs=8,
        loss=gate_rates(target=0.5, weight=2.0, spread=0.5),
        estimator="gumbel",
        full_share=0.15,
        precision="float32",
    ),
)
def convnet_aig(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network whose every block has a small gate that runs or skips its branch."""
    return ConvNetAIG(num_classes, in_channels, mean, std)
