"""Scale, shift and activation at the positions of a mask: a folded batch norm."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import check_fill, finish
from robustdyn.kernels.operators import operator


@kernel
def masked_affine_act(
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
    """Return [relu](scale * x + shift + residual), (B, H, W, C), at the mask.

    Args:
        x: (B, H, W, C), NHWC.
        scale, shift: (C,).
        mask: (B, H, W) bool.
        residual: (B, H, W, C), added before the ReLU.
        relu: whether negative results become 0.
        fill: what stands off the mask: "zero", "copy" (of the residual) or "leave".
        out: (B, H, W, C), contiguous, to write to and return; may be x or the residual. Then there
            is no gradient.

    Raises:
        ValueError: for a wrong `fill`.
    """
    check_fill(fill, residual)
    return finish(x * scale + shift, mask, residual, relu=relu, fill=fill, out=out)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, scale, _, mask, residual, relu, ctx.fill = inputs
    ctx.save_for_backward(x, scale, mask, output if relu else None)
    ctx.has_residual = residual is not None


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, scale, mask, output = ctx.saved_tensors
    here = mask[..., None] if output is None else mask[..., None] & (output > 0)
    inner = torch.where(here, grad, 0)
    grad_residual = None
    if ctx.has_residual:
        grad_residual = torch.where(mask[..., None], inner, grad) if ctx.fill == "copy" else inner
    over = (0, 1, 2)
    grads = (inner * scale, (inner * x).sum(over), inner.sum(over))
    return *grads, None, grad_residual, None, None


def _positional(x, scale, shift, mask, residual=None, relu=False, fill="zero"):
    return masked_affine_act.run(x, scale, shift, mask, residual, relu=relu, fill=fill)


def _in_place(*args: Any, out: Tensor, **options: Any) -> None:
    masked_affine_act.run(*args, out=out, **options)


_ARGUMENTS = "Tensor x, Tensor scale, Tensor shift, Tensor mask, Tensor? residual=None"
_OPTIONS = 'bool relu=False, str fill="zero"'
_new = operator(
    f"masked_affine_act({_ARGUMENTS}, {_OPTIONS}) -> Tensor",
    _positional,
    fake=lambda x, *_, **__: x.new_empty(x.shape),
    setup=_setup,
    backward=_backward,
)
_to_out = operator(
    f"masked_affine_act_out({_ARGUMENTS}, *, Tensor(a!) out, {_OPTIONS}) -> ()",
    _in_place,
    fake=lambda *_, **__: None,
)


def _call(*args: Any, out: Tensor | None = None, **options: Any) -> Tensor:
    if out is None:
        return _new(*args, **options)
    _to_out(*args, out=out, **options)
    return out


masked_affine_act.operator = _call
