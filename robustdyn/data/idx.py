"""The IDX format of MNIST and its relatives: arrays of bytes, plain or gzipped."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from robustdyn.errors import UserError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, *, ndim: int) -> np.ndarray:
    """Return the uint8 array (of `ndim` dimensions) in the IDX file `path`, plain or gzipped.

    Raises UserError when the file is damaged, is not IDX, or has another type or `ndim`.
    """
    return parse_idx(unpack(path), ndim=ndim, name=str(path))


def unpack(path: Path) -> bytes:
    """Return the bytes of `path`, unpacked if it is a gzip file (judged by content, not name)."""
    data = path.read_bytes()
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(str(path), f"gzip: {error}") from error


def parse_idx(data: bytes, *, ndim: int, name: str) -> np.ndarray:
    """Return the array in `data`: magic 0, 0, type, ndim; sizes (big-endian uint32); values.

    `name` is what errors call the data.
    """
    if data[:4] != bytes((0, 0, _UNSIGNED_BYTE, ndim)):
        raise UserError(
            f"'{name}' is not an IDX file of bytes with {ndim} dimension(s).",
            "Images need 3 dimensions, labels 1: check that the files are not swapped.",
        )
    header = 4 + 4 * ndim
    if len(data) < header:
        raise _damaged(name, "it ends inside the header")
    shape = struct.unpack(f">{ndim}I", data[4:header])
    values = np.frombuffer(data, dtype=np.uint8, offset=header)
    expected = int(np.prod(shape, dtype=np.uint64))
    if values.size != expected:
        raise _damaged(name, f"{values.size} bytes of values instead of {expected}")
    return values.reshape(shape)


def _damaged(name: str, what: str) -> UserError:
    return UserError(f"'{name}' is damaged: {what}.", "Get the file again.")
