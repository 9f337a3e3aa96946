"""Convolution at the positions of a mask, with bias, residual and ReLU in one."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.conv_gradient import masked_conv2d_input_grad, weight_and_bias_grads
from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import check_fill, finish
from robustdyn.kernels.operators import operator


@kernel
def masked_conv2d(
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
    """Return [relu](conv(x) + bias + residual), (B, H', W', O), at the mask.

    The input is dense: unmasked inputs count with their values, not as zero.

    Args:
        x: (B, H, W, C), NHWC.
        weight: (O, C / groups, k, k).
        mask: (B, H', W') bool, at the output's resolution.
        bias: (O,).
        residual: (B, H', W', O), added before the ReLU.
        relu: whether negative results become 0.
        fill: what stands off the mask: "zero", "copy" (of the residual) or "leave" (whatever is
            there: in `out` what was there before, else anything).
        out: (B, H', W', O), contiguous, to write to and return; may be the residual, not x. Then
            there is no gradient.
        stride, padding, dilation, groups: of the convolution, the same in both directions.

    Raises:
        ValueError: if the mask does not have the output's resolution, or for a wrong `fill`.
    """
    check_fill(fill, residual)
    check_mask(x, weight, mask, stride, padding, dilation)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, dilation, groups)
    return finish(y.permute(0, 2, 3, 1), mask, residual, relu=relu, fill=fill, out=out)


def output_size(size: int, kernel_size: int, stride: int, padding: int, dilation: int) -> int:
    """Return how many positions a convolution has along one direction."""
    return (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1


def check_mask(
    x: Tensor, weight: Tensor, mask: Tensor, stride: int, padding: int, dilation: int
) -> None:
    """Raise ValueError if the mask (B, H', W') is not at the resolution of the output."""
    shape = [
        output_size(x.shape[d], weight.shape[d + 1], stride, padding, dilation) for d in (1, 2)
    ]
    if list(mask.shape) != [x.shape[0], *shape] or mask.dtype != torch.bool:
        expected = (x.shape[0], *shape)
        raise ValueError(f"the mask must be bool {expected}, not {mask.dtype} {tuple(mask.shape)}")


def conv_macs(x: Tensor, weight: Tensor, mask: Tensor, *_: Any, **__: Any) -> int:
    """Return the multiply-accumulates of the convolution at the mask."""
    return int(mask.sum()) * weight.numel()


def conv_fake(x: Tensor, weight: Tensor, mask: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return the output (B, H', W', O) without data."""
    return x.new_empty(*mask.shape, weight.shape[0])


def conv_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Keep what the gradient of a masked convolution needs."""
    x, weight, mask, bias, residual, relu, fill, *options = inputs
    ctx.save_for_backward(x, weight, mask, output if relu else None)
    ctx.fill, ctx.options = fill, options
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None


def conv_backward(ctx: Any, grad: Tensor) -> tuple:
    """Return the gradients of x, weight, mask, bias, residual and seven options."""
    x, weight, mask, output = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.options
    here = mask[..., None] if output is None else mask[..., None] & (output > 0)
    inner = torch.where(here, grad, 0)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    grad_x = grad_weight = grad_bias = grad_residual = None
    if ctx.needs_input_grad[0]:
        size = list(x.shape[1:3])
        grad_x = masked_conv2d_input_grad(inner, weight, mask, size, **options)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
        grad_weight, grad_bias = weight_and_bias_grads(x, weight, inner, **options)
    if ctx.has_residual:
        grad_residual = torch.where(mask[..., None], inner, grad) if ctx.fill == "copy" else inner
    grad_bias = grad_bias if ctx.has_bias else None
    return grad_x, grad_weight, None, grad_bias, grad_residual, *[None] * 6


_ARGUMENTS = "Tensor x, Tensor weight, Tensor mask, Tensor? bias=None, Tensor? residual=None"
_OPTIONS = 'bool relu=False, str fill="zero"'
_SHAPE = "int stride=1, int padding=0, int dilation=1, int groups=1"


def _positional(
    x, weight, mask, bias=None, residual=None, relu=False, fill="zero", *shape, **named
):
    names = ("stride", "padding", "dilation", "groups")
    named |= dict(zip(names, shape, strict=False))
    return masked_conv2d.run(x, weight, mask, bias, residual, relu=relu, fill=fill, **named)


def _in_place(*args: Any, out: Tensor, **options: Any) -> None:
    masked_conv2d.run(*args, out=out, **options)


_new = operator(
    f"masked_conv2d({_ARGUMENTS}, {_OPTIONS}, {_SHAPE}) -> Tensor",
    _positional,
    fake=conv_fake,
    macs=conv_macs,
    setup=conv_setup,
    backward=conv_backward,
)
_to_out = operator(
    f"masked_conv2d_out({_ARGUMENTS}, *, Tensor(a!) out, {_OPTIONS}, {_SHAPE}) -> ()",
    _in_place,
    fake=lambda *_, **__: None,
    macs=conv_macs,
)


def _call(*args: Any, out: Tensor | None = None, **options: Any) -> Tensor:
    if out is None:
        return _new(*args, **options)
    _to_out(*args, out=out, **options)
    return out


masked_conv2d.operator = _call
