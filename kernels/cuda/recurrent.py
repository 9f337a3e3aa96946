"""One step of a recurrence on the GPU, for the samples whose mask is on."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels import recurrent
from robustdyn.kernels.compaction import Active
from robustdyn.kernels.cuda.active import mask_compact
from robustdyn.kernels.cuda.launch import launch
from robustdyn.kernels.cuda.packing import pack
from robustdyn.kernels.cuda.product import convolve
from robustdyn.kernels.cuda.support import not_on_cuda, register, row_grid
from robustdyn.kernels.recurrent import check_cell


def masked_rnn_step(
    x: Tensor,
    state: list[Tensor],
    mask: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_read: None = None,
    bias_read: None = None,
    *,
    cell: str = "gru",
) -> list[Tensor]:
    """Return the next state: cell(x, state) where the mask is on, a copy of the state elsewhere.

    Two products over the rows of the active samples, then their gates.
    """
    check_cell(cell)
    active = mask_compact(mask)
    old = [part.contiguous() for part in state]
    new = [part.clone() for part in old]
    from_x = _rows(x, weight_ih, bias_ih, active)
    from_h = _rows(old[0], weight_hh, bias_hh, active)
    units = old[0].shape[1]
    blocks, threads = row_grid(mask.numel(), units)
    kernel = "rnn_tanh" if cell == "tanh" else cell
    read = {"gru": old[:1], "lstm": old[1:], "tanh": []}[cell]
    products = (from_x, from_h, active.positions, active.number)
    launch("recurrent", kernel, blocks, threads, *products, *read, *new, units)
    return new


def _rows(x: Tensor, weight: Tensor, bias: Tensor | None, active: Active) -> Tensor:
    """Return x @ weight.T + bias, (B, gates), of the active samples, in the first rows."""
    out = x.new_empty(x.shape[0], weight.shape[0])
    image, packed = x.contiguous()[:, None, None], pack(weight)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    convolve(image, packed, active, out, tf32=tf32, bias=bias, fill="leave", compact=True)
    return out


def _reasons(x: Tensor, state: list[Tensor], mask: Tensor, *weights: Any, **_: Any) -> list[str]:
    reasons = not_on_cuda(x, *state, *weights, dtypes=(torch.float32,))
    if not reasons and any(weight is not None for weight in weights[4:]):
        return ["there is no kernel that reads from the new state"]
    return reasons


register(recurrent.masked_rnn_step, masked_rnn_step, _reasons)
