"""Masked kernels in CUDA C++, for torch tensors on NVIDIA GPUs of compute capability 8.0 or newer.

Importing this registers them with the dispatcher. CuPy compiles them when they first run; it is
imported only then.
"""

from robustdyn.kernels.cuda import (
    active,
    affine,
    channels,
    conv,
    depthwise,
    experts,
    recurrent,
    rows,
)

__all__ = ["active", "affine", "channels", "conv", "depthwise", "experts", "recurrent", "rows"]
