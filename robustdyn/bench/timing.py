"""Interleaved timing: calls in turn, so that a busy machine slows all of them alike."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

Call = Callable[[], object]
LEAST = 2e-3  # seconds; a shorter call is repeated until one measurement takes as long
STEADY = 0.05  # the same, of calls that are measured in their steady state


class Spread(NamedTuple):
    """Median and quartiles of several measurements."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of at least one value."""
    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return Spread(median, low, high)


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Return first / second, round by round."""
    return [a / b for a, b in zip(first, second, strict=True)]


def take_turns(
    calls: Mapping[str, Call], *, rounds: int, device: str = "cpu", steady: bool = False
) -> dict[str, list[float]]:
    """Return the seconds of each call in every round; each round starts with the next one.

    Args:
        calls: by name; all are called before the first round, to warm up.
        rounds: how often each is measured.
        device: what they run on, "cpu" or "cuda"; a measurement ends when its work is done.
        steady: whether a measurement begins with a call that is not timed and then takes longer, so
            that not the change from one call to another is measured: each finds caches, branch
            predictors and allocator as the other left them.
    """
    for call in calls.values():
        call()
    least = STEADY if steady else LEAST
    repeats = {
        name: max(1, ceil(least / _seconds(call, 1, device))) for name, call in calls.items()
    }
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            if steady:
                calls[name]()
            seconds[name].append(_seconds(calls[name], repeats[name], device))
    return seconds


def interleaved(first: Call, second: Call, *, rounds: int) -> dict:
    """Return the ratio first / second of paired runs and the seconds of each, with spread."""
    seconds = take_turns({"first": first, "second": second}, rounds=rounds)
    return {
        "ratio": _named(ratios(seconds["first"], seconds["second"])),
        "first_seconds": _named(seconds["first"]),
        "second_seconds": _named(seconds["second"]),
        "rounds": rounds,
    }


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch run on so many threads inside; None leaves its number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wait(device: str) -> None:
    """Wait until the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def _seconds(call: Call, repeats: int, device: str) -> float:
    with _no_collection():
        wait(device)
        start = perf_counter()
        for _ in range(repeats):
            call()
        wait(device)
        return (perf_counter() - start) / repeats


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of a measurement, as timeit does."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _named(values: Sequence[float]) -> dict[str, float]:
    found = spread(values)
    return {"median": found.median, "low_quartile": found.low, "high_quartile": found.high}
