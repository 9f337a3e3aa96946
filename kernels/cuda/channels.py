"""Convolution of the channels that each sample keeps, on the GPU."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels import channel_conv
from robustdyn.kernels.cuda.launch import launch
from robustdyn.kernels.cuda.packing import pack
from robustdyn.kernels.cuda.support import ceil_div, not_on_cuda, register
from robustdyn.kernels.masked_conv import output_size

_ROWS, _COLUMNS, _THREADS = 64, 64, 64  # as Scalar in tile.cuh
_MOST_TAPS = 64


def channel_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """As kernels.channel_masked_conv2d: of the live inputs, at the kept outputs."""
    x = x.contiguous()
    (batch, *image, channels), (count, _, *window) = x.shape, weight.shape
    height, width = (
        output_size(n, k, stride, padding, dilation) for n, k in zip(image, window, strict=True)
    )
    if residual is None:
        out = x.new_zeros(batch, height, width, count)
    else:
        residual = residual.contiguous()
        out = residual.relu() if relu else residual.clone()
    tiles = ceil_div(height * width, _ROWS) * ceil_div(count, _COLUMNS)
    launch(
        "channels", "channel_conv", batch * tiles, _THREADS, x, pack(weight),
        *[None if a is None else a.contiguous() for a in (bias, scale, shift)], residual,
        *_lists(inputs), *_lists(outputs), out,
        *image, channels, height, width, count, *window, stride, padding, dilation, relu,
    )  # fmt: skip
    return out


def _lists(flags: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the channels that are on, (B, C) int32, and how many in each sample, (B,)."""
    if flags is None:
        return None, None
    lists = torch.empty_like(flags, dtype=torch.int32, memory_format=torch.contiguous_format)
    counts = lists.new_empty(len(flags))
    flags = flags.contiguous()
    launch("channels", "channel_lists", len(flags), 32, flags, lists, counts, flags.shape[1])
    return lists, counts


def _reasons(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    *after: Tensor | None,
    **_: Any,
) -> list[str]:
    reasons = not_on_cuda(x, weight, *after, dtypes=(torch.float32,))
    if weight.shape[2] * weight.shape[3] > _MOST_TAPS:
        reasons.append(f"the kernel's window has more than {_MOST_TAPS} positions")
    return reasons


register(channel_conv.channel_masked_conv2d, channel_masked_conv2d, _reasons)
