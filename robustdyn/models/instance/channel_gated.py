"""Feature boosting and suppression: salient channels are computed and scaled (Gao et al. 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.decision import Decision
from robustdyn.losses import described
from robustdyn.models.layers import Stem, pooled, residual_plan
from robustdyn.primitives import masked_channels
from robustdyn.recipe import Loss, Recipe
from robustdyn.registry import register_model
from robustdyn.trace import Trace, decide

Live = list[Decision]  # the gates of the parts whose sum a feature map is; empty: all channels


class BoostedConv(nn.Module):
    """relu(keep * (saliency * norm(conv(x)) + shift) + residual): the saliency is the norm's scale.

    Output channels are predicted from the input's means: margin (B, O) = W norm(mean|x|) + b, run
    where it is positive, saliency softplus(margin).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.standardise = nn.BatchNorm1d(inputs, affine=False)
        self.predict = nn.Linear(inputs, outputs)
        nn.init.constant_(self.predict.bias, 1.0)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=False)
        self.shift = nn.Parameter(torch.zeros(outputs))

    def gate(self, x: Tensor, name: str) -> Decision:
        """Decide from x (B, C, H, W), which has passed a ReLU: its means are those of |x|."""
        return decide(name, self.predict(self.standardise(pooled(x))), kind="channel")

    def forward(
        self, x: Tensor, gate: Decision, live: Live, residual: Tensor | None = None
    ) -> Tensor:
        return masked_channels(
            self.conv,
            x,
            outputs=gate,
            inputs=live,
            norm=self.norm,
            scale=F.softplus(gate.margin),
            shift=self.shift,
            residual=residual,
            relu=True,
        )


class BoostedBlock(nn.Module):
    """A residual block of two such convolutions.

    Where the shape changes, the shortcut is a 1x1 convolution and its norm, for the channels that
    the second convolution keeps; elsewhere the block's output has the channels of both its parts.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = BoostedConv(inputs, outputs, stride)
        self.conv2 = BoostedConv(outputs, outputs)
        self.shortcut = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, live: Live, name: str) -> tuple[Tensor, Live]:
        first = self.conv1.gate(x, f"{name}.conv1")
        h = self.conv1(x, first, live)
        second = self.conv2.gate(h, f"{name}.conv2")
        after = [*live, second] if live else []
        if self.shortcut is not None:
            norm = self.shortcut_norm
            x = masked_channels(self.shortcut, x, outputs=second, inputs=live, norm=norm)
            after = [second]
        return self.conv2(h, second, [first], residual=x), after


class BoostedNet(nn.Module):
    """A residual network of such blocks; stem, predictors and head always run.

    Deviations from the paper: a channel runs if its saliency is positive instead of among the k
    largest, so that the count depends on the input; the saliency is a softplus instead of a ReLU,
    so that a channel which is forced open is not zero; predictors read normalised means; residual
    blocks; a budget of compute in training instead of a density that is lowered in steps.
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
        plan = residual_plan(widths, blocks)[blocks:]  # the stem is the first stage
        self.stem = Stem(in_channels, widths[0], mean, std, stride=2)
        self.blocks = nn.ModuleList(BoostedBlock(*p) for p in plan)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        live: Live = []
        for k, block in enumerate(self.blocks):
            x, live = block(x, live, f"block{k}")
        return masked_channels(self.head, pooled(x), inputs=live)


@described
def saliency_budget(*, target: float, weight: float, spread: float, sparsity: float) -> Loss:
    """Return CE + weight * (compute - target)^2 - spread * variance + sparsity * |saliency|.

    Compute is the mean expected share of full compute; its target falls from 1 over the first
    third of training. The variance is that of each channel's chance to run, over the samples: a
    channel that is always or never run is no decision. The saliencies' L1 norm is the paper's.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        warm = min(1.0, progress / 0.33)
        used = (trace.expected_macs() / trace.max_macs()).mean()
        off = (used - (1.0 + warm * (target - 1.0))).square()
        margins = torch.cat([d.margin.float() for d in trace.decisions.values()], 1)  # (B, gates)
        variance = torch.sigmoid(margins).var(0).mean()
        norm = F.softplus(margins).sum(1).mean()
        total = F.cross_entropy(logits, y) + weight * off
        return total - warm * spread * variance + sparsity * norm

    return loss


@register_model(
    family="instance.width.channels.gate",
    paper="Gao et al., Dynamic Channel Pruning: Feature Boosting and Suppression, 2019, "
    "arXiv:1810.05331",
    task="image",
    recipe=Recipe(
        epochs=7,
        loss=saliency_budget(target=0.5, weight=10.0, spread=0.3, sparsity=1e-4),
        full_share=0.2,
        augment="none",
        precision="float32",
    ),
)
def channel_gated(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network that computes the channels it predicts to be salient, and scales them."""
    return BoostedNet(num_classes, in_channels, mean, std)
