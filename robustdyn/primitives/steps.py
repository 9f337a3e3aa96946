"""Step a recurrence: update the state only for the samples whose gate is open."""

from collections.abc import Callable

from torch import Tensor

from robustdyn.decision import Decision
from robustdyn.execution import is_sparse
from robustdyn.kernels import gather_rows, scatter_rows
from robustdyn.trace import mark_sparse, region

State = tuple[Tensor, ...]


def step(gate: Decision, cell: Callable[[Tensor, State], State], x: Tensor, state: State) -> State:
    """Return cell(x, state) for the samples that `gate` keeps and `state`, copied, for the others.

    Skip RNN's form, Campos et al. 2018, arXiv:1708.06834.

    Args:
        gate: a decision with margin (B,).
        cell: maps an input (n, F) and a state to the next state, sample by sample.
        x: (B, F), the input at this time step.
        state: tensors (B, ...).
    """
    if is_sparse():
        mark_sparse()
        rows = gate.kept.nonzero().flatten()
        if not len(rows):
            return state
        new = cell(gather_rows(x, rows), tuple(gather_rows(part, rows) for part in state))
        return tuple(scatter_rows(n, rows, old) for n, old in zip(new, state, strict=True))
    with region(gate.share()):
        new = cell(x, state)
    return tuple(_mix(gate.keep, n, old) for n, old in zip(new, state, strict=True))


def _mix(keep: Tensor, new: Tensor, old: Tensor) -> Tensor:
    keep = keep.reshape(-1, *[1] * (new.dim() - 1))
    return keep * new + (1 - keep) * old
