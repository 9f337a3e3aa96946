"""Replays recorded launches of kernels: python cuda_replay.py RECORD, without torch.

The record is a pickled list of (library, kernel, blocks, block, arguments); an argument is bytes,
which become an array of just that size, or a number. Run under AddressSanitizer by its test.
"""

import ctypes
import pickle
import sys
from pathlib import Path

import numpy as np


def replay(library, kernel, blocks, block, arguments):
    """Run one launch, in forward order."""
    arrays = [np.frombuffer(a, np.uint8).copy() if isinstance(a, bytes) else a for a in arguments]
    values = [np.uint64(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arrays]
    cells = [np.array([value]) for value in values]
    pointers = (ctypes.c_void_p * len(cells))(*[cell.ctypes.data for cell in cells])
    entry = ctypes.CDLL(library)[f"{kernel}_on_cpu"]
    entry.restype = ctypes.c_char_p
    error = entry(blocks, *block, 0, 0, pointers)
    if error:
        sys.exit(f"{kernel}: {error.decode()}")


if __name__ == "__main__":
    launches = pickle.loads(Path(sys.argv[1]).read_bytes())
    for launch in launches:
        replay(*launch)
    print(len(launches))  # noqa: T201
