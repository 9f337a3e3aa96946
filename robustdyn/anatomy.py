"""What the gates of a model guard, in MACs: traces of one sample with its gates forced."""

import random
from collections.abc import Callable
from functools import partial
from itertools import count
from operator import ne
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustdyn import gates
from robustdyn.trace import Trace, trace

DRAWS = 16  # of the other gates' decisions, for a gate that full inference does not reach


class Gate(NamedTuple):
    """A gate: its kind, its margin's shape in one sample, and the MACs saved by closing it alone.

    Closing an exit's gate stops there. A gate that full inference does not reach, such as one in
    the cheaper half of a tree, is closed among random decisions of the others.
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
    opened = _forced(model, x, lambda _: True)
    full = float(opened.macs()[0])
    found = [
        Gate(
            decision.name,
            decision.kind,
            tuple(decision.margin.shape[1:]),
            full - float(_forced(model, x, partial(ne, k)).macs()[0]) or _elsewhere(model, x, k),
        )
        for k, decision in enumerate(opened.decisions.values())
    ]
    return Anatomy(float(decided.macs()[0]), full, found)


def _elsewhere(model: nn.Module, x: Tensor, number: int) -> float:
    """The most that a gate guards where full inference never comes: behind another's other branch.

    Over random decisions of all other gates.
    """

    def saving(draw: int) -> float:
        closed = _forced(model, x, lambda gate: gate != number and _drawn(draw, gate))
        opened = _forced(model, x, lambda gate: gate == number or _drawn(draw, gate))
        return float(opened.macs()[0] - closed.macs()[0])

    return max(map(saving, range(DRAWS)))


def _drawn(draw: int, gate: int) -> bool:
    return random.Random(f"{draw} {gate}").random() < 0.5


def _forced(model: nn.Module, x: Tensor, opens: Callable[[int], bool]) -> Trace:
    """Trace x with every gate open or shut as `opens` says of its number in the forward pass."""
    made = count()

    def keep(margin: Tensor) -> Tensor:
        return torch.full_like(margin, float(opens(next(made))))

    with gates.using(keep), trace() as result:
        model(x)
    return result
