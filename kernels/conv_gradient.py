"""The gradients of a masked convolution."""

from typing import Any

from torch import Tensor
from torch.nn import grad as dense_grad

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import where
from robustdyn.kernels.operators import operator
from robustdyn.kernels.reference_gradient import reference_gradient


@kernel
def masked_conv2d_input_grad(
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
    """Return the gradient (B, H, W, C) of a masked convolution's input.

    Every input position gathers from the active outputs whose windows it lies in, in one order:
    deterministic, no atomics.

    Args:
        grad: (B, H', W', O), the gradient of the output; off the mask it does not count.
        weight: (O, C / groups, k, k).
        mask: (B, H', W') bool.
        size: [H, W] of the input.
        stride, padding, dilation, groups: of the convolution.
    """
    outer = where(mask[..., None], grad).permute(0, 3, 1, 2)
    shape = [grad.shape[0], weight.shape[1] * groups, *size]
    inner = dense_grad.conv2d_input(shape, weight, outer, stride, padding, dilation, groups)
    return inner.permute(0, 2, 3, 1).contiguous()


def weight_and_bias_grads(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    *,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients (O, C / groups, k, k) and (O,), by torch's dense convolution.

    Args:
        x: (B, H, W, C).
        weight: (O, C / groups, k, k), for its shape.
        grad: (B, H', W', O), zero off the mask.
        stride, padding, dilation, groups: of the convolution.
    """
    inputs, outer = x.permute(0, 3, 1, 2), grad.permute(0, 3, 1, 2)
    shape = list(weight.shape)
    of_weight = dense_grad.conv2d_weight(inputs, shape, outer, stride, padding, dilation, groups)
    return of_weight.contiguous(), grad.sum((0, 1, 2))


def _fake(grad: Tensor, weight: Tensor, mask: Tensor, size: list[int], **options: int) -> Tensor:
    return grad.new_empty(grad.shape[0], *size, weight.shape[1] * options.get("groups", 1))


def _macs(grad: Tensor, weight: Tensor, mask: Tensor, *_: Any, **__: Any) -> int:
    return int(mask.sum()) * weight.numel()


masked_conv2d_input_grad.operator = operator(
    "masked_conv2d_input_grad(Tensor grad, Tensor weight, Tensor mask, SymInt[] size, *,"
    " int stride=1, int padding=0, int dilation=1, int groups=1) -> Tensor",
    masked_conv2d_input_grad.run,
    fake=_fake,
    macs=_macs,
    **reference_gradient(masked_conv2d_input_grad.reference),
)
