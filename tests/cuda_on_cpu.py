"""Runs the CUDA kernels on the CPU, through cuda_shim/shim.h in place of CuPy."""

import ctypes
import getpass
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

from robustdyn.kernels.cuda.launch import source_text

SHIM = Path(__file__).parent / "cuda_shim" / "shim.h"
ORDERS = {"forward": 0, "reverse": 1, "random": 2}
SOURCES = sorted(
    f.name.removesuffix(".cu")
    for f in files("robustdyn.kernels.cuda").iterdir()
    if f.name.endswith(".cu")
)
FLAGS = ["-std=c++20", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing"]
FLAGS += ["-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs g++ to run CUDA kernels on the CPU"
)


@cache
def build(text: str) -> ctypes.CDLL:
    """Return the library made of the text of a kernel file."""
    return ctypes.CDLL(str(library_path(text)))


def library_path(text: str, more_flags: str = "") -> Path:
    """Compile the text of a kernel file with g++; known builds are kept between runs."""
    flags = [*FLAGS, *more_flags.split()]
    key = hashlib.sha256("\0".join([text, SHIM.read_text(), *flags]).encode()).hexdigest()[:20]
    folder = Path(tempfile.gettempdir()) / f"robustdyn-cuda-on-cpu-{getpass.getuser()}"
    path = folder / f"{key}.so"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        code = folder / f"{key}.{os.getpid()}.cpp"
        code.write_text(text)
        made = code.with_suffix(".so")
        command = ["g++", *flags, "-include", str(SHIM), str(code), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        code.unlink()
        assert done.returncode == 0, done.stderr
        made.replace(path)
    return path


def run(library, kernel, blocks, block, values, order="forward", skipped_line=0):
    """Run a kernel at once; RuntimeError if its barriers are used wrongly."""
    entry = library[f"{kernel}_on_cpu"]
    entry.restype = ctypes.c_char_p
    cells = [value.reshape(1) for value in values]  # arrays, kept until the call returns
    pointers = (ctypes.c_void_p * len(cells))(*[cell.ctypes.data for cell in cells])
    error = entry(blocks, *block, ORDERS[order], skipped_line, pointers)
    if error:
        raise RuntimeError(f"{kernel}: {error.decode()}")


@contextmanager
def on_cpu(order="forward", skipped=("", 0)):
    """Run what is launched inside the block on the CPU.

    Args:
        order: of the threads, one of ORDERS.
        skipped: a source and the line in it of a barrier that does nothing.
    """

    def enqueue(source, kernel, blocks, block, values, device):
        line = skipped[1] if skipped[0] == source else 0
        run(build(source_text(f"{source}.cu")), kernel, blocks, block, values, order, line)

    module = import_module("robustdyn.kernels.cuda.launch")
    kept, module.enqueue = module.enqueue, enqueue
    try:
        yield
    finally:
        module.enqueue = kept


def barriers(source):
    """Return the lines of the source's text that hold a barrier."""
    lines = source_text(f"{source}.cu").splitlines()
    return [i for i, line in enumerate(lines, 1) if re.search(r"\b__sync(threads|warp)\(", line)]
