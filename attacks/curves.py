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

    def late_gain(self, seed: int) -> float:
        """Return what part of the best value's whole rise came in the last steps, 0 to 1.

        0 where the sample left before the end or nothing rose; NaN where it took no part, or the
        run was too short to tell.
        """
        values = self.values.get(seed)
        if values is None or self.steps < _LAST_PART:
            return float("nan")
        best = np.maximum.accumulate(values)
        rise = best[-1] - best[0]
        if len(values) < self.steps or not rise > 0:
            return 0.0
        late = min(LAST_STEPS, self.steps // _LAST_PART)
        return float((best[-1] - best[-1 - late]) / rise)


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

    True if the last steps made more than a twentieth of the whole rise, in the mean over its runs;
    None where no run tells.
    """
    gains = [[g for g in (c.late_gain(seed) for c in curves) if g == g] for seed in seeds]
    return [sum(known) > STILL_RISING * len(known) if known else None for known in gains]
