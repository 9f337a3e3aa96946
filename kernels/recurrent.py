"""One step of a recurrence, for the samples whose mask is on."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

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
    weight_read: Tensor | None = None,
    bias_read: Tensor | None = None,
    *,
    cell: str = "gru",
) -> list[Tensor]:
    """Return the next state: cell(x, state) where the mask is on, a copy of the state elsewhere.

    Args:
        x: (B, F).
        state: [h], or [h, c] for an LSTM; each (B, H). With weights to read, then (B, R), which
            becomes sigmoid(weight_read h + bias_read) of the new h.
        mask: (B,) bool.
        weight_ih, weight_hh, bias_ih, bias_hh: as in torch's cells, gates stacked.
        weight_read, bias_read: (R, H) and (R,).
        cell: "gru", "lstm" or "tanh".

    Raises:
        ValueError: for an unknown cell.
    """
    check_cell(cell)
    rows = mask.nonzero().flatten()
    old = [part.index_select(0, rows) for part in state]
    step = CELLS[cell]
    parameters = (weight_ih, weight_hh, bias_ih, bias_hh)
    new = step(x.index_select(0, rows), old[:2] if cell == "lstm" else old[0], *parameters)
    news = [*new] if cell == "lstm" else [new]
    if weight_read is not None:
        news.append(torch.sigmoid(F.linear(news[0], weight_read, bias_read)))
    return [part.index_copy(0, rows, n) for part, n in zip(state, news, strict=True)]


def _macs(x, state, mask, weight_ih, weight_hh, bias_ih, bias_hh, weight_read, *_, **__) -> int:
    weights = [w for w in (weight_ih, weight_hh, weight_read) if w is not None]
    return int(mask.sum()) * sum(weight.numel() for weight in weights)


_step = operator(
    "masked_rnn_step(Tensor x, Tensor[] state, Tensor mask, Tensor weight_ih, Tensor weight_hh,"
    " Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_read, Tensor? bias_read, *,"
    ' str cell="gru") -> Tensor[]',
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
    weight_read: Tensor | None = None,
    bias_read: Tensor | None = None,
    *,
    cell: str = "gru",
) -> list[Tensor]:
    # Torch's gradients of lists of tensors need every argument: the operator has no defaults.
    weights = (weight_ih, weight_hh, bias_ih, bias_hh, weight_read, bias_read)
    return _step(x, list(state), mask, *weights, cell=cell)


masked_rnn_step.operator = _call
