"""Single entries, and scale and shift in C++."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.affine import masked_affine_act
from robustdyn.kernels.cpp_conv import (
    density_reasons,
    in_blocks,
    library,
    out_reasons,
    tensor_reasons,
    window_reasons,
)
from robustdyn.kernels.dispatch import Implementation
from robustdyn.kernels.entry_conv import check_entries, entry_masked_conv2d
from robustdyn.kernels.filling import FILLS, check_fill
from robustdyn.kernels.native import integers, pixels, plain, pointer, pointers, threads
from robustdyn.kernels.packing import packed
from robustdyn.kernels.shapes import check_shape

ENTRY_CROSSOVER = 0.9  # from this active fraction on, torch's dense operations are faster
ENTRY_WINDOW = 30  # with smaller windows it is always dense


class EntryCall(ctypes.Structure):
    """The struct EntryConv of cpp/tables.h."""

    _fields_ = [
        *pointers("x", "weight", "mask", "residual", "scale", "shift", "out"),
        *integers("batch", "height", "width", "depth", "out_height", "out_width", "outputs"),
        *integers(
            "kernel_height", "kernel_width", "stride", "padding", "relu", "x_step", "threads"
        ),
    ]


class AffineCall(ctypes.Structure):
    """The struct Affine of cpp/tables.h."""

    _fields_ = [
        *pointers("x", "scale", "shift", "mask", "residual", "out"),
        *integers("positions", "channels", "relu", "fill", "threads"),
    ]


def _entry_reasons(
    x: Tensor, weight: Tensor, mask: Tensor, *others: Tensor | None, **named: Any
) -> list[str]:
    if weight[0].numel() < ENTRY_WINDOW:
        return [f"fewer than {ENTRY_WINDOW} values in a window: dense is faster"]
    named_tensors = [value for value in named.values() if isinstance(value, Tensor)]
    reasons = tensor_reasons(x, weight, mask, *others, *named_tensors) + window_reasons(weight)
    return reasons or density_reasons(mask, ENTRY_CROSSOVER)


def _entry_conv(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    relu: bool = False,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    check_entries(x, weight, mask, stride, padding)
    lib = library()
    outputs, depth, *window = weight.shape
    check_shape("x", x, *x.shape[:3], depth)
    check_shape("the residual", residual, *mask.shape)
    check_shape("the scale", scale, outputs)
    check_shape("the shift", shift, outputs)
    ready = packed(weight, "entries", lib.width, _entry_weight)
    y = x.new_empty(mask.shape)
    x, step = pixels(x)
    arguments = (x, ready, *[plain(a) for a in (mask, residual, scale, shift)], y)
    sizes = (*x.shape[:3], depth, *mask.shape[1:3], outputs, *window)
    options = (stride, padding, relu, step, threads())
    lib.call("entries", EntryCall(*[pointer(a) for a in arguments], *sizes, *options))
    return y


def _entry_weight(weight: Tensor, width: int) -> Tensor:
    """Rows [taps][depth] for each output, padded to pairs of vectors; then in blocks."""
    rows = weight.permute(0, 2, 3, 1).flatten(1)
    rows = F.pad(rows, (0, -rows.shape[1] % (2 * width)))
    return torch.cat([rows.flatten(), in_blocks(weight, width, 1).flatten()])


def _affine_reasons(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    **_: Any,
) -> list[str]:
    return tensor_reasons(x, scale, shift, mask, residual, out) + out_reasons(out)


def _affine(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    fill: str = "zero",
    out: Tensor | None = None,
) -> Tensor:
    check_fill(fill, residual)
    check_shape("the scale", scale, x.shape[3])
    check_shape("the shift", shift, x.shape[3])
    check_shape("the mask", mask, *x.shape[:3])
    check_shape("the residual", residual, *x.shape)
    check_shape("out", out, *x.shape)
    y = x.new_empty(x.shape) if out is None else out
    arguments = (*[plain(a) for a in (x, scale, shift, mask, residual)], y)
    options = (mask.numel(), x.shape[3], relu, FILLS.index(fill), threads())
    library().call("affine", AffineCall(*[pointer(a) for a in arguments], *options))
    return y


entry_masked_conv2d.implementations.append(Implementation("cpp", _entry_conv, _entry_reasons))
masked_affine_act.implementations.append(Implementation("cpp", _affine, _affine_reasons))
