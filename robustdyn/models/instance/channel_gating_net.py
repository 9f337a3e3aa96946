"""Channel gating: a partial sum decides, pixel and channel, about the rest (Hua et al. 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.decision import Decision
from robustdyn.losses import described
from robustdyn.models.layers import Stem, conv_bn, pooled, residual_plan
from robustdyn.primitives import partial_conv
from robustdyn.recipe import Loss, Recipe
from robustdyn.registry import register_model
from robustdyn.trace import Trace, decide

PARTS = 4
SLOPE = 2.0


class GatedConv(nn.Module):
    """A 3x3 convolution and its norm, whose first quarter of input channels gates the others.

    With Y_p the partial sum, the gate is open at output pixels and channels where
    norm(Y_p) > threshold. That norm has no affine part; the margin is 2 * (norm(Y_p) - threshold).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.gate_norm = nn.BatchNorm2d(outputs, affine=False)
        self.threshold = nn.Parameter(torch.zeros(outputs))
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, name: str, *, relu: bool = False) -> Tensor:
        def gate(partial: Tensor) -> Decision:
            margin = (self.gate_norm(partial) - self.threshold[:, None, None]).mul_(SLOPE)
            return decide(name, margin, kind="channel")  # (B, O, H', W')

        return partial_conv(self.conv, x, gate, parts=PARTS, norm=self.norm, relu=relu)


class GatedBlock(nn.Module):
    """A residual block of two gated convolutions; a shortcut that changes the shape always runs."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = GatedConv(inputs, outputs, stride)
        self.conv2 = GatedConv(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, size=1, stride=stride)

    def forward(self, x: Tensor, name: str) -> Tensor:
        h = self.conv1(x, f"{name}.conv1", relu=True)
        return F.relu(self.shortcut(x) + self.conv2(h, f"{name}.conv2"))


class ChannelGatingNet(nn.Module):
    """A residual network of gated blocks; stem, partial sums, shortcuts and head always run.

    Deviations from the paper: the backward pass of the step is the sigmoid's instead of the
    identity, part of the batches is trained with all sums finished, and the loss rewards a compute
    that differs between samples.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (16, 32, 48),
        blocks: int = 2,
    ):
        super().__init__()
        plan = residual_plan(widths, blocks)[blocks:]  # the stem is the first stage
        self.stem = Stem(in_channels, widths[0], mean, std, stride=2)
        self.blocks = nn.ModuleList(GatedBlock(*p) for p in plan)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k, block in enumerate(self.blocks):
            x = block(x, f"block{k}")
        return self.head(pooled(x))


@described
def threshold_target(*, target: float, weight: float, spread: float) -> Loss:
    """Return CE + weight * sum of (threshold - target)^2 - spread * std of the compute.

    The sum is over gates and channels; the higher the target, the fewer gates open (Hua et al.
    2019, arXiv:1805.12549). In training the norm of a partial sum has mean 0 over the batch, so a
    channel's threshold is its mean margin, negative, over the slope. The last term is not the
    paper's: the standard deviation over samples of the expected share of full compute. Without it
    each sample opens other gates, but almost equally many.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        total = F.cross_entropy(logits, y)
        for decision in trace.decisions.values():
            threshold = -decision.margin.float().mean((0, 2, 3)) / SLOPE  # (O,)
            total = total + weight * (threshold - target).square().sum()
        used = trace.expected_macs() / trace.max_macs()  # (B,)
        return total - spread * used.std()

    return loss


@register_model(
    family="instance.width.channels.partial_sum",
    paper="Hua et al., Channel Gating Neural Networks, 2019, arXiv:1805.12549",
    task="image",
    recipe=Recipe(
        epochs=8,
        loss=threshold_target(target=0.4, weight=0.01, spread=0.5),
        full_share=0.3,
        precision="float32",
    ),
)
def channel_gating_net(
    num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]
):
    """A residual network that finishes a sum only where its first quarter is large."""
    return ChannelGatingNet(num_classes, in_channels, mean, std)
