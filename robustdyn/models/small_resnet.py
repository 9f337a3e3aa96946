"""A small residual network of any block: the backbone of the models that always run in full."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from robustdyn.models.layers import BasicBlock, Stem, pooled

PLAN = ((16, 32, 2), (32, 64, 2))  # inputs, outputs and stride of each block


class SmallResNet(nn.Module):
    """A stem that halves the resolution, residual blocks, mean over positions, a linear layer.

    Args:
        block: makes a residual block from inputs, outputs and stride.
        plan: (inputs, outputs, stride) of each block.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        block: Callable[[int, int, int], nn.Module] = BasicBlock,
        plan: Sequence[tuple[int, int, int]] = PLAN,
    ):
        super().__init__()
        self.stem = Stem(in_channels, plan[0][0], mean, std, stride=2)
        self.blocks = nn.Sequential(*(block(*p) for p in plan))
        self.head = nn.Linear(plan[-1][1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(self.blocks(self.stem(x))))
