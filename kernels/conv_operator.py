"""The operators of a masked convolution: one returns a new tensor, one writes to `out`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels.conv_gradient import masked_conv2d_input_grad, weight_and_bias_grads
from robustdyn.kernels.operators import operator

_TENSORS = "Tensor x, Tensor weight, Tensor mask, Tensor? bias=None, Tensor? residual=None"
_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def conv_operator(
    name: str,
    run: Callable[..., Tensor],
    shape: Sequence[str],
    *,
    setup: Callable[..., None],
    backward: Callable[..., tuple],
) -> Callable[..., Tensor]:
    """Define `robustdyn::NAME` and `robustdyn::NAME_out`; return a call that picks by its `out`.

    Args:
        name: of the kernel.
        run: the kernel, which dispatches; its arguments are those of masked_conv2d.
        shape: which of stride, padding, dilation and groups it takes, in this order.
        setup, backward: of the gradient; a call that writes to `out` has none.
    """
    options = ", ".join(f"int {each}={_DEFAULTS[each]}" for each in shape)
    options = f'bool relu=False, str fill="zero", {options}'

    def positional(
        x, weight, mask, bias=None, residual=None, relu=False, fill="zero", *values, **named
    ):
        named |= dict(zip(shape, values, strict=False))
        return run(x, weight, mask, bias, residual, relu=relu, fill=fill, **named)

    def in_place(*args: Any, out: Tensor, **named: Any) -> None:
        run(*args, out=out, **named)

    new = operator(
        f"{name}({_TENSORS}, {options}) -> Tensor",
        positional,
        fake=_fake,
        macs=_macs,
        setup=setup,
        backward=backward,
    )
    to_out = operator(
        f"{name}_out({_TENSORS}, *, Tensor(a!) out, {options}) -> ()",
        in_place,
        fake=lambda *_, **__: None,
        macs=_macs,
    )

    def call(*args: Any, out: Tensor | None = None, **named: Any) -> Tensor:
        if out is None:
            return new(*args, **named)
        to_out(*args, out=out, **named)
        return out

    return call


def _macs(x: Tensor, weight: Tensor, mask: Tensor, *_: Any, **__: Any) -> int:
    """Return the multiply-accumulates of the convolution at the mask."""
    return int(mask.sum()) * weight.numel()


def _fake(x: Tensor, weight: Tensor, mask: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return the output (B, H', W', O) without data."""
    return x.new_empty(*mask.shape, weight.shape[0])


def conv_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Keep what the gradient of a masked convolution needs."""
    x, weight, mask, bias, residual, relu, fill, *options = inputs
    ctx.save_for_backward(x, weight, mask, output if relu else None)
    ctx.fill, ctx.options = fill, options
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None


def conv_backward(ctx: Any, grad: Tensor) -> tuple:
    """Return the gradients of x, weight, mask, bias, residual and six options."""
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
