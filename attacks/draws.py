"""Random numbers drawn from (seed, sample id): batching and sharding cannot change them."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor


def sample_seeds(seed: int, sample_ids: Sequence[int]) -> list[int]:
    """Return one seed per sample, from the run's seed and the sample's id."""
    return [_mix(seed, int(sample_id)) for sample_id in sample_ids]


def uniform(seeds: Sequence[int], like: Tensor, *, stream: int = 0) -> Tensor:
    """Return uniform numbers in [0, 1), (B, ...) shaped as `like`.

    Args:
        seeds: one per sample.
        like: (B, ...); gives shape, dtype and device.
        stream: another number gives other, independent draws.
    """
    draws = [
        torch.rand(like.shape[1:], generator=torch.Generator().manual_seed(_mix(seed, stream)))
        for seed in seeds
    ]
    return torch.stack(draws).to(like)


def normal(seeds: Sequence[int], like: Tensor, *, stream: int = 0) -> Tensor:
    """Return standard normal numbers, (B, ...); arguments as `uniform`."""
    draws = [
        torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(_mix(seed, stream)))
        for seed in seeds
    ]
    return torch.stack(draws).to(like)


def _mix(first: int, second: int) -> int:
    digest = blake2b(f"{first},{second}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
