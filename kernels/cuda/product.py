"""The tiled matrix product of conv.cu: which of its kernels runs, and with what."""

import torch
from torch import Tensor

from robustdyn.kernels.compaction import Active
from robustdyn.kernels.cuda.launch import launch
from robustdyn.kernels.cuda.support import FILL, aligned, ceil_div, not_on_cuda

# Rows and columns of a tile, and threads, as in tile.cuh.
_TILES = {
    "f32": (64, 64, 64),
    "f32_any": (64, 64, 64),
    "tf32": (128, 128, 256),
    "tf32_narrow": (128, 64, 128),
    "bf16": (128, 128, 256),
    "bf16_narrow": (128, 64, 128),
}
_NARROW = 64  # columns


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
    name, rows, tile_columns, threads = _kernel(x.dtype, depth, across, wide, tf32)
    count = active.positions.numel()
    height, width = out.shape[1:3] if out.dim() == 4 else (1, 1)
    words = pixel * x.element_size() // 4
    launch(
        "conv", name, ceil_div(count, rows) * ceil_div(across, tile_columns) * groups, threads,
        x, packed, bias, residual, active.positions, active.inverse, active.number, live, None, out,
        count, 0, *x.shape[1:3], words, height, width, columns, groups, *window, stride, padding,
        dilation, transposed, relu, FILL[fill], compact,
    )  # fmt: skip


def multiply_sorted(
    x: Tensor,
    packed: Tensor,
    offsets: Tensor,
    out: Tensor,
    *,
    tf32: bool,
    bias: Tensor | None = None,
    relu: bool = False,
) -> None:
    """Write to `out` (n, N) the products of x's rows offsets[e] to offsets[e + 1] with expert e.

    Args:
        x: (n, K), contiguous.
        packed: the weights, (E, K, N), in bf16 (E, K / 2, N, 2).
        offsets: (E + 1,) int64.
        tf32: whether float32 may be rounded for tensor cores.
        bias: (E, N).
    """
    (count, depth), columns, experts = x.shape, out.shape[1], offsets.numel() - 1
    bias = None if bias is None else bias.float().contiguous()
    wide = aligned(x, packed, bias, out)
    name, rows, tile_columns, threads = _kernel(x.dtype, depth, columns, wide, tf32)
    tiles = ceil_div(count, rows) + experts if count else 0
    words = depth * x.element_size() // 4
    launch(
        "conv", name, tiles * ceil_div(columns, tile_columns), threads,
        x, packed, bias, None, None, None, None, None, offsets, out,
        count, experts, 1, 1, words, 1, 1, columns, 1, 1, 1, 1, 0, 1, 0, relu, FILL["leave"], 1,
    )  # fmt: skip


def _kernel(
    dtype: torch.dtype, depth: int, across: int, wide: bool, tf32: bool
) -> tuple[str, int, int, int]:
    """Return the kernel's name, and its tile's rows, columns and threads."""
    narrow = "" if across > _NARROW else "_narrow"
    if dtype == torch.bfloat16:
        name = f"bf16{narrow}"
    elif not wide or depth % 4 or across % 4:
        name = "f32_any"
    else:
        name = f"tf32{narrow}" if tf32 else "f32"
    return f"conv_{name}", *_TILES[name]


def product_reasons(
    x: Tensor, weight: Tensor, across: int, *others: Tensor | None, groups: int = 1
) -> list[str]:
    """Return why the product cannot take x (..., C), the weight, and others of x's dtype.

    Args:
        across: columns of all groups.
    """
    reasons = not_on_cuda(x, weight, *others)
    if x.dtype == torch.bfloat16:
        if x.shape[-1] // groups % 8 or across // groups % 4:
            reasons.append("bfloat16 needs channels in eights and outputs in fours in each group")
        if not aligned(*(t for t in (x, *others) if t is not None and t.is_contiguous())):
            reasons.append("a bfloat16 tensor begins off a multiple of 16 bytes")
    return reasons
