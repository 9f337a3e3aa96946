"""Experts on the GPU: sort by expert, multiply, sum what a token's experts say."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels import experts as reference
from robustdyn.kernels.cuda.launch import launch
from robustdyn.kernels.cuda.packing import pack_experts
from robustdyn.kernels.cuda.product import multiply_sorted, product_reasons
from robustdyn.kernels.cuda.support import aligned, ceil_div, not_on_cuda, register, row_grid
from robustdyn.kernels.experts import Routes

_THREADS = 256


def route_experts(chosen: Tensor, experts: int) -> Routes:
    """Return the assignments of tokens to experts, sorted by expert, tokens in order."""
    order = chosen.new_empty(chosen.numel())
    offsets = chosen.new_empty(experts + 1)
    chosen = chosen.contiguous()
    launch("experts", "route", experts, _THREADS, chosen, chosen.numel(), experts, order, offsets)
    return Routes(order, offsets)


def grouped_matmul(
    x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None = None, *, relu: bool = False
) -> Tensor:
    """Return [relu](x[rows of e] @ weight[e] + bias[e]), (n, N), for every expert e.

    float32 runs on tensor cores (tf32) if torch.backends.cuda.matmul.allow_tf32 says so.
    """
    out = x.new_empty(x.shape[0], weight.shape[2])
    tf32 = torch.backends.cuda.matmul.allow_tf32
    packed = pack_experts(weight)
    multiply_sorted(x.contiguous(), packed, offsets, out, tf32=tf32, bias=bias, relu=relu)
    return out


def combine_experts(y: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over a token's choices of weight * y, (T, N), in the order of the choices."""
    y, weights, count = y.contiguous(), weights.contiguous(), order.numel()
    (tokens, choices), width = weights.shape, y.shape[1]
    place = order.new_empty(count, dtype=torch.int32)
    launch("experts", "invert", ceil_div(count, _THREADS), _THREADS, order, place, count)
    out = y.new_empty(tokens, width)
    name = "combine_f32" if y.dtype == torch.float32 else "combine_bf16"
    wide = width % 4 == 0 and aligned(y, out)
    blocks, threads = row_grid(tokens, width // 4 if wide else width)
    kernel = name if wide else f"{name}_any"
    launch("experts", kernel, blocks, threads, y, place, weights, out, tokens, choices, width)
    return out


def _route_reasons(chosen: Tensor, experts: int) -> list[str]:
    return not_on_cuda(chosen, dtypes=(torch.int64,))


def _matmul_reasons(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> list[str]:
    return product_reasons(x, weight, weight.shape[2])


def _combine_reasons(y: Tensor, order: Tensor, weights: Tensor) -> list[str]:
    return not_on_cuda(y, weights)


register(reference.route_experts, route_experts, _route_reasons)
register(reference.grouped_matmul, grouped_matmul, _matmul_reasons)
register(reference.combine_experts, combine_experts, _combine_reasons)
