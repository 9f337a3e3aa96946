"""Finish a sum: a part of the input channels decides where the others are added."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.decision import Decision
from robustdyn.execution import is_sparse
from robustdyn.kernels import entry_masked_conv2d, masked_conv2d
from robustdyn.kernels.masked_conv import output_shape
from robustdyn.primitives.folding import scale_and_shift
from robustdyn.trace import mark_sparse, region


def partial_conv(
    conv: nn.Module,
    x: Tensor,
    gate: Callable[[Tensor], Decision],
    *,
    parts: int,
    norm: nn.Module | None = None,
    relu: bool = False,
) -> Tensor:
    """Return [relu](norm(partial + keep * rest)), (B, O, H', W'): the convolution in two steps.

    `partial` sums over the first 1/parts of the input channels and always runs; `rest` sums over
    the others, at the output pixels and channels that the gate keeps. Channel gating's form, Hua
    et al. 2019, arXiv:1805.12549. In sparse execution one kernel does all that follows the gate,
    where the norm is a batch norm in eval.

    Args:
        conv: an nn.Conv2d without bias, groups or dilation.
        x: (B, C, H, W), with C a multiple of `parts`.
        gate: decides on the partial sum (B, O, H', W'); its margin has the same shape.
        parts: into how many parts the input channels are split.
        norm: elementwise or channel by channel; None is the identity.
        relu: whether negative results become 0.
    """
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"partial_conv needs an nn.Conv2d, not {type(conv).__name__}")
    first = conv.in_channels // parts
    begun, others = x[:, :first], x[:, first:]
    weight, rest_weight = conv.weight[:, :first], conv.weight[:, first:]
    if is_sparse():
        return _sparse(conv, (begun, weight), (others, rest_weight), gate, norm, relu)
    partial = F.conv2d(begun, weight, None, conv.stride, conv.padding)
    decision = gate(partial)
    with region(decision.share()):
        rest = F.conv2d(others, rest_weight, None, conv.stride, conv.padding)
    y = partial + decision.keep * rest
    y = y if norm is None else norm(y)
    return F.relu(y) if relu else y


def _sparse(
    conv: nn.Conv2d,
    begun: tuple[Tensor, Tensor],
    others: tuple[Tensor, Tensor],
    gate: Callable[[Tensor], Decision],
    norm: nn.Module | None,
    relu: bool,
) -> Tensor:
    """The first part of the channels and its weight everywhere, the rest where it is kept."""
    mark_sparse()
    shape = {"stride": conv.stride[0], "padding": int(conv.padding[0])}
    x, weight = begun[0].permute(0, 2, 3, 1), begun[1]  # NHWC
    everywhere = x.new_ones((len(x), *output_shape(x, weight, **shape)), dtype=torch.bool)
    partial = masked_conv2d(x, weight, everywhere, **shape)
    kept = gate(partial.permute(0, 3, 1, 2)).kept.permute(0, 2, 3, 1)
    x, weight = others[0].permute(0, 2, 3, 1), others[1]
    last = None if norm is None else scale_and_shift(norm)
    if norm is not None and last is None:
        y = norm(entry_masked_conv2d(x, weight, kept, partial, **shape).permute(0, 3, 1, 2))
        return F.relu(y) if relu else y
    y = entry_masked_conv2d(x, weight, kept, partial, *(last or ()), relu=relu, **shape)
    return y.permute(0, 3, 1, 2)
