"""One step of a recurrence, for the samples whose mask is on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.operators import operator
from robustdyn.kernels.reference_gradient import reference_gradient

CELLS: dict[str, Callable] = {
    "gru": torch.gru_cell,
    "lstm": torch.lstm_cell,
    "tanh": torch.rnn_tanh_cell,
}


def check_cell(cell: str) -> None:
    """Raise ValueError for an unknown cell."""
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, not {cell!r}")


@kernel
def masked_rnn_step(
    x: Tensor,
    state: list[Tensor],
    mask: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    cell: str = "gru",
) -> list[Tensor]:
    """Return the next state: cell(x, state) where the mask is on, a copy of the state elsewhere.

    Args:
        x: (B, F).
        state: [h], or [h, c] for an LSTM; each (B, H).
        mask: (B,) bool.
        weight_ih, weight_hh, bias_ih, bias_hh: as in torch's cells, gates stacked.
        cell: "gru", "lstm" or "tanh".

    Raises:
        ValueError: for an unknown cell.
    """
    check_cell(cell)
    rows = mask.nonzero().flatten()
    old = [part.index_select(0, rows) for part in state]
    step = CELLS[cell]
    parameters = (weight_ih, weight_hh, bias_ih, bias_hh)
    new = step(x.index_select(0, rows), old if cell == "lstm" else old[0], *parameters)
    news = new if cell == "lstm" else (new,)
    return [part.index_copy(0, rows, n) for part, n in zip(state, news, strict=True)]


def _macs(x, state, mask, weight_ih, weight_hh, *_: Any, **__: Any) -> int:
    return int(mask.sum()) * (weight_ih.numel() + weight_hh.numel())


_step = operator(
    "masked_rnn_step(Tensor x, Tensor[] state, Tensor mask, Tensor weight_ih, Tensor weight_hh,"
    ' Tensor? bias_ih, Tensor? bias_hh, *, str cell="gru") -> Tensor[]',
    masked_rnn_step.run,
    fake=lambda x, state, *_, **__: [part.new_empty(part.shape) for part in state],
    macs=_macs,
    **reference_gradient(masked_rnn_step.reference),
)


def _call(
    x: Tensor,
    state: list[Tensor],
    mask: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    cell: str = "gru",
) -> list[Tensor]:
    # Torch's gradients of lists of tensors need every argument: the operator has no defaults.
    return _step(x, list(state), mask, weight_ih, weight_hh, bias_ih, bias_hh, cell=cell)


masked_rnn_step.operator = _call
