"""Convolution of single entries: the mask names output positions and channels at once."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import where
from robustdyn.kernels.masked_conv import output_shape
from robustdyn.kernels.masks import count
from robustdyn.kernels.operators import operator
from robustdyn.kernels.reference_gradient import reference_gradient


@kernel
def entry_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    relu: bool = False,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Return [relu](scale * (conv(x) at the mask, else 0, + residual) + shift), (B, H', W', O).

    Args:
        x: (B, H, W, C), NHWC.
        weight: (O, C, k, k).
        mask: (B, H', W', O) bool.
        residual: (B, H', W', O), at all entries; None: 0.
        scale, shift: (O,), such as a batch norm's; None: 1 and 0.
        relu: whether negative results become 0.
        stride, padding: of the convolution, the same in both directions.

    Raises:
        ValueError: if the mask does not have the output's shape.
    """
    check_entries(x, weight, mask, stride, padding)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, None, stride, padding).permute(0, 2, 3, 1)
    y = where(mask, y)
    y = y if residual is None else y + residual
    y = y if scale is None else y * scale
    y = y if shift is None else y + shift
    return (y.relu() if relu else y).contiguous()


def check_entries(x: Tensor, weight: Tensor, mask: Tensor, stride: int, padding: int) -> None:
    """Raise ValueError if the mask (B, H', W', O) does not have the shape of the output."""
    expected = (len(x), *output_shape(x, weight, stride, padding), len(weight))
    if mask.shape != expected or mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool {expected}, not {mask.dtype} {tuple(mask.shape)}")


def _fake(x: Tensor, weight: Tensor, mask: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(mask.shape)


def _macs(x: Tensor, weight: Tensor, mask: Tensor, *_: Any, **__: Any) -> int:
    return count(mask) * weight[0].numel()


entry_masked_conv2d.operator = operator(
    "entry_masked_conv2d(Tensor x, Tensor weight, Tensor mask, Tensor? residual=None,"
    " Tensor? scale=None, Tensor? shift=None, *, bool relu=False, int stride=1, int padding=0)"
    " -> Tensor",
    entry_masked_conv2d.run,
    fake=_fake,
    macs=_macs,
    **reference_gradient(entry_masked_conv2d.reference),
)
