"""Own kernels: convolve every sample with a kernel that was made for it."""

from torch import Tensor
from torch.nn import functional as F


def conv_own(x: Tensor, weight: Tensor, *, stride: int = 1) -> Tensor:
    """Return the convolution of each sample with its own kernel, (B, O, H', W').

    Runs as one convolution with a group per sample, in dense and sparse execution alike: every
    sample costs what it would cost alone.

    Args:
        x: (B, C, H, W).
        weight: (B, O, C, k, k), k odd; padded so that stride 1 keeps the resolution.
        stride: of the convolution.
    """
    batch, outputs, inputs, size, _ = weight.shape
    grouped = x.reshape(1, batch * inputs, *x.shape[2:])
    kernels = weight.reshape(batch * outputs, inputs, size, size)
    y = F.conv2d(grouped, kernels, stride=stride, padding=size // 2, groups=batch)
    return y.reshape(batch, outputs, *y.shape[2:])
