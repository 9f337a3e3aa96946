"""Depthwise convolution at the positions of a mask: every channel has a window of its own."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import check_fill, finish
from robustdyn.kernels.masked_conv import (
    check_mask,
    conv_backward,
    conv_fake,
    conv_macs,
    conv_setup,
)
from robustdyn.kernels.operators import operator


@kernel
def masked_depthwise_conv2d(
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
) -> Tensor:
    """Return [relu](conv(x) + bias + residual), (B, H', W', C), at the mask.

    Arguments are those of masked_conv2d, for weight (C, 1, k, k) and x (B, H, W, C).

    Raises:
        ValueError: if the mask does not have the output's resolution, or for a wrong `fill`.
    """
    check_fill(fill, residual)
    check_mask(x, weight, mask, stride, padding, dilation)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, dilation, x.shape[3])
    return finish(y.permute(0, 2, 3, 1), mask, residual, relu=relu, fill=fill, out=out)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    conv_setup(ctx, (*inputs, inputs[0].shape[3]), output)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    return conv_backward(ctx, grad)[:-1]  # without the groups


_ARGUMENTS = "Tensor x, Tensor weight, Tensor mask, Tensor? bias=None, Tensor? residual=None"
_OPTIONS = 'bool relu=False, str fill="zero", int stride=1, int padding=0, int dilation=1'


def _positional(
    x, weight, mask, bias=None, residual=None, relu=False, fill="zero", *shape, **named
):
    named |= dict(zip(("stride", "padding", "dilation"), shape, strict=False))
    arguments = (x, weight, mask, bias, residual)
    return masked_depthwise_conv2d.run(*arguments, relu=relu, fill=fill, **named)


def _in_place(*args: Any, out: Tensor, **options: Any) -> None:
    masked_depthwise_conv2d.run(*args, out=out, **options)


_new = operator(
    f"masked_depthwise_conv2d({_ARGUMENTS}, {_OPTIONS}) -> Tensor",
    _positional,
    fake=conv_fake,
    macs=conv_macs,
    setup=_setup,
    backward=_backward,
)
_to_out = operator(
    f"masked_depthwise_conv2d_out({_ARGUMENTS}, *, Tensor(a!) out, {_OPTIONS}) -> ()",
    _in_place,
    fake=lambda *_, **__: None,
    macs=conv_macs,
)


def _call(*args: Any, out: Tensor | None = None, **options: Any) -> Tensor:
    if out is None:
        return _new(*args, **options)
    _to_out(*args, out=out, **options)
    return out


masked_depthwise_conv2d.operator = _call
