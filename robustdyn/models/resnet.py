"""ResNet, the static baseline: its compute never changes, so no attack may slow it."""

from collections.abc import Sequence

from torch import Tensor, nn

from robustdyn.losses import cross_entropy
from robustdyn.models.layers import BasicBlock, Stem, pooled, residual_plan
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model


class ResNet(nn.Module):
    """A CIFAR-style residual network (He et al. 2016, arXiv:1512.03385, section 4.2)."""

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
        self.stem = Stem(in_channels, widths[0], mean, std)
        self.blocks = nn.Sequential(*(BasicBlock(*p) for p in residual_plan(widths, blocks)))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(self.blocks(self.stem(x))))


@register_model(
    family="static",
    paper="He et al., Deep Residual Learning for Image Recognition, 2016, arXiv:1512.03385",
    task="image",
    static_compute=True,
    recipe=Recipe(epochs=8, loss=cross_entropy()),
)
def resnet(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network with 6 blocks; the negative control of every compute attack."""
    return ResNet(num_classes, in_channels, mean, std)
