"""What the gates of a model guard, in MACs: traces of one sample with its gates forced."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustdyn import gates
from robustdyn.trace import Trace, trace


class Gate(NamedTuple):
    """A gate: its kind, its margin's shape in one sample, and the MACs saved by closing it alone.

    Closing an exit's gate stops there.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    guards: float


class Anatomy(NamedTuple):
    """A model on one sample: its MACs as decided, with all gates open, and its gates."""

    macs: float
    full_macs: float
    gates: list[Gate]


@torch.no_grad()
def anatomy(model: nn.Module, x: Tensor) -> Anatomy:
    """Return the anatomy of a model on the first sample of x (B, ...)."""
    with trace() as decided:
        model(x)
    opened = _forced(model, x, closed=None)
    full = float(opened.macs()[0])
    found = [
        Gate(
            decision.name,
            decision.kind,
            tuple(decision.margin.shape[1:]),
            full - float(_forced(model, x, closed=k).macs()[0]),
        )
        for k, decision in enumerate(opened.decisions.values())
    ]
    return Anatomy(float(decided.macs()[0]), full, found)


def _forced(model: nn.Module, x: Tensor, *, closed: int | None) -> Trace:
    """Trace x with every gate open, but for the gate that decides as number `closed`."""
    with _all_open_but(closed), trace() as result:
        model(x)
    return result


@contextmanager
def _all_open_but(closed: int | None) -> Iterator[None]:
    made = 0

    def keep(margin: Tensor) -> Tensor:
        nonlocal made
        made += 1
        return torch.zeros_like(margin) if made - 1 == closed else torch.ones_like(margin)

    with gates.using(keep):
        yield
