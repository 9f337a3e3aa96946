"""Fold what follows a convolution into it: a batch norm in eval, then a ReLU."""

from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class Folded(NamedTuple):
    """A convolution whose weight (O, C, k, k) and bias (O,) do the work of its batch norm too."""

    weight: Tensor
    bias: Tensor | None
    relu: bool


_Key = tuple[tuple[int, int], ...]
_folded: WeakKeyDictionary[nn.Module, tuple[_Key, Tensor, Tensor]] = WeakKeyDictionary()


def folded(conv: nn.Conv2d, then: Callable[[Tensor], Tensor]) -> Folded | None:
    """Return `conv` with `then` folded in, or None where that cannot be.

    It can for a batch norm in eval with running statistics, a ReLU, both in this order, and the
    identity, as modules. The result is kept until a parameter or a statistic changes.
    """
    parts = list(then) if isinstance(then, nn.Sequential) else [then]
    parts = [part for part in parts if not isinstance(part, nn.Identity)]
    relu = bool(parts) and isinstance(parts[-1], nn.ReLU)
    rest = parts[:-1] if relu else parts
    if not rest:
        return Folded(conv.weight, conv.bias, relu)
    norm = rest[0]
    if len(rest) > 1 or not isinstance(norm, nn.BatchNorm2d):
        return None
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    return Folded(*_with_norm(conv, norm), relu)


def _with_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    key = _key(conv, norm)
    known = _folded.get(conv)
    if key is not None and known is not None and known[0] == key:
        return known[1], known[2]
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale if conv.bias is None else (conv.bias - mean) * scale
    shift = shift if norm.bias is None else shift + norm.bias
    weight = (conv.weight * scale[:, None, None, None]).detach()
    if key is not None:
        _folded[conv] = key, weight, shift.detach()
    return weight, shift.detach()


def _key(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> _Key | None:
    """What changes whenever a tensor does; None for tensors that do not tell."""
    tensors = (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    present = [tensor for tensor in tensors if tensor is not None]
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in present):
        return None
    return tuple((tensor.data_ptr(), tensor._version) for tensor in present)
