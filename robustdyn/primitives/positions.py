"""Mask positions: compute a convolution only where a spatial gate is open."""

from collections.abc import Callable

from torch import Tensor, nn

from robustdyn.decision import Decision, dilated
from robustdyn.execution import is_sparse
from robustdyn.kernels import masked_conv2d_rows, scatter_rows
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
        then: elementwise, or a batch norm in eval; works on (n, O, 1, 1) too.
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
    mask = kept[:, 0]  # (B, H', W')
    batch, height, width = mask.shape
    out = x.new_zeros(batch * height * width, conv.out_channels)
    if mask.any():
        y = masked_conv2d_rows(
            x.permute(0, 2, 3, 1),
            conv.weight,
            mask,
            stride=conv.stride[0],
            padding=int(conv.padding[0]),
        )
        y = then(y[:, :, None, None])[:, :, 0, 0]  # (n, O)
        out = scatter_rows(y, mask.flatten().nonzero().flatten(), out)
    return out.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
