"""Buffers laid out in memory as the rows that will be written to them."""

import torch
from torch import Tensor

from robustdyn.kernels.rows import channels_last


def zeros_for(y: Tensor, count: int) -> Tensor:
    """Return zeros (count, ...) for rows y (n, ...): channels-last if y is.

    A convolution of a buffer in another layout than its weights' would have to turn it first.
    """
    zeros = y.new_zeros(count, *y.shape[1:])
    return zeros.to(memory_format=torch.channels_last) if channels_last(y) else zeros
