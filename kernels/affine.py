"""Scale, shift and activation at the positions of a mask: a folded batch norm."""

from typing import Any

from torch import Tensor

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import check_fill, finish
from robustdyn.kernels.operators import operator
from robustdyn.kernels.reference_gradient import reference_gradient


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


def _differentiable(x, scale, shift, mask, residual=None, relu=False, fill="zero"):
    return masked_affine_act.reference(x, scale, shift, mask, residual, relu=relu, fill=fill)


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
    **reference_gradient(_differentiable),
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
