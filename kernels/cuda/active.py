"""Compaction and dilation of masks on the GPU."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels import compaction, dilation
from robustdyn.kernels.compaction import Active
from robustdyn.kernels.cuda.launch import launch
from robustdyn.kernels.cuda.support import ceil_div, not_on_cuda, register

_THREADS, _PER_BLOCK = 256, 4096
_INDEX = {torch.int32: "i32", torch.int64: "i64"}


def mask_compact(mask: Tensor, *, dtype: torch.dtype = torch.int32) -> Active:
    """Return the active positions of the mask, in order; the count stays on the device.

    Two launches: each block counts its 4096 entries; then each sums the counts before its own and
    writes. No atomics, no waiting of blocks for each other.
    """
    flat = mask.contiguous().view(-1)
    count = flat.numel()
    blocks = ceil_div(count, _PER_BLOCK)
    index, inverse = (flat.new_empty(count, dtype=dtype) for _ in range(2))
    if not count:
        return Active(index, inverse, flat.new_zeros(1, dtype=dtype))
    active = Active(index, inverse, flat.new_empty(1, dtype=dtype))
    sums = flat.new_empty(blocks, dtype=torch.int32)
    launch("active", "mask_count", blocks, _THREADS, flat, count, sums)
    kernel = f"mask_compact_{_INDEX[dtype]}"
    launch("active", kernel, blocks, _THREADS, flat, count, sums, *active)
    return active


def mask_dilate(
    mask: Tensor, size: int, *, stride: int = 1, shape: list[int] | None = None
) -> Tensor:
    """Return the bool mask of input positions inside a window of an active output position."""
    if size % 2 == 0:
        raise ValueError(f"mask_dilate needs an odd window, not {size}")
    flat = mask.dim() == 1
    images = mask[None, None] if flat else mask
    kept = images.shape[1:]
    height, width = (1, *kept[1:]) if flat else kept
    if shape is not None or stride > 1:
        given = shape or [stride * n for n in (kept[1:] if flat else kept)]
        height, width = (1, *given) if flat else given
    window = (1 if flat else size, size)
    padding = (0 if flat else size // 2, size // 2)
    reached = dilate(images, (height, width), window, stride, padding, 1)
    return reached.view(-1) if flat else reached


def dilate(
    mask: Tensor,
    shape: tuple[int, int],
    window: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    dilation: int,
) -> Tensor:
    """Return the inputs (B, *shape) bool that a convolution reads for the mask (B, H', W')."""
    reached = mask.new_empty(mask.shape[0], *shape)
    count = reached.numel()
    launch(
        "active", "mask_dilate", ceil_div(count, _THREADS), _THREADS, mask.contiguous(), reached,
        count, *shape, *mask.shape[1:], *window, stride, *padding, dilation,
    )  # fmt: skip
    return reached


def _reasons(mask: Tensor, *_: Any, **__: Any) -> list[str]:
    return not_on_cuda(mask, dtypes=(torch.bool,))


register(compaction.mask_compact, mask_compact, _reasons)
register(dilation.mask_dilate, mask_dilate, _reasons)
