"""A batch norm in eval is a scale and a shift: folded into a convolution, with a ReLU, or alone."""

from collections.abc import Callable
from typing import NamedTuple, TypeGuard
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
    return Folded(*_with_norm(conv, norm), relu) if len(rest) == 1 and _is_affine(norm) else None


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the scale and the shift (C,) that `norm` is, without gradients.

    None where it is not: a batch norm in eval with running statistics is. Kept until it changes.
    """
    return _kept(norm, _key(norm), lambda: _scale_and_shift(norm)) if _is_affine(norm) else None


def _is_affine(norm: object) -> TypeGuard[nn.BatchNorm2d]:
    """Whether it is a batch norm that scales and shifts by what it has learned."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.training:
        return False
    return norm.running_mean is not None and norm.running_var is not None


def _with_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    def fold() -> tuple[Tensor, Tensor]:
        scale, shift = _scale_and_shift(norm)
        bias = shift if conv.bias is None else conv.bias * scale + shift
        weight = conv.weight.contiguous() * scale[:, None, None, None]
        return weight.detach(), bias.detach()

    return _kept(conv, _key(conv, norm), fold)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    return scale.detach(), shift.detach()


def _kept(
    module: nn.Module, key: _Key | None, make: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """What `make` made for this key, from memory if it is the same as last time."""
    known = _folded.get(module)
    if key is not None and known is not None and known[0] == key:
        return known[1], known[2]
    made = make()
    if key is not None:
        _folded[module] = key, *made
    return made


def _key(*modules: nn.Module) -> _Key | None:
    """What changes whenever a parameter or buffer does; None for tensors that do not tell."""
    tensors = [
        tensor
        for module in modules
        for own in (module._parameters, module._buffers)
        for tensor in own.values()
        if tensor is not None
    ]
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
