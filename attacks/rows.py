"""Rows of a batch: results that do not depend on how many samples run side by side."""

import torch
from torch import Tensor

# A matrix product of a few rows rounds otherwise than one of many, and so does what torch computes
# in vectors against what is left over: run a multiple of this many rows, by repeating some, so that
# a sample's result does not depend on how many run beside it. Two vectors of float32.
MIN_ROWS = 32


def at_least(rows: Tensor, count: int) -> Tensor:
    """Return `rows` (n,), repeated from the front up to the next multiple of `count`."""
    more = -len(rows) % count
    if not more:
        return rows
    return rows[torch.arange(len(rows) + more, device=rows.device) % len(rows)]


def over_values(per_sample: Tensor, like: Tensor) -> Tensor:
    """Return (B,) reshaped to (B, 1, ...), to multiply `like` (B, ...) with."""
    return per_sample.reshape(-1, *[1] * (like.dim() - 1))
