"""Step a recurrence: update the state only for the samples whose gate is open."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from robustdyn.decision import Decision
from robustdyn.execution import is_sparse
from robustdyn.kernels import gather_rows, masked_rnn_step, scatter_rows
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


def gru_step(gate: Decision, cell: nn.GRUCell, read: nn.Linear, x: Tensor, state: State) -> State:
    """Return what `step` returns for a GRU and the value sigmoid(read(h)) of its state h.

    Args:
        gate: a decision with margin (B,).
        cell, read: the GRU, with H units, and a layer from H to one value.
        x: (B, F), the input at this time step.
        state: h (B, H), and what was read from it (B,).
    """
    if not is_sparse():
        return step(gate, partial(gru_state, cell, read), x, state)
    mark_sparse()
    if not gate.kept.any():
        return state
    h, value = state
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, read.weight, read.bias)
    h, column = masked_rnn_step(x, [h, value[:, None]], gate.kept, *weights, cell="gru")
    return h, column[:, 0]


def gru_state(cell: nn.GRUCell, read: nn.Linear, x: Tensor, state: State) -> State:
    """Return the next state of a GRU, and what is read from it; see `gru_step`."""
    h = cell(x, state[0])
    return h, torch.sigmoid(read(h))[:, 0]


def selected(gate: Decision, new: Tensor, old: Tensor) -> Tensor:
    """Return `new` (B, ...) for the samples that `gate` keeps and `old` for the others."""
    if is_sparse():
        return torch.where(_beside(gate.kept, new), new, old)
    return _mix(gate.keep, new, old)


def _mix(keep: Tensor, new: Tensor, old: Tensor) -> Tensor:
    keep = _beside(keep, new)
    return keep * new + (1 - keep) * old


def _beside(keep: Tensor, values: Tensor) -> Tensor:
    """Return keep (B,) with as many dimensions as the values (B, ...)."""
    return keep.reshape(-1, *[1] * (values.dim() - 1))
