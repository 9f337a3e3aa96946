"""Layout in memory, as kernels and rows need it."""

import torch
from torch import Tensor

from robustdyn.execution import is_sparse
from robustdyn.kernels.rows import channels_last


def zeros_for(y: Tensor, count: int) -> Tensor:
    """Return zeros (count, ...) for rows y (n, ...): channels-last if y is.

    A convolution of a buffer in another layout than its weights' would have to turn it first.
    """
    zeros = y.new_zeros(count, *y.shape[1:])
    return zeros.to(memory_format=torch.channels_last) if channels_last(y) else zeros


def for_kernels(x: Tensor) -> Tensor:
    """Return x (B, C, H, W), in sparse execution channels-last, as masked kernels read it.

    Else every kernel that reads x would turn it for itself.
    """
    return x.contiguous(memory_format=torch.channels_last) if is_sparse() else x
