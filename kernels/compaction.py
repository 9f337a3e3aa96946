"""Compaction: where a mask is on, in order, without asking how often it is."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.operators import operator


class Active(NamedTuple):
    """The active positions of a mask with N entries.

    Attributes:
        positions: (N,), the first `number` entries are the active ones, ascending; the others -1.
        inverse: (N,), the place of each position in `positions`, -1 where the mask is off.
        number: (1,), how many are active, on the mask's device.
    """

    positions: Tensor
    inverse: Tensor
    number: Tensor


@kernel
def mask_compact(mask: Tensor, *, dtype: torch.dtype = torch.int32) -> Active:
    """Return the active positions of the flattened mask, in order, without host synchronisation.

    Args:
        mask: (B, H, W) or (N,) bool, with fewer than 2^31 entries.
        dtype: of the result: torch.int32 or torch.int64.
    """
    flat = mask.flatten()
    rank = flat.cumsum(0, dtype=dtype)
    count = rank[-1:].clone() if len(flat) else rank.new_zeros(1)
    rank -= 1
    inverse = rank.masked_fill(~flat, -1)
    place = rank.masked_fill_(~flat, len(flat)).long()  # what is off goes to one spare entry
    index = inverse.new_full((len(flat) + 1,), -1)
    index.scatter_(0, place, torch.arange(len(flat), dtype=dtype, device=mask.device))
    index[-1:] = -1
    return Active(index[:-1].clone(), inverse, count)


def _fake(mask: Tensor, *, dtype: torch.dtype = torch.int32):
    count = mask.numel()
    return tuple(mask.new_empty(n, dtype=dtype) for n in (count, count, 1))


_mask_compact = operator(
    "mask_compact(Tensor mask, *, ScalarType dtype=int) -> (Tensor, Tensor, Tensor)",
    mask_compact.run,
    fake=_fake,
)


def _compact(mask: Tensor, *, dtype: torch.dtype = torch.int32) -> Active:
    return Active(*_mask_compact(mask, dtype=dtype))


mask_compact.operator = _compact
