"""Mask positions: compute a convolution only where a spatial gate is open."""

from collections.abc import Callable

from torch import Tensor, nn

from robustdyn.decision import Decision, dilated
from robustdyn.execution import is_sparse
from robustdyn.kernels import gather_rows, masked_conv2d, scatter_rows
from robustdyn.primitives.folding import folded
from robustdyn.trace import mark_sparse, region


def conv_at(
    gate: Decision,
    conv: nn.Module,
    then: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    dilate: int = 1,
) -> Tensor:
    """Return then(conv(x)), (B, O, H', W'), right at the positions that `gate` keeps.

    Elsewhere the values mean nothing: multiply by gate.keep before they are used.
    DynConv's form, Verelst and Tuytelaars 2020, arXiv:1912.03203.

    Args:
        gate: a decision with margin (B, 1, H', W').
        conv: an nn.Conv2d without bias, groups or dilation.
        then: elementwise, or a batch norm in eval; works on (n, O, 1, 1) too. As modules, a batch
            norm, a ReLU, or both in an nn.Sequential are folded into the convolution.
        x: (B, C, H, W).
        dilate: the kernel size of the convolution that reads this one's output, whose windows
            around the kept positions are needed too.
    """
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"conv_at needs an nn.Conv2d, not {type(conv).__name__}")
    if not is_sparse():
        with region(gate.share(dilate=dilate)):
            return then(conv(x))
    mark_sparse()
    kept = dilated(gate.kept, dilate) if dilate > 1 else gate.kept
    return _sparse(conv, then, x, kept[:, 0])


def _sparse(conv: nn.Conv2d, then: Callable[[Tensor], Tensor], x: Tensor, mask: Tensor) -> Tensor:
    """then(conv(x)) at the mask (B, H', W'), 0 elsewhere."""
    rows = x.permute(0, 2, 3, 1)  # NHWC
    shape = {"stride": conv.stride[0], "padding": int(conv.padding[0])}
    whole = folded(conv, then)
    if whole is not None:
        weight, bias, relu = whole
        y = masked_conv2d(rows, weight, mask, bias, relu=relu, **shape)
        return y.permute(0, 3, 1, 2)
    y = masked_conv2d(rows, conv.weight, mask, conv.bias, **shape)
    on = mask.flatten().nonzero().flatten()
    if len(on):
        flat = y.flatten(0, 2)
        done = then(gather_rows(flat, on)[:, :, None, None])[:, :, 0, 0]
        y = scatter_rows(done, on, flat, in_place=True).reshape(*mask.shape, -1)
    return y.permute(0, 3, 1, 2)
