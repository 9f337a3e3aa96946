"""Masked convolutions in C++: an indirect matrix product, its input gradient, and depthwise."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels.conv_gradient import masked_conv2d_input_grad
from robustdyn.kernels.depthwise import masked_depthwise_conv2d
from robustdyn.kernels.dilation import mask_dilate
from robustdyn.kernels.dispatch import Implementation
from robustdyn.kernels.filling import FILLS, check_fill
from robustdyn.kernels.masked_conv import check_mask, masked_conv2d
from robustdyn.kernels.masks import count
from robustdyn.kernels.native import (
    Native,
    integers,
    native,
    pixel_step,
    pixels,
    plain,
    pointer,
    pointers,
    threads,
    why_not,
)
from robustdyn.kernels.packing import blocks, packed
from robustdyn.kernels.shapes import check_shape

# Above these active fractions torch's dense convolution and one pass after it are faster: up to so
# many channels, measured on one thread with AVX-512 at 3x3.
CROSSOVERS = ((24, 0.6), (48, 0.85))
CROSSOVER = 0.95  # with more channels
DEPTHWISE_CROSSOVER = 0.6
# The same of the inputs that the gradient reaches, which of random masks are nearly all.
TOUCHED = ((24, 0.1), (48, 0.5), (96, 0.8))
MOST_TOUCHED = 0.95
MOST_TAPS = 64  # as cpp/frame.h

DTYPES = (torch.float32, torch.bool)


def crossover(weight: Tensor) -> float:
    """Return up to which active fraction C++ is the faster one for this weight."""
    if weight.shape[1] == 1:
        return DEPTHWISE_CROSSOVER
    return _up_to(weight, CROSSOVERS, CROSSOVER)


def _up_to(weight: Tensor, table: tuple[tuple[int, float], ...], beyond: float) -> float:
    """The fraction of the first entry that has as many channels as the weight; else `beyond`."""
    outputs, depth = weight.shape[:2]
    for channels, most in table:
        if depth <= channels or outputs <= channels:
            return most
    return beyond


class ConvCall(ctypes.Structure):
    """The struct Conv of cpp/tables.h."""

    _fields_ = [
        *pointers("x", "weight", "mask", "bias", "residual", "out"),
        *integers("batch", "height", "width", "depth", "out_height", "out_width", "outputs"),
        *integers("kernel_height", "kernel_width", "stride", "padding", "dilation", "groups"),
        *integers("relu", "fill", "backward", "x_step", "threads"),
    ]


def tensor_reasons(*tensors: Tensor | None) -> list[str]:
    """Return why C++ cannot run on these tensors."""
    for tensor in tensors:
        if tensor is None:
            continue
        if not tensor.is_cpu:
            return [f"runs on the CPU, not on {tensor.device}"]
        if tensor.dtype not in DTYPES:
            return [f"needs float32, not {tensor.dtype}"]
    return [reason] if (reason := why_not()) else []


def density_reasons(mask: Tensor, most: float) -> list[str]:
    """Return why sparse work does not pay: more than `most` of the mask is on."""
    if count(mask) > most * mask.numel():
        return [f"more than {most:.0%} is active: dense is faster"]
    return []


def out_reasons(out: Tensor | None) -> list[str]:
    """Return why C++ cannot write to `out`."""
    return [] if out is None or out.is_contiguous() else ["out is not contiguous"]


def window_reasons(weight: Tensor) -> list[str]:
    """Return why C++ cannot run with this window: it has a bit for each of its taps."""
    taps = weight[0, 0].numel()
    return [f"a window of {taps} taps is over {MOST_TAPS}"] if taps > MOST_TAPS else []


def library() -> Native:
    """Return the loaded library, once the reasons have said that there is one."""
    found = native()
    assert found is not None
    return found


def _conv_reasons(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    **_: Any,
) -> list[str]:
    # Torch would copy a slice of the channels, which C++ reads where it lies.
    sliced = not x.is_contiguous() and (pixel_step(x) or 0) > x.shape[3]
    dense = density_reasons(mask, 1.0 if sliced else crossover(weight)) if mask.is_cpu else []
    if dense:
        return dense
    reasons = tensor_reasons(x, weight, mask, bias, residual, out)
    return reasons + out_reasons(out) + window_reasons(weight)


def _gradient_reasons(
    grad: Tensor, weight: Tensor, mask: Tensor, size: list[int], *, stride: int = 1, **_: Any
) -> list[str]:
    reasons = tensor_reasons(grad, weight, mask) + window_reasons(weight)
    if reasons:
        return reasons
    most = _up_to(weight, TOUCHED, MOST_TOUCHED) / stride
    if count(mask) <= most * mask.numel():
        touched = mask_dilate.reference(mask, weight.shape[2] | 1, stride=stride)
        if count(touched) <= most * touched.numel():
            return []
    return [f"a gradient reaches more than {most:.0%} of the inputs: dense is faster"]


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
    lib = library()
    x, step = pixels(x)
    mask = mask.contiguous()
    bias, residual = plain(bias), plain(residual)
    outputs, depth, *window = weight.shape
    check_shape("x", x, *x.shape[:3], depth * groups)
    check_shape("the bias", bias, outputs)
    check_shape("the residual", residual, *mask.shape, outputs)
    check_shape("out", out, *mask.shape, outputs)
    depthwise = depth == 1 and outputs == groups
    if depthwise:
        ready = packed(weight, "depthwise", 1, lambda w, _: w.flatten(1).t().contiguous())
    else:
        ready = packed(weight, f"conv {groups}", lib.width, lambda w, n: in_blocks(w, n, groups))
    y = x.new_empty(*mask.shape, outputs) if out is None else out
    arguments = (x, ready, mask, bias, residual, y)
    sizes = (*x.shape[:3], depth, *mask.shape[1:], outputs, *window)
    options = (stride, padding, dilation, groups, relu, FILLS.index(fill), False, step, threads())
    lib.call(
        "depthwise" if depthwise else "conv",
        ConvCall(*[pointer(a) for a in arguments], *sizes, *options),
    )
    return y


def _depthwise(x: Tensor, weight: Tensor, mask: Tensor, *args: Any, **options: Any) -> Tensor:
    return _conv(x, weight, mask, *args, groups=x.shape[3], **options)


def _input_grad(
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
    lib = library()
    grad, mask = grad.contiguous(), mask.contiguous()
    outputs, depth, *window = weight.shape
    check_shape("the gradient", grad, *mask.shape, outputs)
    ready = packed(weight, f"gradient {groups}", lib.width, lambda w, n: _backward(w, n, groups))
    inner = grad.new_empty(grad.shape[0], *size, depth * groups)
    arguments = (grad, ready, mask, None, None, inner)
    sizes = (*grad.shape[:3], outputs // groups, *size, depth * groups, *window)
    options = (stride, padding, dilation, groups, False, FILLS.index("zero"), True)
    lib.call(
        "conv", ConvCall(*[pointer(a) for a in arguments], *sizes, *options, outputs, threads())
    )
    return inner


def in_blocks(weight: Tensor, width: int, groups: int) -> Tensor:
    """Return weight (O, C / groups, k, k) packed for the matrix product."""
    cut = weight.unflatten(0, (groups, -1)).flatten(3)  # (groups, O / groups, C, taps)
    return blocks(cut.permute(0, 3, 2, 1), width)


def _backward(weight: Tensor, width: int, groups: int) -> Tensor:
    cut = weight.unflatten(0, (groups, -1)).flatten(3)
    return blocks(cut.permute(0, 3, 1, 2), width)


masked_conv2d.implementations.append(Implementation("cpp", _conv, _conv_reasons))
masked_depthwise_conv2d.implementations.append(Implementation("cpp", _depthwise, _conv_reasons))
masked_conv2d_input_grad.implementations.append(
    Implementation("cpp", _input_grad, _gradient_reasons)
)
