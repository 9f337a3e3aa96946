"""One step of a recurrence in C++: both products and the gates, of the active samples alone."""

import ctypes
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.cpp_conv import library, tensor_reasons
from robustdyn.kernels.dispatch import Implementation
from robustdyn.kernels.native import integers, plain, pointer, pointers, threads
from robustdyn.kernels.packing import packed
from robustdyn.kernels.recurrent import CELLS, check_cell, masked_rnn_step

LEAST_WIDTH = 8  # of a vector: with less, torch is faster


class StepCall(ctypes.Structure):
    """The struct Step of cpp/tables.h."""

    _fields_ = [
        *pointers("x", "h", "c", "mask", "weight_ih", "weight_hh"),
        *pointers("bias_ih", "bias_hh", "weight_read", "bias_read"),
        *pointers("read", "next_h", "next_c", "next_read"),
        *integers("batch", "inputs", "units", "reads", "x_step", "cell", "threads"),
    ]


def _reasons(x: Tensor, state: list[Tensor], *tensors: Tensor | None, **_: Any) -> list[str]:
    reasons = tensor_reasons(x, *state, *tensors)
    if not reasons and library().width < LEAST_WIDTH:
        return [f"vectors of fewer than {LEAST_WIDTH} floats: torch is faster"]
    return reasons


def _pack(weight: Tensor, width: int, units: int) -> Tensor:
    """In vectors of units: [depth][gates][vector], padded with 0."""
    gates = F.pad(weight.unflatten(0, (-1, units)), (0, 0, 0, -units % width))
    return gates.unflatten(1, (-1, width)).permute(1, 3, 0, 2).contiguous()


def _step(
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
    check_cell(cell)
    lib = library()
    x = x if x.stride(1) == 1 else x.contiguous()  # a time step of (B, T, F) stays where it is
    old = [part.contiguous() for part in state]
    new = [torch.empty_like(part) for part in old]
    units = old[0].shape[1]
    pack = partial(_pack, units=units)
    weights = [packed(w, f"step {units}", lib.width, pack) for w in (weight_ih, weight_hh)]
    vectors = [plain(vector) for vector in (bias_ih, bias_hh, weight_read, bias_read)]
    mask = mask.contiguous()
    h, c, read = _parts(old, cell, weight_read)
    arguments = (x, h, c, mask, *weights, *vectors, read, *_parts(new, cell, weight_read))
    reads = 0 if weight_read is None else weight_read.shape[0]
    options = (x.stride(0), list(CELLS).index(cell), threads())
    lib.call("step", StepCall(*[pointer(a) for a in arguments], *x.shape, units, reads, *options))
    return new


def _parts(
    state: list[Tensor], cell: str, weight_read: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return h, c and what is read from h."""
    c = state[1] if cell == "lstm" else None
    return state[0], c, None if weight_read is None else state[-1]


masked_rnn_step.implementations.append(Implementation("cpp", _step, _reasons))
