"""Masked convolution and its input gradient on the GPU."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels import conv_gradient, masked_conv
from robustdyn.kernels.cuda.active import dilate, mask_compact
from robustdyn.kernels.cuda.packing import pack
from robustdyn.kernels.cuda.product import convolve, product_reasons
from robustdyn.kernels.cuda.support import register
from robustdyn.kernels.filling import check_fill
from robustdyn.kernels.masked_conv import check_mask

_MOST_TAPS = 64


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

    float32 runs on tensor cores (tf32) if torch.backends.cudnn.allow_tf32 says so.
    """
    check_fill(fill, residual)
    check_mask(x, weight, mask, stride, padding, dilation)
    out = x.new_empty(*mask.shape, weight.shape[0]) if out is None else out
    convolve(
        x.contiguous(), pack(weight, groups), mask_compact(mask), out, groups=groups,
        bias=bias, residual=residual, relu=relu, fill=fill,
        window=weight.shape[2:], stride=stride, padding=padding, dilation=dilation,
        tf32=torch.backends.cudnn.allow_tf32,
    )  # fmt: skip
    return out


def masked_conv2d_input_grad(
    grad: Tensor,
    weight: Tensor,
    mask: Tensor,
    size: list[int],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """Return the gradient (B, H, W, C) of a masked convolution's input, gathered in one order."""
    height, width = size
    window = (weight.shape[2], weight.shape[3])
    out = grad.new_empty(grad.shape[0], height, width, weight.shape[1] * groups)
    reached = dilate(mask, (height, width), window, stride, (padding, padding), dilation)
    convolve(
        grad.contiguous(), pack(weight, groups, transposed=True), mask_compact(reached), out,
        groups=groups, window=window, stride=stride, padding=padding, dilation=dilation,
        tf32=torch.backends.cudnn.allow_tf32, transposed=True, live=mask_compact(mask).inverse,
    )  # fmt: skip
    return out


def _conv_reasons(
    x: Tensor, weight: Tensor, across: int, *others: Tensor | None, groups: int = 1
) -> list[str]:
    """Return why `convolve` cannot take x (B, H, W, C), the weight, and others of its dtype."""
    reasons = product_reasons(x, weight, across, *others, groups=groups)
    if weight.shape[2] * weight.shape[3] > _MOST_TAPS:
        reasons.append(f"the kernel's window has more than {_MOST_TAPS} positions")
    return reasons


def _reasons(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    groups: int = 1,
    **_: Any,
) -> list[str]:
    return _conv_reasons(x, weight, weight.shape[0], residual, out, groups=groups)


def _grad_reasons(grad: Tensor, weight: Tensor, *_: Any, groups: int = 1, **__: Any) -> list[str]:
    return _conv_reasons(grad, weight, weight.shape[1] * groups, groups=groups)


register(masked_conv.masked_conv2d, masked_conv2d, _reasons)
register(conv_gradient.masked_conv2d_input_grad, masked_conv2d_input_grad, _grad_reasons)
