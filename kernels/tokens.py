"""Gather and scatter of tokens: each sample keeps its own."""

from typing import Any

from torch import Tensor

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.operators import operator


@kernel
def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """Return x[b, keep[b]], (B, K, D), for x (B, N, D) and ascending unique int64 keep (B, K)."""
    return x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))


@kernel
def scatter_tokens(y: Tensor, keep: Tensor, out: Tensor) -> Tensor:
    """Return a copy of out (B, N, D) in which out[b, keep[b]] is y[b], (K, D)."""
    return out.scatter(1, keep[:, :, None].expand(-1, -1, out.shape[2]), y)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.shape = inputs[0].shape


def _gather_backward(ctx: Any, grad: Tensor) -> tuple:
    (keep,) = ctx.saved_tensors
    return scatter_tokens(grad, keep, grad.new_zeros(ctx.shape)), None


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple:
    (keep,) = ctx.saved_tensors
    inner = gather_tokens(grad, keep)
    return inner, None, scatter_tokens(inner.new_zeros(inner.shape), keep, grad)


gather_tokens.operator = operator(
    "gather_tokens(Tensor x, Tensor keep) -> Tensor",
    gather_tokens.run,
    fake=lambda x, keep: x.new_empty(*keep.shape, x.shape[2]),
    setup=_keep,
    backward=_gather_backward,
)
scatter_tokens.operator = operator(
    "scatter_tokens(Tensor y, Tensor keep, Tensor out) -> Tensor",
    scatter_tokens.run,
    fake=lambda y, keep, out: out.clone(),
    setup=_keep,
    backward=_scatter_backward,
)
