"""Launch a kernel of this folder on torch's current stream, without copying or waiting.

Kernels are compiled by CuPy (NVRTC) once per source and device, and cached on disk. Arguments are
torch tensors, passed as pointers, and integers, passed as 32-bit ones: a new shape compiles
nothing. Memory comes from torch alone. Compile before capturing a CUDA graph, by one call of the
same kernel; after that, launches are captured.
"""

from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor

_OPTIONS = ("--std=c++17",)
_LARGEST = 2**31 - 1


def launch(
    source: str,
    kernel: str,
    blocks: int,
    threads: int | tuple[int, int],
    *arguments: Tensor | int | None,
) -> None:
    """Enqueue `kernel` of `source`.cu on the device of the first argument; nothing if no blocks.

    Args:
        source, kernel: the file's name without suffix, and the kernel's in it.
        blocks: of the grid.
        threads: of a block, along x or (x, y).
        arguments: contiguous tensors, 32-bit integers, or None for a null pointer.

    Raises:
        ValueError: for a tensor that is not contiguous, or a number beyond 2^31 - 1.
    """
    if blocks == 0:
        return
    values = [_value(argument) for argument in arguments]
    block = threads if isinstance(threads, tuple) else (threads, 1)
    if blocks > _LARGEST:
        raise ValueError(f"{kernel}: {blocks} blocks are more than a grid can have")
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    enqueue(source, kernel, blocks, block, values, first.device)


def _value(argument: Tensor | int | None) -> np.generic:
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, Tensor):
        if not argument.is_contiguous():
            raise ValueError(f"a kernel needs contiguous tensors, not strides {argument.stride()}")
        return np.uint64(argument.data_ptr())
    if argument > _LARGEST:
        raise ValueError(f"kernels count in 32 bits: {argument} is too large")
    return np.int32(argument)


def enqueue(
    source: str,
    kernel: str,
    blocks: int,
    block: tuple[int, int],
    values: list[np.generic],
    device: torch.device,
) -> None:
    """Enqueue a kernel whose arguments are `values`, on the device's current torch stream."""
    import cupy

    stream = torch.cuda.current_stream(device).cuda_stream
    with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream, device.index):
        _module(source).get_function(kernel)((blocks,), block, tuple(values))


@cache
def _module(source: str) -> Any:
    import cupy

    return cupy.RawModule(code=source_text(f"{source}.cu"), options=_OPTIONS)


def source_text(name: str) -> str:
    """Return the source with its headers in place: the compiler's cache sees one text."""
    lines: list[str] = []
    included: set[str] = set()

    def add(name: str) -> None:
        if name in included:
            return
        included.add(name)
        for line in files(__package__).joinpath(name).read_text().splitlines():
            if line.startswith('#include "'):
                add(line.split('"')[1])
            elif line != "#pragma once":
                lines.append(line)

    add(name)
    return "\n".join(lines) + "\n"
