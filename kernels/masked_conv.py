"""Convolution at the positions of a mask, in rows: one row for each position that is computed."""

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.dispatch import kernel


@kernel
def masked_conv2d_rows(
    x: Tensor, weight: Tensor, mask: Tensor, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """Return the convolution at the positions of `mask`, (n, O), in the order of mask.nonzero().

    The input is dense: unmasked inputs count with their values, not as zero.

    Args:
        x: (B, H, W, C), NHWC.
        weight: (O, C, k, k).
        mask: (B, H', W') bool, at the output's resolution.
        stride, padding: of the convolution, the same in both directions.
    """
    out_channels, channels, size, _ = weight.shape
    padded = F.pad(x, (0, 0, padding, padding, padding, padding))
    _, height, width, _ = padded.shape
    batch, row, column = mask.nonzero(as_tuple=True)
    corner = (batch * height + row * stride) * width + column * stride  # (n,)
    taps = torch.arange(size, device=x.device)
    offsets = (taps[:, None] * width + taps).flatten()  # (k * k,)
    patches = padded.reshape(-1, channels)[corner[:, None] + offsets]  # (n, k * k, C)
    matrix = weight.permute(2, 3, 1, 0).reshape(size * size * channels, out_channels)
    return patches.flatten(1) @ matrix
