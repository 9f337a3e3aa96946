"""Finish a sum: a part of the input channels decides where the others are added."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.decision import Decision
from robustdyn.execution import is_sparse
from robustdyn.kernels import entry_masked_conv2d
from robustdyn.trace import mark_sparse, region


def partial_conv(
    conv: nn.Module, x: Tensor, gate: Callable[[Tensor], Decision], *, parts: int
) -> Tensor:
    """Return partial + keep * rest, (B, O, H', W'): the convolution in two steps.

    `partial` sums over the first 1/parts of the input channels and always runs; `rest` sums over
    the others, at the output pixels and channels that the gate keeps. Channel gating's form, Hua
    et al. 2019, arXiv:1805.12549.

    Args:
        conv: an nn.Conv2d without bias, groups or dilation.
        x: (B, C, H, W), with C a multiple of `parts`.
        gate: decides on the partial sum (B, O, H', W'); its margin has the same shape.
        parts: into how many parts the input channels are split.
    """
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"partial_conv needs an nn.Conv2d, not {type(conv).__name__}")
    first = conv.in_channels // parts
    begun, others = x[:, :first], x[:, first:]
    partial = F.conv2d(begun, conv.weight[:, :first], None, conv.stride, conv.padding)
    decision = gate(partial)
    if is_sparse():
        return _add_rest(conv, others, conv.weight[:, first:], decision.kept, partial)
    with region(decision.share()):
        rest = F.conv2d(others, conv.weight[:, first:], None, conv.stride, conv.padding)
    return partial + decision.keep * rest


def _add_rest(
    conv: nn.Conv2d, others: Tensor, weight: Tensor, kept: Tensor, partial: Tensor
) -> Tensor:
    """Add the rest at the kept (B, O, H', W')."""
    mark_sparse()
    summed = entry_masked_conv2d(
        others.permute(0, 2, 3, 1),  # NHWC
        weight,
        kept.permute(0, 2, 3, 1),
        partial.permute(0, 2, 3, 1),
        stride=conv.stride[0],
        padding=int(conv.padding[0]),
    )
    return summed.permute(0, 3, 1, 2)
