"""Convolution at the positions of a mask, with bias, residual and ReLU in one."""

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.conv_operator import conv_backward, conv_operator, conv_setup
from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import check_fill, finish


@kernel
def masked_conv2d(
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
    groups: int = 1,
) -> Tensor:
    """Return [relu](conv(x) + bias + residual), (B, H', W', O), at the mask.

    The input is dense: unmasked inputs count with their values, not as zero.

    Args:
        x: (B, H, W, C), NHWC.
        weight: (O, C / groups, k, k).
        mask: (B, H', W') bool, at the output's resolution.
        bias: (O,).
        residual: (B, H', W', O), added before the ReLU.
        relu: whether negative results become 0.
        fill: what stands off the mask: "zero", "copy" (of the residual) or "leave" (whatever is
            there: in `out` what was there before, else anything).
        out: (B, H', W', O), contiguous, to write to and return; may be the residual, not x. Then
            there is no gradient.
        stride, padding, dilation, groups: of the convolution, the same in both directions.

    Raises:
        ValueError: if the mask does not have the output's resolution, or for a wrong `fill`.
    """
    check_fill(fill, residual)
    check_mask(x, weight, mask, stride, padding, dilation)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, dilation, groups)
    return finish(y.permute(0, 2, 3, 1), mask, residual, relu=relu, fill=fill, out=out)


def output_size(size: int, kernel_size: int, stride: int, padding: int, dilation: int) -> int:
    """Return how many positions a convolution has along one direction."""
    return (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1


def output_shape(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1
) -> list[int]:
    """Return [H', W'] of the convolution of x (B, H, W, C) with a weight (O, C, k, k)."""
    _, height, width, _ = x.shape
    _, _, down, right = weight.shape
    return [
        output_size(height, down, stride, padding, dilation),
        output_size(width, right, stride, padding, dilation),
    ]


def check_mask(
    x: Tensor, weight: Tensor, mask: Tensor, stride: int, padding: int, dilation: int
) -> None:
    """Raise ValueError if the mask (B, H', W') is not at the resolution of the output."""
    expected = (x.shape[0], *output_shape(x, weight, stride, padding, dilation))
    if mask.shape != expected or mask.dtype is not torch.bool:
        raise ValueError(f"the mask must be bool {expected}, not {mask.dtype} {tuple(mask.shape)}")


masked_conv2d.operator = conv_operator(
    "masked_conv2d",
    masked_conv2d.run,
    ("stride", "padding", "dilation", "groups"),
    setup=conv_setup,
    backward=conv_backward,
)
