"""Convolution of the channels that each sample keeps, in C++: these alone, or all, then masked."""

import ctypes

from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.channel_conv import channel_masked_conv2d
from robustdyn.kernels.cpp_conv import library, tensor_reasons
from robustdyn.kernels.dispatch import Implementation
from robustdyn.kernels.masked_conv import output_shape
from robustdyn.kernels.masks import count
from robustdyn.kernels.native import integers, plain, pointer, pointers, threads
from robustdyn.kernels.shapes import check_shape

# From these active fractions of the weights on, it is faster to compute all and mask it then.
CROSSOVER = 0.6
STRIDED = 0.4
FEW = 0.3  # where fewer than so many positions share the loaded weights:
POSITIONS = 16
POINTWISE = 0.2  # of 1x1 convolutions, whose inputs cost as much to copy as to multiply


class ChannelCall(ctypes.Structure):
    """The struct ChannelConv of cpp/tables.h."""

    _fields_ = [
        *pointers("x", "weight", "inputs", "kept", "bias", "scale", "shift", "residual", "out"),
        *integers("batch", "height", "width", "channels", "out_height", "out_width", "outputs"),
        *integers("kernel_height", "kernel_width", "stride", "padding", "dilation"),
        *integers("relu", "threads"),
    ]


def _kept_reasons(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    *after: Tensor | None,
    relu: bool = False,
    **geometry: int,
) -> list[str]:
    reasons = tensor_reasons(x, weight, inputs, outputs, *after)
    if reasons:
        return reasons
    most = _most(x, weight, **geometry)
    if _part(inputs) * _part(outputs) > most:
        return [f"more than {most:.0%} of the weights are used: dense is faster"]
    return []


def _most(x: Tensor, weight: Tensor, *, stride: int = 1, **geometry: int) -> float:
    if weight.shape[2:] == (1, 1):
        return POINTWISE
    height, width = output_shape(x, weight, stride=stride, **geometry)
    if height * width < POSITIONS:
        return FEW
    return CROSSOVER if stride == 1 else STRIDED


def _part(mask: Tensor | None) -> float:
    return 1.0 if mask is None else count(mask) / max(mask.numel(), 1)


def _kept(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    *after: Tensor | None,
    relu: bool = False,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    size = (*output_shape(x, weight, stride, padding, dilation), len(weight))
    y = x.new_empty(x.shape[0], *size)
    sizes = (*x.shape, *size, *weight.shape[2:], stride, padding, dilation, relu)
    check_shape("x", x, *x.shape[:3], weight.shape[1])
    check_shape("the live inputs", inputs, *x.shape[::3])
    _run("channels", (x, weight, inputs, outputs, *after), y, sizes)
    return y


def _whole_reasons(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    *after: Tensor | None,
    **_: int,
) -> list[str]:
    reasons = tensor_reasons(x, weight, inputs, outputs, *after)
    if not reasons and outputs is None and all(a is None for a in after[1:]):
        return ["all outputs are kept as they are: nothing is left to do after a convolution"]
    return reasons


def _whole(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    *after: Tensor | None,
    relu: bool = False,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Torch's convolution of all channels, then mask, scale, shift and sum in one pass."""
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, None, stride, padding, dilation)
    y = y.permute(0, 2, 3, 1).contiguous()
    sizes = (*x.shape, *y.shape[1:], *weight.shape[2:], stride, padding, dilation, relu)
    _run("finish_channels", (None, None, None, outputs, *after), y, sizes)
    return y


def _run(name: str, tensors: tuple[Tensor | None, ...], y: Tensor, sizes: tuple[int, ...]) -> None:
    ready = [plain(tensor) for tensor in tensors] + [None] * (8 - len(tensors))
    batch, *_, count = y.shape
    _, _, _, kept, bias, scale, shift, residual = ready
    check_shape("the kept outputs", kept, batch, count)
    check_shape("the bias", bias, count)
    check_shape("the scale", scale, batch, count)
    check_shape("the shift", shift, count)
    check_shape("the residual", residual, *y.shape)
    pointing = [pointer(tensor) for tensor in (*ready, y)]
    library().call(name, ChannelCall(*pointing, *sizes, threads()))


channel_masked_conv2d.implementations += [
    Implementation("cpp", _kept, _kept_reasons),
    Implementation("whole", _whole, _whole_reasons),
]
