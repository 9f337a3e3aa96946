"""Experts: sort tokens by expert, one matrix product for each, sum what a token's experts say.

Plain torch is enough on a CPU: with 128 tokens per expert or more, the products dominate.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.operators import operator
from robustdyn.kernels.reference_gradient import reference_gradient


class Routes(NamedTuple):
    """Assignments sorted by expert.

    Attributes:
        order: (T k,) int64, the assignment (token * k + choice) of each sorted row.
        offsets: (E + 1,) int64; the rows of expert e are offsets[e] to offsets[e + 1].
    """

    order: Tensor
    offsets: Tensor


@kernel
def route_experts(chosen: Tensor, experts: int) -> Routes:
    """Return the assignments of tokens to experts, sorted by expert, tokens in order.

    Args:
        chosen: (T, k) int64, the experts of each token.
        experts: E, how many there are.
    """
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    bounds = torch.arange(experts + 1, device=chosen.device)
    return Routes(order, torch.searchsorted(flat[order], bounds))


@kernel
def grouped_matmul(
    x: Tensor, weight: Tensor, offsets: Tensor, bias: Tensor | None = None, *, relu: bool = False
) -> Tensor:
    """Return [relu](x[rows of e] @ weight[e] + bias[e]), (n, N), for every expert e.

    Args:
        x: (n, K), sorted by expert.
        weight: (E, K, N).
        offsets: (E + 1,) int64; the rows of expert e are offsets[e] to offsets[e + 1].
        bias: (E, N).
        relu: whether negative results become 0.
    """
    y = x.new_empty(x.shape[0], weight.shape[2])
    bounds = offsets.tolist()
    for e, (begin, end) in enumerate(pairwise(bounds)):
        rows = x[begin:end]
        y[begin:end] = rows @ weight[e] if bias is None else torch.addmm(bias[e], rows, weight[e])
    return y.relu_() if relu else y


@kernel
def combine_experts(y: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over a token's choices of weight * y, (T, N).

    Args:
        y: (T k, N), sorted by expert.
        order: (T k,) int64, from route_experts.
        weights: (T, k).
    """
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    parts = y[back].unflatten(0, weights.shape)  # (T, k, N)
    return (parts * weights[:, :, None]).sum(1)


def _matmul_macs(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return x.numel() * weight.shape[2]


_route = operator(
    "route_experts(Tensor chosen, int experts) -> (Tensor, Tensor)",
    route_experts.run,
    fake=lambda chosen, experts: (chosen.new_empty(chosen.numel()), chosen.new_empty(experts + 1)),
)
route_experts.operator = lambda chosen, experts: Routes(*_route(chosen, experts))
grouped_matmul.operator = operator(
    "grouped_matmul(Tensor x, Tensor weight, Tensor offsets, Tensor? bias=None, *,"
    " bool relu=False) -> Tensor",
    grouped_matmul.run,
    fake=lambda x, weight, *_, **__: x.new_empty(x.shape[0], weight.shape[2]),
    macs=_matmul_macs,
    **reference_gradient(grouped_matmul.reference),
)
combine_experts.operator = operator(
    "combine_experts(Tensor y, Tensor order, Tensor weights) -> Tensor",
    combine_experts.run,
    fake=lambda y, order, weights: y.new_empty(weights.shape[0], y.shape[1]),
    **reference_gradient(combine_experts.reference),
)
