"""Add bits: compute a convolution of the high bits, and of the low bits only where it matters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.decision import Decision
from robustdyn.execution import is_sparse
from robustdyn.kernels import gather_rows
from robustdyn.trace import mark_sparse, precision, region


def conv_in_bits(
    gates: Sequence[Decision],
    conv: nn.Module,
    planes: Sequence[Tensor],
    *,
    weight_bits: int,
    plane_bits: Sequence[int],
) -> Tensor:
    """Return the sum of conv(plane), (B, O, H', W'), over the planes that each sample reads.

    A convolution is linear, so an input cut into bit planes may be computed plane by plane: the
    high bits always, each lower plane where its gate and those before it are open. In the form of
    Precision Gating, Zhang et al. 2020, arXiv:2002.07136, with gates per sample.

    Args:
        gates: one decision with margin (B,) for every plane but the first.
        conv: an nn.Conv2d without bias, whose weights have `weight_bits`.
        planes: (B, C, H, W) each, from the high bits to the low; their sum is the whole input.
        weight_bits, plane_bits: what the operands would have on hardware, for bit operations.
    """
    if not isinstance(conv, nn.Conv2d) or conv.bias is not None:
        raise TypeError("conv_in_bits needs an nn.Conv2d without bias")
    with precision(weights=weight_bits, activations=plane_bits[0]):
        total = conv(planes[0])
    lower = list(zip(gates, planes[1:], plane_bits[1:], strict=True))
    if is_sparse():
        mark_sparse()
        rows = torch.arange(len(total), device=total.device)
        for gate, plane, _ in lower:
            rows = rows[gate.kept[rows]]
            if not len(rows):
                break
            total = total.index_add(0, rows, conv(gather_rows(plane, rows)))
        return total
    return total + _rest(conv, lower, weight_bits)


def _rest(conv: nn.Module, lower: list[tuple[Decision, Tensor, int]], weight_bits: int) -> Tensor:
    gate, plane, bits = lower[0]
    with region(gate.share()):
        with precision(weights=weight_bits, activations=bits):
            total = conv(plane)
        if len(lower) > 1:
            total = total + _rest(conv, lower[1:], weight_bits)
    return gate.keep[:, None, None, None] * total
