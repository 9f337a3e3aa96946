"""Convolution to a few outputs, as spatial gates need it: with one, vectors of outputs lie idle."""

from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.masked_conv import output_shape
from robustdyn.kernels.operators import operator
from robustdyn.kernels.reference_gradient import reference_gradient


@kernel
def thin_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """Return conv(x) + bias, (B, H', W', O), for a small O.

    Args:
        x: (B, H, W, C), NHWC.
        weight: (O, C, k, k).
        bias: (O,).
        stride, padding: of the convolution, the same in both directions.
    """
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding)
    return y.permute(0, 2, 3, 1).contiguous()


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    return x.new_empty(len(x), *output_shape(x, weight, stride, padding), len(weight))


def _macs(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> int:
    height, width = output_shape(x, weight, stride, padding)
    return len(x) * height * width * weight.numel()


thin_conv2d.operator = operator(
    "thin_conv2d(Tensor x, Tensor weight, Tensor? bias=None, *, int stride=1, int padding=0)"
    " -> Tensor",
    thin_conv2d.run,
    fake=_fake,
    macs=_macs,
    **reference_gradient(thin_conv2d.reference),
)
