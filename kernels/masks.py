"""Masks: comparing, counting and repeating; on the CPU by numpy, which is far faster than torch."""

import numpy as np
import torch
from torch import Tensor

from robustdyn.kernels.watchers import unwatched

SMALL = 1024  # so few entries do not pay for the way to numpy
_NUMBERS = (torch.float32, torch.float64)


def exceeds(x: Tensor, bound: float) -> Tensor:
    """Return x > bound, bool, of the shape and strides of x; no gradient."""
    x = x.detach()
    if x.numel() > SMALL and x.is_cpu and x.dtype in _NUMBERS and unwatched((x,)):
        return torch.from_numpy(np.greater(x.numpy(), bound))
    return x > bound


def count(mask: Tensor) -> int:
    """Return how many entries of a bool mask are on; waits for the device."""
    return int(np.count_nonzero(mask.numpy()) if mask.is_cpu else mask.count_nonzero())


def channels_of(blocks: Tensor, channels: int) -> Tensor:
    """Repeat each block's entry for its channels, (B, G) -> (B, C).

    Raises:
        ValueError: if C is not a multiple of G.
    """
    size = block_size(blocks, channels)
    return blocks if size == 1 else blocks[:, :, None].expand(-1, -1, size).flatten(1)


def block_size(blocks: Tensor, channels: int) -> int:
    """Return how many of the channels are in each block of (B, G); ValueError as channels_of."""
    groups = blocks.shape[1]
    if not groups or channels % groups:
        raise ValueError(f"{channels} channels cannot be cut into {groups} equal blocks")
    return channels // groups
