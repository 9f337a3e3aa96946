"""Every registered model, small enough to test: its trained weights on a few real samples."""

from functools import cache

import torch
from torch import Tensor, nn

import robustdyn as rd

NAMES = [spec.name for spec in rd.list_models()]
DYNAMIC = [spec.name for spec in rd.list_models(static=False)]
STATIC = [spec.name for spec in rd.list_models(static=True)]
EXITS = [spec.name for spec in rd.list_models("instance.depth.early_exit", static=False)]


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


@torch.no_grad()
def ends_early(name: str) -> bool:
    """Whether samples of the model can end at different places: exits, or the leaves of a tree."""
    with rd.trace() as trace:
        model(name)(samples(name, 2)[0])
    return bool(trace.exits)


@torch.no_grad()
def _cheapest_of_each_kind() -> list[str]:
    """The dynamic models that cost least: one per kind of decision, one that takes sequences."""
    cheapest: dict[str, tuple[float, str]] = {}
    for name in DYNAMIC:
        untrained = rd.create_model(name, pretrained=False)
        with rd.trace() as trace:
            untrained(data(untrained.dataset, 2).stack([0, 1]))
        kinds = {decision.kind for decision in trace.decisions.values()}
        for kind in kinds | {untrained.spec.task}:
            here = (trace.max_macs(), name)
            cheapest[kind] = min(cheapest.get(kind, here), here)
    return sorted({name for _, name in cheapest.values()})


# For tests of what depends on the kind of decision, not on the model: all of them take too long.
KINDS = _cheapest_of_each_kind()

# None of their first samples moves at 8/255, under any attack: docs/models.md says why.
RESISTANT = ["blockdrop", "dynamic_bits"]
