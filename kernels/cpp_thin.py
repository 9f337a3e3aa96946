"""Convolution to a few outputs in C++."""

import ctypes
from typing import Any

from torch import Tensor

from robustdyn.kernels.cpp_conv import library, tensor_reasons
from robustdyn.kernels.dispatch import Implementation
from robustdyn.kernels.masked_conv import output_shape
from robustdyn.kernels.native import integers, plain, pointer, pointers, threads
from robustdyn.kernels.packing import packed
from robustdyn.kernels.shapes import check_shape
from robustdyn.kernels.thin_conv import thin_conv2d

MOST_OUTPUTS = 4  # with more, torch's dense convolution is faster


class ThinCall(ctypes.Structure):
    """The struct ThinConv of cpp/tables.h."""

    _fields_ = [
        *pointers("x", "weight", "bias", "out"),
        *integers("batch", "height", "width", "depth", "out_height", "out_width", "outputs"),
        *integers("kernel_height", "kernel_width", "stride", "padding", "threads"),
    ]


def _reasons(x: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> list[str]:
    if len(weight) > MOST_OUTPUTS:
        return [f"more than {MOST_OUTPUTS} outputs: dense is faster"]
    return tensor_reasons(x, weight, bias)


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    outputs, depth, *window = weight.shape
    check_shape("x", x, *x.shape[:3], depth)
    check_shape("the bias", bias, outputs)
    ready = packed(weight, "thin", 1, lambda w, _: w.permute(0, 2, 3, 1).contiguous())
    x, bias = x.contiguous(), plain(bias)
    y = x.new_empty(len(x), *output_shape(x, weight, stride, padding), outputs)
    sizes = (*x.shape[:3], depth, *y.shape[1:3], outputs, *window)
    options = (stride, padding, threads())
    call = ThinCall(*[pointer(a) for a in (x, ready, bias, y)], *sizes, *options)
    library().call("thin", call)
    return y


thin_conv2d.implementations.append(Implementation("cpp", _conv, _reasons))
