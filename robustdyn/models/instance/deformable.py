"""Deformable convolution: taps at positions that the input chooses (Zhu et al. 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.losses import cross_entropy
from robustdyn.models.layers import BasicBlock
from robustdyn.models.small_resnet import SmallResNet
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model

SIZE = 3


class DeformableConv(nn.Module):
    """A 3x3 convolution that reads each tap at a learned offset, scaled by a learned weight.

    A plain convolution gives, for every output position and tap, an offset in pixels and the
    sigmoid of a modulation. The map is read there by bilinear interpolation, 0 outside it, which
    costs no MACs. Offsets begin at 0.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.place = nn.Conv2d(inputs, 3 * SIZE**2, SIZE, stride, SIZE // 2)
        self.conv = nn.Conv2d(inputs, outputs, SIZE, SIZE, bias=False)
        for parameter in self.place.parameters():
            nn.init.zeros_(parameter)

    def taps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, columns (pixels of x) and weights of all taps, each (B, 3 H', 3 W').

        The taps of output position (i, j) are the 3x3 square at (3 i, 3 j).
        """
        down, right, modulation = F.pixel_shuffle(self.place(x), SIZE).unbind(1)
        rows = self._regular(down.shape[1], x)[:, None] + down
        columns = self._regular(down.shape[2], x) + right
        return rows, columns, torch.sigmoid(modulation)

    def _regular(self, count: int, x: Tensor) -> Tensor:
        """The coordinates (count,) that taps have without offsets."""
        index = torch.arange(count, device=x.device)
        return index // SIZE * self.stride + index % SIZE - SIZE // 2

    def forward(self, x: Tensor) -> Tensor:
        rows, columns, weights = self.taps(x)
        height, width = x.shape[2:]
        grid = torch.stack([(2 * columns + 1) / width, (2 * rows + 1) / height], 3) - 1
        read = F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
        return self.conv(read * weights[:, None])  # (B, O, H', W')


class DeformableBlock(BasicBlock):
    """A basic block whose second convolution is deformable."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, stride)
        self.conv2[0] = DeformableConv(outputs, outputs)


@register_model(
    family="instance.parameters.kernel_shape",
    paper="Zhu et al., Deformable ConvNets v2, 2019, arXiv:1811.11168",
    task="image",
    static_compute=True,
    recipe=Recipe(epochs=4, loss=cross_entropy(), augment="none", precision="float32"),
)
def deformable(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network whose kernels take their taps where the input asks for them.

    The second convolution of every block is deformable. Deviation from the paper: offsets learn at
    the same rate as all else, not at a tenth of it.
    """
    return SmallResNet(num_classes, in_channels, mean, std, block=DeformableBlock)
