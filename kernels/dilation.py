"""Dilation: the inputs that the windows of an output mask read."""

from torch import Tensor

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.operators import operator


@kernel
def mask_dilate(
    mask: Tensor, size: int, *, stride: int = 1, shape: list[int] | None = None
) -> Tensor:
    """Return the bool mask of input positions inside a window of an active output position.

    The windows are those of a convolution with kernel `size` and padding size // 2.

    Args:
        mask: (B, H', W') or (N',) bool, at the output's resolution.
        size: of the window, odd.
        stride: of the convolution.
        shape: [H, W] or [N] of the input; by default stride times that of the mask.

    Raises:
        ValueError: if `size` is even.
    """
    if size % 2 == 0:
        raise ValueError(f"mask_dilate needs an odd window, not {size}")
    spread = mask
    if stride > 1:
        spread = mask.new_zeros(_shape(mask, stride, shape))
        steps = [slice(None, None, stride)] * _rank(mask)
        spread[(slice(None),) * (mask.dim() - len(steps)) + tuple(steps)] = mask
    for dim in range(-_rank(mask), 0):
        spread = _widen(spread, size // 2, dim)
    return spread.clone() if spread is mask else spread


def _rank(mask: Tensor) -> int:
    return 2 if mask.dim() == 3 else 1


def _shape(mask: Tensor, stride: int, shape: list[int] | None) -> list[int]:
    rank = _rank(mask)
    given = shape or [stride * n for n in mask.shape[-rank:]]
    return [*mask.shape[:-rank], *given]


def _widen(mask: Tensor, reach: int, dim: int) -> Tensor:
    wide, length = mask.clone(), mask.shape[dim]
    for by in range(1, min(reach, length - 1) + 1):
        wide.narrow(dim, by, length - by).logical_or_(mask.narrow(dim, 0, length - by))
        wide.narrow(dim, 0, length - by).logical_or_(mask.narrow(dim, by, length - by))
    return wide


def _fake(mask: Tensor, size: int, *, stride: int = 1, shape: list[int] | None = None) -> Tensor:
    return mask.new_empty(_shape(mask, stride, shape))


mask_dilate.operator = operator(
    "mask_dilate(Tensor mask, int size, *, int stride=1, int[]? shape=None) -> Tensor",
    mask_dilate.run,
    fake=_fake,
)
