"""Convolution to a few outputs in C++."""

import ctypes
from typing import Any

from torch import Tensor

from robustdyn.kernels.cpp_conv import library, tensor_reasons
from robustdyn.kernels.dispatch import Implementation
from robustdyn.kernels.native import pointer, threads
from robustdyn.kernels.packing import packed
from robustdyn.kernels.thin_conv import size_after, thin_conv2d

MOST_OUTPUTS = 4  # with more, torch's dense convolution is faster


class ThinCall(ctypes.Structure):
    """The struct ThinConv of cpp/tables.h."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("x", "weight", "bias", "out")],
        *[(name, ctypes.c_int64) for name in ("batch", "height", "width", "depth")],
        *[(name, ctypes.c_int64) for name in ("out_height", "out_width", "outputs")],
        *[(name, ctypes.c_int64) for name in ("kernel_height", "kernel_width")],
        *[(name, ctypes.c_int64) for name in ("stride", "padding", "threads")],
    ]


def _reasons(x: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> list[str]:
    if len(weight) > MOST_OUTPUTS:
        return [f"more than {MOST_OUTPUTS} outputs: dense is faster"]
    return tensor_reasons(x, weight, bias)


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    outputs, depth, *window = weight.shape
    ready = packed(weight, "thin", 1, lambda w, _: w.permute(0, 2, 3, 1).contiguous())
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    y = x.new_empty(len(x), *size_after(x, weight, stride, padding), outputs)
    sizes = (*x.shape[:3], depth, *y.shape[1:3], outputs, *window)
    options = (stride, padding, threads())
    call = ThinCall(*[pointer(a) for a in (x, ready, bias, y)], *sizes, *options)
    library().call("thin", call)
    return y


thin_conv2d.implementations.append(Implementation("cpp", _conv, _reasons))
