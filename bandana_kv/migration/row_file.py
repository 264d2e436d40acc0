"""Rows at the places of their ids in a file, as of a .npy, in whatever order they come."""

from __future__ import annotations

import errno
import io
import os
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel

__all__ = ["HEADER_BYTES", "shape_file", "write_rows"]

HEADER_BYTES = 128
"""Where the rows of a .npy file with two dimensions begin."""

# Called by name from compiled code: most runs of rows are short where they do not come in the order
# of ids.
_pwrite: Any = types.ExternalFunction(
    "pwrite", types.int64(types.int32, types.voidptr, types.uint64, types.int64)
)


@kernel
def _pwrite_runs(
    file: int, first_byte: int, row_bytes: int, ids: np.ndarray, rows: np.ndarray
) -> int:
    """Write rows of rising ids, neighbours in one call; return one that failed, or -1."""
    begin = 0
    while begin < ids.size:
        end = begin + 1
        while end < ids.size and ids[end] == ids[end - 1] + 1:
            end += 1
        size, at = (end - begin) * row_bytes, first_byte + ids[begin] * row_bytes
        if _pwrite(np.int32(file), rows[begin].ctypes, np.uint64(size), at) != size:
            return begin
        begin = end
    return -1


def write_rows(
    file: int, ids: NDArray[np.int64], rows: NDArray[np.uint8], first_byte: int = HEADER_BYTES
) -> None:
    """Write rows, uint8 (n, row_bytes), to the places of their ids, which rise, from a byte on.

    Raises
    ------
    OSError
        They cannot be written.
    """
    row_bytes, first = rows.shape[1], 0
    while True:
        bad = _pwrite_runs(file, first_byte, row_bytes, ids[first:], rows[first:])
        if bad < 0:
            return
        # Once more, for the error that the system gives.
        first += bad
        at = first_byte + int(ids[first]) * row_bytes
        if os.pwrite(file, rows[first].tobytes(), at) != row_bytes:
            raise OSError(errno.ENOSPC, "only a part of a row was written")
        first += 1


def shape_file(file: int, rows: int, dim: int, dtype: np.dtype[Any]) -> None:
    """Make the file an array of `rows` rows of `dim` numbers; those not written are zeros."""
    header = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(header, described)
    assert header.tell() == HEADER_BYTES
    os.pwrite(file, header.getvalue(), 0)
    os.ftruncate(file, HEADER_BYTES + rows * dim * dtype.itemsize)
