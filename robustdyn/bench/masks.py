"""Masks with a stated active fraction: single positions, or whole blocks, drawn at random."""

import torch
from torch import Tensor

BLOCK = 7  # positions along each side of a block


def random_mask(shape: tuple[int, ...], active: float, draw: torch.Generator) -> Tensor:
    """Return a bool mask with round(active * positions) positions on, at least one."""
    count = torch.Size(shape).numel()
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=draw)[: max(1, round(active * count))]] = True
    return mask.reshape(shape)


def blocky_mask(shape: tuple[int, int, int], active: float, draw: torch.Generator) -> Tensor:
    """Return the same, (B, H, W), in blocks of BLOCK x BLOCK positions; those at the edge are cut.

    The active fraction is that of the blocks, so it can differ a little from `active`.
    """
    batch, height, width = shape
    blocks = (batch, -(-height // BLOCK), -(-width // BLOCK))
    coarse = random_mask(blocks, active, draw)
    fine = coarse.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    return fine[:, :height, :width].contiguous()
