"""watching(): the outputs of a model's activation functions, for attacks on their density."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_ACTIVATIONS = frozenset(
    {
        *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardtanh, F.hardswish, F.mish),
        *(torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
    }
)


@contextmanager
def watching(into: list[Tensor]) -> Iterator[None]:
    """Append the output (B, ...) of every activation function called inside to `into`.

    Rectifiers and their smooth kin count, as functions, methods or modules; the squashing functions
    of gates (sigmoid, tanh, softmax) do not. Gradients pass as without it.
    """
    with _Watch(into):
        yield


class _Watch(TorchFunctionMode):
    def __init__(self, into: list[Tensor]):
        super().__init__()
        self._into = into

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in _ACTIVATIONS and isinstance(out, Tensor):
            self._into.append(out)
        return out
