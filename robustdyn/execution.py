"""Dense and sparse execution: the two ways to run one dynamic network.

Dense computes everything and multiplies by keep, so it has a gradient (attacks, training).
Sparse computes only what is kept, so it is fast (timing, serving). Both give the same logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from robustdyn.errors import UserError, suggest

_MODES = ("dense", "sparse")
_mode: ContextVar[str] = ContextVar("robustdyn_execution", default="dense")


@contextmanager
def execution(mode: str) -> Iterator[None]:
    """Run every model inside in `mode`, "dense" (the default) or "sparse".

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
        yield
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
