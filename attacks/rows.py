"""Rows of a batch: results that do not depend on how many samples run side by side."""

import torch
from torch import Tensor

MULTIPLE = 32  # two vectors of float32 where they are longest, AVX-512


def filled_up(rows: Tensor) -> Tensor:
    """Return `rows` (n,), repeated from the front up to the next multiple of MULTIPLE.

    A matrix product of a few rows rounds otherwise than one of many, and so does what torch
    computes in vectors against what is left over. In multiples, a sample's result does not depend
    on how many run beside it.
    """
    more = -len(rows) % MULTIPLE
    if not more:
        return rows
    return rows[torch.arange(len(rows) + more, device=rows.device) % len(rows)]


def over_values(per_sample: Tensor, like: Tensor) -> Tensor:
    """Return (B,) reshaped to (B, 1, ...), to multiply `like` (B, ...) with."""
    return per_sample.reshape(-1, *[1] * (like.dim() - 1))
