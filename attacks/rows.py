"""Rows of a batch: results that do not depend on how many samples run side by side."""

import torch
from torch import Tensor

# A matrix product of a few rows rounds otherwise than one of many: run at least this many rows,
# by repeating some, so that a sample's result does not depend on how many run beside it.
MIN_ROWS = 16


def at_least(rows: Tensor, count: int) -> Tensor:
    """Return `rows` (n,), repeated from the front until there are `count` of them."""
    if len(rows) >= count:
        return rows
    return rows[torch.arange(count, device=rows.device) % len(rows)]


def over_values(per_sample: Tensor, like: Tensor) -> Tensor:
    """Return (B,) reshaped to (B, 1, ...), to multiply `like` (B, ...) with."""
    return per_sample.reshape(-1, *[1] * (like.dim() - 1))
