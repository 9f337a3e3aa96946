"""Where the time of a call goes: into convolutions and matrix products, or around them."""

import statistics
from collections.abc import Mapping
from time import perf_counter
from typing import Any, NamedTuple

from torch.utils._python_dispatch import TorchDispatchMode

from robustdyn.bench.timing import Call
from robustdyn.macs import formula_of


class Breakdown(NamedTuple):
    """What the products of a call are, and which part of its time they take.

    Attributes:
        macs: multiply-accumulates of the whole batch.
        products: how many convolutions, matrix products and kernels with MACs ran.
        part: of the time, the median over the rounds.
    """

    macs: float
    products: int
    part: float


def break_down(calls: Mapping[str, Call], *, rounds: int) -> dict[str, Breakdown]:
    """Return where the time of each call goes, on the CPU; the calls run in turn.

    Watching slows what is around the products, so each watched pass is set against one before it
    that is not watched.
    """
    watched: dict[str, list[_Watch]] = {name: [] for name in calls}
    parts: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = perf_counter()
            call()
            seconds = perf_counter() - start
            with _Watch() as watch:
                call()
            watched[name].append(watch)
            parts[name].append(min(1.0, watch.seconds / seconds))
    return {
        name: Breakdown(passes[0].macs, passes[0].products, statistics.median(parts[name]))
        for name, passes in watched.items()
    }


class _Watch(TorchDispatchMode):
    """Times every operation that multiplies and accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0.0
        self.products = 0
        self.seconds = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = formula_of(func)
        if formula is None:
            return func(*args, **kwargs)
        start = perf_counter()
        out = func(*args, **kwargs)
        seconds = perf_counter() - start
        macs = formula(*args, **kwargs, out_val=out)
        if macs:
            self.macs += macs
            self.products += 1
            self.seconds += seconds
        return out
