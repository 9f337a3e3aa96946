"""Masked convolution and its input gradient on the GPU."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels import conv_gradient, masked_conv
from robustdyn.kernels.compaction import Active
from robustdyn.kernels.cuda.active import dilate, mask_compact
from robustdyn.kernels.cuda.launch import launch
from robustdyn.kernels.cuda.packing import pack
from robustdyn.kernels.cuda.support import aligned, ceil_div, not_on_cuda, register
from robustdyn.kernels.filling import check_fill
from robustdyn.kernels.masked_conv import check_mask

_FILL = {"leave": 0, "zero": 1, "copy": 2}
_MOST_TAPS = 64
# Rows and columns of a tile, and threads, as in tile.cuh.
_TILES = {
    "f32": (64, 64, 64),
    "f32_any": (64, 64, 64),
    "tf32": (128, 128, 256),
    "tf32_narrow": (128, 64, 128),
    "bf16": (128, 128, 256),
    "bf16_narrow": (128, 64, 128),
}


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
    window = tuple(weight.shape[2:])
    out = grad.new_empty(grad.shape[0], height, width, weight.shape[1] * groups)
    reached = dilate(mask, (height, width), window, stride, (padding, padding), dilation)
    convolve(
        grad.contiguous(), pack(weight, groups, transposed=True), mask_compact(reached), out,
        groups=groups, window=window, stride=stride, padding=padding, dilation=dilation,
        tf32=torch.backends.cudnn.allow_tf32, transposed=True, live=mask_compact(mask).inverse,
    )  # fmt: skip
    return out


def convolve(
    x: Tensor,
    packed: Tensor,
    active: Active,
    out: Tensor,
    *,
    tf32: bool,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    fill: str = "zero",
    window: tuple[int, ...] = (1, 1),
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    transposed: bool = False,
    live: Tensor | None = None,
    compact: bool = False,
) -> None:
    """Write to `out` (B, H', W', O) the convolution at the active positions.

    Args:
        x: (B, H, W, C), contiguous.
        packed: the weight, from `pack`.
        active: positions of `out`.
        tf32: whether float32 may be rounded for tensor cores.
        transposed: whether this is an input gradient, x the output's gradient.
        live: (B H W,) int32; pixels of x with a negative entry count as zero.
        compact: whether out holds only the active positions, one after another; with no fill.
    """
    pixel, columns = x.shape[3], out.shape[-1]
    depth, across = pixel // groups, columns // groups
    bias = None if bias is None else bias.float().contiguous()
    residual = None if residual is None else residual.contiguous()
    wide = aligned(x, packed, bias, residual, out)
    name = _kernel(x.dtype, depth, across, wide, tf32)
    rows, tile_columns, threads = _TILES[name]
    count = active.index.numel()
    height, width = out.shape[1:3] if out.dim() == 4 else (1, 1)
    words = pixel * x.element_size() // 4
    launch(
        "conv", f"conv_{name}", ceil_div(count, rows) * ceil_div(across, tile_columns) * groups,
        threads, x, packed, bias, residual, active.index, active.inverse, active.count, live, out,
        count, *x.shape[1:3], words, height, width, columns, groups, *window, stride, padding,
        dilation, transposed, relu, _FILL[fill], compact,
    )  # fmt: skip


def _kernel(dtype: torch.dtype, depth: int, across: int, wide: bool, tf32: bool) -> str:
    narrow = "" if across > 64 else "_narrow"
    if dtype == torch.bfloat16:
        return f"bf16{narrow}"
    if not wide or depth % 4 or across % 4:
        return "f32_any"
    return f"tf32{narrow}" if tf32 else "f32"


def conv_reasons(
    x: Tensor, weight: Tensor, across: int, *others: Tensor | None, groups: int = 1
) -> list[str]:
    """Return why `convolve` cannot take x (B, H, W, C), the weight, and others of its dtype."""
    reasons = not_on_cuda(x, weight, *others)
    if weight.shape[2] * weight.shape[3] > _MOST_TAPS:
        reasons.append(f"the kernel's window has more than {_MOST_TAPS} positions")
    if x.dtype == torch.bfloat16:
        if x.shape[3] // groups % 8 or across // groups % 4:
            reasons.append("bfloat16 needs channels in eights and outputs in fours in each group")
        if not aligned(*(t for t in (x, *others) if t is not None and t.is_contiguous())):
            reasons.append("a bfloat16 tensor begins off a multiple of 16 bytes")
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
    return conv_reasons(x, weight, weight.shape[0], residual, out, groups=groups)


def _grad_reasons(grad: Tensor, weight: Tensor, *_: Any, groups: int = 1, **__: Any) -> list[str]:
    return conv_reasons(grad, weight, weight.shape[1] * groups, groups=groups)


register(masked_conv.masked_conv2d, masked_conv2d, _reasons)
register(conv_gradient.masked_conv2d_input_grad, masked_conv2d_input_grad, _grad_reasons)
