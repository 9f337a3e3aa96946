"""Masked convolutions of dense masks: torch's convolution everywhere, then one pass in C++."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.cpp_conv import library, out_reasons, tensor_reasons
from robustdyn.kernels.cpp_more import AffineCall
from robustdyn.kernels.depthwise import masked_depthwise_conv2d
from robustdyn.kernels.dispatch import Implementation
from robustdyn.kernels.filling import FILLS, check_fill
from robustdyn.kernels.masked_conv import check_mask, masked_conv2d
from robustdyn.kernels.masks import count
from robustdyn.kernels.native import plain, pointer, threads
from robustdyn.kernels.shapes import check_shape


def _reasons(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    out: Tensor | None = None,
    **_: Any,
) -> list[str]:
    if residual is None and not relu and mask.is_cpu and count(mask) == mask.numel():
        return ["nothing is left to do after torch's convolution"]
    return tensor_reasons(x, weight, mask, bias, residual, out) + out_reasons(out)


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
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, dilation, groups)
    y = y.permute(0, 2, 3, 1).contiguous()
    check_shape("the residual", residual, *y.shape)
    check_shape("out", out, *y.shape)
    out = y if out is None else out
    mask, residual = mask.contiguous(), plain(residual)
    arguments = (y, None, None, mask, residual, out)
    options = (mask.numel(), len(weight), relu, FILLS.index(fill), threads())
    library().call("affine", AffineCall(*[pointer(a) for a in arguments], *options))
    return out


def _depthwise(x: Tensor, weight: Tensor, mask: Tensor, *args: Any, **options: Any) -> Tensor:
    return _conv(x, weight, mask, *args, groups=x.shape[3], **options)


masked_conv2d.implementations.append(Implementation("whole", _conv, _reasons))
masked_depthwise_conv2d.implementations.append(Implementation("whole", _depthwise, _reasons))
