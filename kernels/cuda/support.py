"""Why a CUDA kernel cannot run on some tensors."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels.dispatch import Implementation, Kernel

FLOATS = (torch.float32, torch.bfloat16)
FILL = {"leave": 0, "zero": 1, "copy": 2}  # as in finish.cuh
_CAPABILITY = (8, 0)
_THREADS = 256


def register(kernel: Kernel, run: Callable[..., Any], reasons: Callable[..., list[str]]) -> None:
    """Put a CUDA implementation of the kernel before all others."""
    kernel.implementations.insert(0, Implementation("cuda", run, reasons, "cuda"))


def not_on_cuda(
    *tensors: Tensor | None, dtypes: Sequence[torch.dtype] | None = FLOATS
) -> list[str]:
    """Return why CUDA kernels cannot take these tensors; an empty list if they can.

    Args:
        tensors: the floating-point arguments, which must share device and dtype; None is skipped.
        dtypes: that the kernel knows; None: any.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    device, dtype = given[0].device, given[0].dtype
    if device.type != "cuda":
        return [f"the tensors are on {device.type}, not on a CUDA device"]
    reasons = [problem] if (problem := cupy_problem()) else []
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        reasons.append("the GPU has a compute capability below 8.0")
    if any(tensor.device != device for tensor in given):
        reasons.append("the tensors are on several devices")
    if dtypes is not None and dtype not in dtypes:
        reasons.append(f"there is no kernel for {dtype}")
    if any(tensor.dtype != dtype for tensor in given):
        reasons.append("the tensors differ in dtype")
    return reasons


@cache
def cupy_problem() -> str:
    """Return why CuPy cannot be used; "" if it can."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed: pip install robustdyn[cuda13] or robustdyn[cuda12]"
    if not cupy.cuda.is_available():
        return "CuPy finds no GPU"
    return ""


def aligned(*tensors: Tensor | None) -> bool:
    """Return whether every tensor begins at a multiple of 16 bytes."""
    return all(tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors)


def ceil_div(amount: int, size: int) -> int:
    """Return how many parts of `size` hold `amount`."""
    return -(-amount // size)


def row_grid(rows: int, words: int, unroll: int = 1) -> tuple[int, tuple[int, int]]:
    """Return the blocks and a block's (threads along a row of words, rows).

    Args:
        unroll: rows for each thread.
    """
    along = min(_THREADS, 1 << max(words - 1, 0).bit_length())
    down = _THREADS // along
    return ceil_div(rows, down * unroll), (along, down)
