"""Mask positions: compute a convolution only where a spatial gate is open."""

from collections.abc import Callable

from torch import Tensor, nn

from robustdyn.decision import Decision
from robustdyn.execution import is_sparse
from robustdyn.kernels import gather_rows, mask_dilate, masked_conv2d, scatter_rows
from robustdyn.primitives.folding import Folded, folded
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
    conv = _checked(conv)
    if not is_sparse():
        with region(gate.share(dilate=dilate)):
            return then(conv(x))
    mark_sparse()
    mask = gate.kept[:, 0]  # (B, H', W')
    if dilate > 1:
        mask = mask_dilate(mask, dilate)
    whole = folded(conv, then)
    if whole is not None:
        return _convolve(conv, whole, x, mask)
    y = _convolve(conv, Folded(conv.weight, conv.bias, False), x, mask).permute(0, 2, 3, 1)
    on = mask.flatten().nonzero().flatten()
    if len(on):
        rows = y.flatten(0, 2)
        done = then(gather_rows(rows, on)[:, :, None, None])[:, :, 0, 0]
        y = scatter_rows(done, on, rows, in_place=True).reshape(y.shape)
    return y.permute(0, 3, 1, 2)


def add_conv_at(
    gate: Decision,
    conv: nn.Module,
    then: Callable[[Tensor], Tensor],
    x: Tensor,
    shortcut: Tensor,
) -> Tensor:
    """Return shortcut + keep * then(conv(x)), (B, O, H', W').

    In sparse execution one kernel does it all where `then` is a batch norm or the identity.

    Args:
        gate, conv, then, x: as conv_at takes them.
        shortcut: (B, O, H', W').
    """
    conv = _checked(conv)
    whole = folded(conv, then) if is_sparse() else None
    if whole is None or whole.relu:
        return shortcut + gate.keep * conv_at(gate, conv, then, x)
    mark_sparse()
    return _convolve(conv, whole, x, gate.kept[:, 0], shortcut)


def _checked(conv: nn.Module) -> nn.Conv2d:
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"a convolution at positions needs an nn.Conv2d, not {type(conv).__name__}")
    return conv


def _convolve(
    conv: nn.Conv2d, whole: Folded, x: Tensor, mask: Tensor, shortcut: Tensor | None = None
) -> Tensor:
    """The convolution at the mask (B, H', W'), plus the shortcut; elsewhere that alone, or 0."""
    y = masked_conv2d(
        x.permute(0, 2, 3, 1),  # NHWC
        whole.weight,
        mask,
        whole.bias,
        None if shortcut is None else shortcut.permute(0, 2, 3, 1),
        relu=whole.relu,
        fill="zero" if shortcut is None else "copy",
        stride=conv.stride[0],
        padding=int(conv.padding[0]),
    )
    return y.permute(0, 3, 1, 2)
