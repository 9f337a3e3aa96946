"""Soft mixture of experts: all run, a gate weights their answers (Jacobs et al. 1991)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.losses import cross_entropy
from robustdyn.models.layers import BasicBlock, Stem, pooled
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model


class Expert(nn.Module):
    """Two residual blocks and a linear classifier, (B, C, H, W) -> (B, K)."""

    def __init__(self, inputs: int, num_classes: int, widths: Sequence[int]):
        super().__init__()
        first, second = widths
        self.blocks = nn.Sequential(BasicBlock(inputs, first, 2), BasicBlock(first, second, 2))
        self.head = nn.Linear(second, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(self.blocks(x)))


class SoftMixture(nn.Module):
    """Logits sum_e softmax(gate(x))_e * expert_e(x), on the features of one stem.

    The gate is linear in the stem's means over positions. Every expert always runs, so the model
    costs as many times one expert as it has experts. Deviation from the paper: a batch norm without
    scale and shift keeps the gate's scores at mean 0 and variance 1, so that no expert wins all
    inputs.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        width: int = 16,
        widths: Sequence[int] = (16, 32),
        experts: int = 4,
    ):
        super().__init__()
        self.stem = Stem(in_channels, width, mean, std, stride=2)
        self.gate = nn.Sequential(
            nn.Linear(width, experts, bias=False), nn.BatchNorm1d(experts, affine=False)
        )
        self.experts = nn.ModuleList(Expert(width, num_classes, widths) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights = torch.softmax(self.gate(pooled(x)), 1)  # (B, experts)
        logits = torch.stack([expert(x) for expert in self.experts], 1)  # (B, experts, K)
        return (weights[:, :, None] * logits).sum(1)


@register_model(
    family="instance.width.experts_soft",
    paper="Jacobs et al., Adaptive Mixtures of Local Experts, 1991",
    task="image",
    static_compute=True,
    recipe=Recipe(epochs=4, loss=cross_entropy(), augment="none", precision="float32"),
)
def moe_soft(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """Four residual experts on one stem, their logits weighted by a soft gate."""
    return SoftMixture(num_classes, in_channels, mean, std)
