"""Every registered model, small enough to test: its trained weights on a few real samples."""

from functools import cache

import torch
from torch import Tensor, nn

import robustdyn as rd

NAMES = [spec.name for spec in rd.list_models()]
DYNAMIC = [spec.name for spec in rd.list_models(static=False)]
STATIC = [spec.name for spec in rd.list_models(static=True)]


@cache
def model(name: str) -> nn.Module:
    return rd.create_model(name)


@cache
def data(dataset: str, count: int):
    """The first `count` test samples; of sequences, those of the most frequent length."""
    test = rd.load_dataset(dataset, "test")
    largest = max(test.batches(count), key=len)
    return test.subset(largest[:count])


def samples(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Return inputs (B, ...) of one shape, and labels (B,), for the model."""
    subset = data(model(name).dataset, count)
    return subset.stack(range(len(subset))), torch.from_numpy(subset.labels)
