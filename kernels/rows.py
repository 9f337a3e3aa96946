"""Gather and scatter of rows: samples, tokens, time steps, positions."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.operators import operator


@kernel
def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return x[rows], (n, ...), for x (R, ...) and ascending unique int64 rows (n,).

    The rows of a channels-last x are copied whole, and the result is channels-last too.
    """
    if channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


@kernel
def scatter_rows(
    y: Tensor, rows: Tensor, out: Tensor, *, add: bool = False, in_place: bool = False
) -> Tensor:
    """Return out (R, ...) with out[rows] replaced by y (n, ...).

    Args:
        y: (n, ...).
        rows: (n,) int64, unique.
        out: (R, ...).
        add: whether y is added to out[rows] instead.
        in_place: whether `out` itself is written, then without a gradient, instead of a copy.

    The result is laid out as `out` is.
    """
    if channels_last(out):
        y, flat = y.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
        done = _scattered(y, rows, flat, add, in_place)
        return out if in_place else done.permute(0, 3, 1, 2)
    return _scattered(y, rows, out, add, in_place)


def channels_last(x: Tensor) -> bool:
    """Return whether x (R, C, H, W) lies in memory as (R, H, W, C)."""
    last = torch.channels_last
    return x.dim() == 4 and x.is_contiguous(memory_format=last) and not x.is_contiguous()


def _scattered(y: Tensor, rows: Tensor, out: Tensor, add: bool, in_place: bool) -> Tensor:
    if in_place:
        return out.index_add_(0, rows, y) if add else out.index_copy_(0, rows, y)
    return out.index_add(0, rows, y) if add else out.index_copy(0, rows, y)


def _keep_rows(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, rows = inputs
    ctx.save_for_backward(rows)
    ctx.shape = x.shape


def _gather_backward(ctx: Any, grad: Tensor) -> tuple:
    (rows,) = ctx.saved_tensors
    return scatter_rows(grad, rows, grad.new_zeros(ctx.shape), add=True), None


def _gather_fake(x: Tensor, rows: Tensor) -> Tensor:
    if channels_last(x):
        _, channels, height, width = x.shape
        return x.new_empty(rows.shape[0], height, width, channels).permute(0, 3, 1, 2)
    return x.new_empty(rows.shape[0], *x.shape[1:])


def _keep_mode(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, rows, _, ctx.add = inputs
    ctx.save_for_backward(rows)


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple:
    (rows,) = ctx.saved_tensors
    inner = gather_rows(grad, rows)
    outer = grad if ctx.add else scatter_rows(inner.new_zeros(inner.shape), rows, grad)
    return inner, None, outer, None


def _new(y: Tensor, rows: Tensor, out: Tensor, add: bool = False) -> Tensor:
    return scatter_rows.run(y, rows, out, add=add)


def _in_place(y: Tensor, rows: Tensor, out: Tensor, add: bool = False) -> None:
    scatter_rows.run(y, rows, out, add=add, in_place=True)


gather_rows.operator = operator(
    "gather_rows(Tensor x, Tensor rows) -> Tensor",
    gather_rows.run,
    fake=_gather_fake,
    setup=_keep_rows,
    backward=_gather_backward,
)
_scatter = operator(
    "scatter_rows(Tensor y, Tensor rows, Tensor out, bool add=False) -> Tensor",
    _new,
    fake=lambda y, rows, out, add=False: out.clone(),
    setup=_keep_mode,
    backward=_scatter_backward,
)
_scatter_to = operator(
    "scatter_rows_(Tensor y, Tensor rows, Tensor(a!) out, bool add=False) -> ()",
    _in_place,
    fake=lambda *_, **__: None,
)


def _call(
    y: Tensor, rows: Tensor, out: Tensor, *, add: bool = False, in_place: bool = False
) -> Tensor:
    if not in_place:
        return _scatter(y, rows, out, add)
    _scatter_to(y, rows, out, add)
    return out


scatter_rows.operator = _call
