"""Dynamic filter network: a branch writes the kernel for each input (De Brabandere et al. 2016)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.losses import cross_entropy
from robustdyn.models.layers import BasicBlock, conv_bn
from robustdyn.models.small_resnet import SmallResNet
from robustdyn.primitives import conv_own
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model

GRID = 2  # the filter generator sees the means of GRID x GRID parts of the map


class GeneratedConv(nn.Module):
    """A 3x3 convolution whose whole kernel is the output of a filter-generating network, no bias.

    The generator reads the map that it will filter: means over a 2x2 grid, a hidden layer with
    batch norm and ReLU, and a linear layer onto the kernel.
    """

    def __init__(self, channels: int, hidden: int = 8):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(channels * GRID**2, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()
        )
        self.write = nn.Linear(hidden, channels * channels * 9)

    def kernel(self, x: Tensor) -> Tensor:
        """Return the kernel of each sample, (B, C, C, 3, 3)."""
        seen = F.adaptive_avg_pool2d(x, GRID).flatten(1)
        channels = x.shape[1]
        return self.write(self.encode(seen)).unflatten(1, (channels, channels, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return conv_own(x, self.kernel(x))


class DynamicFilterBlock(BasicBlock):
    """A residual block: a 3x3 convolution to fewer channels, a generated one, a 1x1 back."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, reduction: int = 2):
        super().__init__(inputs, outputs, stride)
        inner = outputs // reduction
        self.conv1 = conv_bn(inputs, inner, stride=stride)
        self.filter = nn.Sequential(GeneratedConv(inner), nn.BatchNorm2d(inner), nn.ReLU())
        self.conv2 = conv_bn(inner, outputs, size=1)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.filter(F.relu(self.conv1(x))))


@register_model(
    family="instance.parameters.weight_prediction",
    paper="De Brabandere et al., Dynamic Filter Networks, 2016, arXiv:1605.09673",
    task="image",
    static_compute=True,
    recipe=Recipe(epochs=4, loss=cross_entropy(), augment="none", precision="float32"),
)
def dynamic_filter(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network in which every block filters with a kernel predicted from the input.

    Deviation from the paper, which predicts video frames: the layer stands in a classifier, and its
    generator is a small multi-layer perceptron.
    """
    plan = ((16, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1))
    return SmallResNet(num_classes, in_channels, mean, std, block=DynamicFilterBlock, plan=plan)
