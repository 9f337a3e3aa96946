"""Depthwise convolution at the positions of a mask: every channel has a window of its own."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.conv_operator import conv_backward, conv_operator, conv_setup
from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import check_fill, finish
from robustdyn.kernels.masked_conv import check_mask


@kernel
def masked_depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    fill: str = "zero",
    out: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Return [relu](conv(x) + bias + residual), (B, H', W', C), at the mask.

    Arguments are those of masked_conv2d, for weight (C, 1, k, k) and x (B, H, W, C).

    Raises:
        ValueError: if the mask does not have the output's resolution, or for a wrong `fill`.
    """
    check_fill(fill, residual)
    check_mask(x, weight, mask, stride, padding, dilation)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, dilation, x.shape[3])
    return finish(y.permute(0, 2, 3, 1), mask, residual, relu=relu, fill=fill, out=out)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    conv_setup(ctx, (*inputs, inputs[0].shape[3]), output)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    return conv_backward(ctx, grad)[:-1]  # without the groups


masked_depthwise_conv2d.operator = conv_operator(
    "masked_depthwise_conv2d",
    masked_depthwise_conv2d.run,
    ("stride", "padding", "dilation"),
    setup=_setup,
    backward=_backward,
)
