"""Masked convolution in plain torch, chunk by chunk: where there is no C++ library.

The windows of as many positions as fit a core's second cache are gathered into one buffer and
multiplied with the weights, so memory stays that of the dense convolution.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.cpp_conv import density_reasons, tensor_reasons, window_reasons
from robustdyn.kernels.dispatch import Implementation
from robustdyn.kernels.filling import check_fill
from robustdyn.kernels.masked_conv import check_mask, masked_conv2d

CHUNK = 64 * 1024  # entries of the buffer: 256 KiB in float32
CROSSOVER = 0.45  # from this active fraction on, torch's dense convolution is faster


def _reasons(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    groups: int = 1,
    **_: Any,
) -> list[str]:
    if x.device.type != "cpu":
        return [f"runs on the CPU, not on {x.device}"]
    if groups != 1:
        return ["has no groups"]
    if not tensor_reasons(x, weight, mask, bias, residual) + window_reasons(weight):
        return ["C++ is faster"]
    return density_reasons(mask, CROSSOVER)


def _conv(
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
    check_fill(fill, residual)
    check_mask(x, weight, mask, stride, padding, dilation)
    outputs, depth, *window = weight.shape
    size = depth * window[0] * window[1]
    matrix = weight.permute(2, 3, 1, 0).reshape(size, outputs)
    padded = F.pad(x, (0, 0, padding, padding, padding, padding))
    _, height, width, _ = padded.shape
    rows = padded.reshape(-1, depth)
    sample, row, column = mask.nonzero(as_tuple=True)
    corner = (sample * height + row * stride) * width + column * stride  # (n,)
    down, right = (torch.arange(n) * dilation for n in window)
    taps = (down[:, None] * width + right).flatten()  # (k * k,)
    positions = mask.flatten().nonzero().flatten()  # (n,)
    before = None if residual is None else residual.reshape(-1, outputs)
    y = _background(x, mask, outputs, residual, fill, out)
    flat = y.view(-1, outputs)

    count = max(1, CHUNK // size)
    buffer = x.new_empty(count * len(taps), depth)
    for start in range(0, len(corner), count):
        at = positions[start : start + count]
        index = (corner[start : start + count, None] + taps).flatten()
        gathered = torch.index_select(rows, 0, index, out=buffer[: len(index)])
        gathered = gathered.view(len(at), size)
        done = gathered @ matrix if bias is None else torch.addmm(bias, gathered, matrix)
        if before is not None:
            done += before.index_select(0, at)
        flat.index_copy_(0, at, done.relu_() if relu else done)
    return y


def _background(
    x: Tensor, mask: Tensor, outputs: int, residual: Tensor | None, fill: str, out: Tensor | None
) -> Tensor:
    """The output, (B, H', W', O), as it is off the mask; the residual stays readable at it."""
    if out is None:
        if fill == "copy" and residual is not None:
            return residual.contiguous().clone()
        make = x.new_zeros if fill == "zero" else x.new_empty
        return make(*mask.shape, outputs)
    if fill == "zero":
        return out.masked_fill_(~mask[..., None], 0)
    if residual is not None and fill == "copy" and out.data_ptr() != residual.data_ptr():
        out.copy_(residual)
    return out


masked_conv2d.implementations.append(Implementation("chunked", _conv, _reasons))
