"""How the objective rose along an attack, for whoever asks: see `recording`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from torch import Tensor

LAST_STEPS = 10  # that should add little; of fewer than 50 steps the last fifth
STILL_RISING = 0.05  # of the whole rise in the last steps (Pintor et al. 2022, arXiv:2106.09947)
_LAST_PART = 5


class Curve:
    """The objective's value at every step of one run of an attack, by the samples' seeds."""

    def __init__(self, steps: int):
        self.steps = steps
        self.values: dict[int, list[float]] = {}

    def add(self, seeds: Sequence[int], value: Tensor) -> None:
        """Add one step: the value (n,) of the samples with these seeds, one of each."""
        for seed, number in dict(zip(seeds, value.tolist(), strict=True)).items():
            self.values.setdefault(seed, []).append(number)

    def tells(self) -> bool:
        """Return whether the run was long enough to have last steps."""
        return self.steps >= _LAST_PART

    def late_gain(self, seed: int) -> float:
        """Return what part of the best value's whole rise came in the last steps, 0 to 1.

        0 where the sample left before the end, with nothing left to gain, or nothing rose.
        """
        values = self.values[seed]
        best = np.maximum.accumulate(values)
        rise = best[-1] - best[0]
        if self.left(seed) or not rise > 0:
            return 0.0
        late = min(LAST_STEPS, self.steps // _LAST_PART)
        return float((best[-1] - best[-1 - late]) / rise)

    def left(self, seed: int) -> bool:
        """Return whether the sample left before the end."""
        return len(self.values[seed]) < self.steps


_curves: ContextVar[list[Curve] | None] = ContextVar("robustdyn_curves", default=None)


@contextmanager
def recording() -> Iterator[list[Curve]]:
    """Record a curve of every run of every gradient attack of ours made inside."""
    curves: list[Curve] = []
    token = _curves.set(curves)
    try:
        yield curves
    finally:
        _curves.reset(token)


def new_curve(steps: int) -> Curve | None:
    """Return the curve of a run that begins, None if nobody records."""
    curves = _curves.get()
    if curves is None:
        return None
    curves.append(Curve(steps))
    return curves[-1]


def still_rising(curves: Sequence[Curve], seeds: Sequence[int]) -> list[bool | None]:
    """Return for each seed whether the objective was still rising at the end of its runs, (B,).

    True if the last steps made more than a twentieth of the whole rise, in the mean over its runs.
    False where the sample had nothing left to gain: it left its last run before the end, or took
    part in none. None where every run was too short to tell.
    """
    telling = [curve for curve in curves if curve.tells()]
    if not telling:
        return [None for _ in seeds]
    return [_rising([curve for curve in telling if seed in curve.values], seed) for seed in seeds]


def _rising(runs: Sequence[Curve], seed: int) -> bool:
    if not runs or runs[-1].left(seed):
        return False
    return sum(run.late_gain(seed) for run in runs) > STILL_RISING * len(runs)
