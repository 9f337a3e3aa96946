"""Gather and scatter of rows: samples, tokens, time steps, positions."""

from torch import Tensor

from robustdyn.kernels.dispatch import kernel


@kernel
def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return x[rows], (n, ...), for x (R, ...) and ascending unique int64 rows (n,)."""
    return x.index_select(0, rows)


@kernel
def scatter_rows(y: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """Return a copy of out (R, ...) in which out[rows] is y (n, ...); rows int64, unique."""
    return out.index_copy(0, rows, y)
