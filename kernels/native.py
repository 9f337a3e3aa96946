"""Loads the C++ kernels: one library for the process, on first use.

ROBUSTDYN_CPP chooses the instruction set, "avx512", "avx2" or "generic", by default the best one of
the processor; "off" leaves the library alone, and torch runs instead.
"""

import ctypes
import os
import threading
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from robustdyn.kernels.build import NAME, SOURCES, BuildError, cached_library, find_compiler

ISAS = ("generic", "avx2", "avx512")
VARIABLE = "ROBUSTDYN_CPP"
FUNCTIONS = (
    *("conv", "depthwise", "channels", "finish_channels", "entries", "affine", "thin", "step"),
    "linear",
)


class Native(NamedTuple):
    """The loaded library, the instruction set in use and how many floats its vectors hold."""

    library: ctypes.CDLL
    path: Path
    isa: int
    width: int

    def call(self, function: str, arguments: ctypes.Structure) -> None:
        """Call robustdyn_FUNCTION; other Python threads run meanwhile."""
        getattr(self.library, f"robustdyn_{function}")(self.isa, ctypes.byref(arguments))


_lock = threading.Lock()
_found: dict[str, Native | str] = {}  # for each value of the variable, the library or why not
_state = {"forked": False}
os.register_at_fork(after_in_child=lambda: _state.update(forked=True))


def native() -> Native | None:
    """Return the library, built and loaded if need be, or None where there is none."""
    found = _look()
    return found if isinstance(found, Native) else None


def why_not() -> str:
    """Return why there is no library, or "" if there is one."""
    found = _look()
    return found if isinstance(found, str) else ""


def _look() -> Native | str:
    stated = os.environ.get(VARIABLE, "")
    found = _found.get(stated)
    if found is None:
        with _lock:
            found = _found.get(stated) or _load(stated)
            _found[stated] = found
    return found


def _load(stated: str) -> Native | str:
    if stated == "off":
        return f"{VARIABLE} is off"
    if stated and stated not in ISAS:
        return f"{VARIABLE} is {stated!r}, not one of off, {', '.join(ISAS)}"
    try:
        path = SOURCES / NAME
        if not path.exists():
            compiler = find_compiler()
            if compiler is None:
                return "no C++ compiler"
            path = cached_library(compiler)
        library = _open(path)
    except (BuildError, ImportError, OSError) as error:
        return str(error)
    for function in FUNCTIONS:
        getattr(library, f"robustdyn_{function}").argtypes = [ctypes.c_int64, ctypes.c_void_p]
    for function in ("best_isa", "vector_width"):
        getattr(library, f"robustdyn_{function}").restype = ctypes.c_int64
    library.robustdyn_vector_width.argtypes = [ctypes.c_int64]
    best = library.robustdyn_best_isa()
    isa = ISAS.index(stated) if stated else best
    if isa > best:
        return f"this processor has no {stated}"
    return Native(library, path, isa, library.robustdyn_vector_width(isa))


def _open(path: Path) -> ctypes.CDLL:
    """Load it with the OpenMP runtime that torch has loaded, or, where that is hidden, GCC's."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(path))


def threads() -> int:
    """Return how many threads a call may use: torch's number, but 1 in a forked process.

    GCC's OpenMP hangs in a child whose parent has used more than one.
    """
    return 1 if _state["forked"] else torch.get_num_threads()


def pointers(*names: str) -> list[tuple[str, type]]:
    """Return fields of a ctypes.Structure that hold pointers."""
    return [(name, ctypes.c_void_p) for name in names]


def integers(*names: str) -> list[tuple[str, type]]:
    """Return fields of a ctypes.Structure that hold 64-bit integers."""
    return [(name, ctypes.c_int64) for name in names]


def plain(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor, contiguous; None stays None."""
    return None if tensor is None else tensor.contiguous()


def pixel_step(x: Tensor) -> int | None:
    """Return how many floats the pixels of x (B, H, W, C) are apart; None if they are not evenly.

    It is more than C for a slice of the channels.
    """
    _, height, width, channels = x.shape
    step = x.stride(2)
    even = x.stride() == (height * width * step, width * step, step, 1)
    return step if even and step >= channels else None


def pixels(x: Tensor) -> tuple[Tensor, int]:
    """Return x (B, H, W, C) and its pixel step, made contiguous if it has none."""
    step = pixel_step(x)
    return (x.contiguous(), x.shape[3]) if step is None else (x, step)


def pointer(tensor: Tensor | None) -> int | None:
    """Return the address of a contiguous tensor's data; the caller keeps the tensor alive."""
    return None if tensor is None else tensor.data_ptr()
