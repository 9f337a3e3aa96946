"""Weights in the order in which the kernels read them, remembered while they do not change."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def pack(weight: Tensor, groups: int = 1, *, transposed: bool = False) -> Tensor:
    """Return the weight (O, C / groups, kh, kw) as (kh, kw, depth, columns); (O, C) as (C, O).

    Depth is what is summed over in a group, columns are those of all groups: C / groups and O, or
    transposed O / groups and C. For bf16, two neighbours in depth are neighbours in memory.
    """
    return _remembered(weight, _arrange, groups, transposed)


def pack_experts(weight: Tensor) -> Tensor:
    """Return the weights (E, K, N), for bf16 as (E, K / 2, N, 2)."""
    if weight.dtype == torch.float32:
        return weight.contiguous()
    return _remembered(weight, _pair)


def _remembered(weight: Tensor, arrange: Callable[..., Tensor], *options: Any) -> Tensor:
    """Return arrange(weight, *options), made anew only if the weight has changed since.

    Changes are known by the tensor's version, which writing to `weight.data` leaves as it is.
    During the capture of a CUDA graph the weight is arranged anew, as a part of the graph.
    """
    if weight.is_inference() or (weight.is_cuda and torch.cuda.is_current_stream_capturing()):
        return arrange(weight, *options)
    stamp = (weight._version, weight.data_ptr())
    known = _packed.setdefault(weight, {})
    if known.get(options, (None, None))[0] != stamp:
        known[options] = (stamp, arrange(weight, *options))
    return known[options][1]


def _pair(weight: Tensor) -> Tensor:
    return weight.detach().unflatten(1, (-1, 2)).transpose(2, 3).contiguous()


def _arrange(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    count, depth, height, width = (*weight.shape, 1, 1)[:4]
    ways = weight.detach().reshape(groups, count // groups, depth, height, width)
    if not transposed:
        ways = ways.transpose(1, 2)
    # (groups, depth, columns of a group, kh, kw)
    if weight.dtype == torch.float32:
        return ways.permute(3, 4, 1, 0, 2).contiguous()
    pairs = ways.unflatten(1, (-1, 2))
    return pairs.permute(4, 5, 1, 0, 3, 2).contiguous()
