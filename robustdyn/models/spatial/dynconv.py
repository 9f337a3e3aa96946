"""DynConv: residual branches that run only at masked positions (Verelst and Tuytelaars 2020)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.losses import budget
from robustdyn.models.layers import BasicBlock, Stem, pooled, residual_plan
from robustdyn.primitives import add_conv_at, conv_at, for_kernels, gate_conv
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model
from robustdyn.trace import decide


class Masker(nn.Module):
    """Margin (B, 1, H', W') of running each position: a 3x3 convolution plus a global term."""

    def __init__(self, channels: int, stride: int, opening_bias: float = 2.0):
        super().__init__()
        self.local = nn.Conv2d(channels, 1, 3, stride, 1)
        self.whole = nn.Linear(channels, 1)
        nn.init.constant_(self.whole.bias, opening_bias)

    def forward(self, x: Tensor) -> Tensor:
        return gate_conv(self.local, x) + self.whole(pooled(x))[:, :, None, None]


class MaskedBlock(BasicBlock):
    """A basic block whose second convolution runs at the mask, the first at the dilated mask."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, stride)
        self.masker = Masker(inputs, stride)

    def forward(self, x: Tensor, name: str) -> Tensor:  # type: ignore[override]
        gate = decide(name, self.masker(x), kind="position")
        conv1, norm1 = self.conv1
        conv2, norm2 = self.conv2
        h = conv_at(gate, conv1, nn.Sequential(norm1, nn.ReLU()), x, dilate=3)
        return F.relu_(add_conv_at(gate, conv2, norm2, h, self.shortcut(x)))


class DynConv(nn.Module):
    """A residual network of masked blocks; maskers and shortcuts always run."""

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
        self.blocks = nn.ModuleList(MaskedBlock(*p) for p in residual_plan(widths, blocks))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = for_kernels(self.stem(x))
        for k, block in enumerate(self.blocks):
            x = block(x, f"block{k}")
        return self.head(pooled(x))


@register_model(
    family="spatial.pixel.mask",
    paper="Verelst and Tuytelaars, Dynamic Convolutions, 2020, arXiv:1912.03203",
    task="image",
    recipe=Recipe(
        epochs=8,
        loss=budget(target=0.5, weight=10.0, floor=0.2),
        estimator="gumbel",
        full_share=0.25,
    ),
)
def dynconv(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network that computes each block only where its pixel mask is open."""
    return DynConv(num_classes, in_channels, mean, std)
