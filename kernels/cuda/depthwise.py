"""Masked depthwise convolution on the GPU."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels import depthwise
from robustdyn.kernels.cuda.active import mask_compact
from robustdyn.kernels.cuda.launch import launch
from robustdyn.kernels.cuda.packing import pack
from robustdyn.kernels.cuda.support import FILL, aligned, not_on_cuda, register, row_grid
from robustdyn.kernels.filling import check_fill
from robustdyn.kernels.masked_conv import check_mask


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
    """Return [relu](conv(x) + bias + residual), (B, H', W', C), at the mask."""
    check_fill(fill, residual)
    check_mask(x, weight, mask, stride, padding, dilation)
    channels = x.shape[3]
    out = x.new_empty(*mask.shape, channels) if out is None else out
    x, packed, active = x.contiguous(), pack(weight.float(), channels), mask_compact(mask)
    bias = None if bias is None else bias.float().contiguous()
    residual = None if residual is None else residual.contiguous()
    name = "depthwise_f32" if x.dtype == torch.float32 else "depthwise_bf16"
    wide = channels % 4 == 0 and aligned(x, packed, bias, residual, out)
    blocks, threads = row_grid(mask.numel(), channels // 4 if wide else channels)
    launch(
        "depthwise", name if wide else f"{name}_any", blocks, threads,
        x, packed, bias, residual, *active, out, mask.numel(), *x.shape[1:], *mask.shape[1:],
        *weight.shape[2:], stride, padding, dilation, relu, FILL[fill],
    )  # fmt: skip
    return out


def _reasons(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    **_: Any,
) -> list[str]:
    return not_on_cuda(x, weight, residual, out)


register(depthwise.masked_depthwise_conv2d, masked_depthwise_conv2d, _reasons)
