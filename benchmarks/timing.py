"""Interleaved timing: two calls in turn, so that a busy machine slows both alike."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch


def interleaved(first: Callable[[], object], second: Callable[[], object], *, rounds: int) -> dict:
    """Return the ratio first / second of paired runs and the seconds of each, with spread."""
    first(), second()
    pairs = []
    for k in range(rounds):
        calls = (first, second) if k % 2 == 0 else (second, first)
        times = [_seconds(call) for call in calls]
        pairs.append(times if k % 2 == 0 else times[::-1])
    ratios = [a / b for a, b in pairs]
    return {
        "ratio": _spread(ratios),
        "first_seconds": _spread([a for a, _ in pairs]),
        "second_seconds": _spread([b for _, b in pairs]),
        "rounds": rounds,
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _spread(values: list[float]) -> dict[str, float]:
    low, _, high = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "low_quartile": low, "high_quartile": high}


def report(result: dict) -> None:
    """Print a benchmark's result as JSON, with the machine it ran on."""
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    json.dump(result | {"machine": machine}, sys.stdout, indent=2)
    sys.stdout.write("\n")
