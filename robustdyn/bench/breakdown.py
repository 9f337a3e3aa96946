"""Where the time of a model goes: into convolutions and matrix products, or around them."""

import statistics
from time import perf_counter
from typing import Any, NamedTuple

from torch.utils._python_dispatch import TorchDispatchMode

from robustdyn.bench.timing import Call
from robustdyn.macs import formula_of

PASSES = 5


class Breakdown(NamedTuple):
    """What the products of a call are, and how long they take.

    Attributes:
        macs: multiply-accumulates of the whole batch.
        products: how many convolutions, matrix products and kernels with MACs ran.
        seconds: in these, the median of several passes.
    """

    macs: float
    products: int
    seconds: float


def break_down(call: Call) -> Breakdown:
    """Return what a call on the CPU spends in products; watching slows the rest, not these."""
    passes = []
    for _ in range(PASSES):
        with _Watch() as watch:
            call()
        passes.append(watch)
    return Breakdown(
        passes[-1].macs,
        passes[-1].products,
        statistics.median(watch.seconds for watch in passes),
    )


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
        formula = formula_of(func)
        if formula is None:
            return func(*args, **(kwargs or {}))
        start = perf_counter()
        out = func(*args, **(kwargs or {}))
        seconds = perf_counter() - start
        macs = formula(*args, **(kwargs or {}), out_val=out)
        if macs:
            self.macs += macs
            self.products += 1
            self.seconds += seconds
        return out
