"""Decide from a convolution: the margins of a spatial gate."""

from torch import Tensor, nn

from robustdyn.execution import is_sparse
from robustdyn.kernels import thin_conv2d


def gate_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return conv(x), (B, O, H', W'), the margins of a gate or a part of them: few channels.

    Such a convolution always runs. With one output it takes torch's dense kernel as long as with
    a vector of them; sparse execution has one of its own.

    Args:
        conv: without groups or dilation, with the same stride and padding in both directions.
        x: (B, C, H, W).
    """
    if not is_sparse():
        return conv(x)
    options = {"stride": conv.stride[0], "padding": int(conv.padding[0])}
    y = thin_conv2d(x.permute(0, 2, 3, 1), conv.weight, conv.bias, **options)
    return y.permute(0, 3, 1, 2)
