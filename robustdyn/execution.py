"""Dense and sparse execution: the two ways to run one dynamic network.

Dense computes everything and multiplies by keep, so it has a gradient (attacks, training).
Sparse computes only what is kept, so it is fast (timing, serving). Both give the same logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from robustdyn.errors import UserError, suggest
from robustdyn.kernels.dispatch import Runs, recording

_MODES = ("dense", "sparse")
_mode: ContextVar[str] = ContextVar("robustdyn_execution", default="dense")


@dataclass(frozen=True, eq=False)
class Report:
    """Which implementation ran for which kernel, and how often."""

    runs: Runs

    def rows(self) -> list[tuple[str, str, int]]:
        """Return (kernel, implementation, times), sorted."""
        return sorted((*names, times) for names, times in self.runs.items())

    def __str__(self) -> str:
        return "\n".join(f"{kernel}: {name}, {times} times" for kernel, name, times in self.rows())


@contextmanager
def execution(mode: str, *, report: bool = False) -> Iterator[Report | None]:
    """Run every model inside in `mode`, "dense" (the default) or "sparse".

    Yields a Report, which fills while kernels run, if `report` is true, else None.

    Raises:
        UserError: if `mode` is neither.
    """
    if mode not in _MODES:
        raise UserError(
            f"Unknown execution '{mode}'.",
            f"{suggest(mode, _MODES)}Choose 'dense' or 'sparse'.",
        )
    token = _mode.set(mode)
    try:
        if report:
            with recording() as runs:
                yield Report(runs)
        else:
            yield None
    finally:
        _mode.reset(token)


def is_sparse() -> bool:
    """Return True in sparse execution. Only primitives ask.

    Raises:
        UserError: in sparse execution with gradients enabled.
    """
    if _mode.get() == "dense":
        return False
    if torch.is_grad_enabled():
        raise UserError(
            "Sparse execution has no gradient.",
            "Use execution('dense') to attack or train, torch.no_grad() to time.",
        )
    return True
