"""Rows at regular places of a file, read by position: without mapping it, and without the GIL."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from bandana_kv.errors import InputError, ThreadError
from bandana_kv.kernels.compile import copy_bytes, kernel, signed
from bandana_kv.rows.table import RowSource
from bandana_kv.system.permission import check_permission
from bandana_kv.system.threads import threads_named

__all__ = ["PositionedFile", "Run", "RunRows", "opened"]

# In the order of a placement rows lie anywhere in the file, so reading a file larger than
# DRAM is random reads: threads give the device a queue.
_READ_THREADS = 16
# A call costs as much as copying so much: it is cheaper to read what lies between two rows.
_GAP_BYTES, _SPAN_BYTES = 8 << 10, 256 << 10

# Called by name from compiled code: the C library's, so that rows are read without the
# GIL and without mapping the file (mapped pages would count as resident memory).
_pread: Any = types.ExternalFunction(
    "pread", types.int64(types.int32, types.voidptr, types.uint64, types.int64)
)


class Run(NamedTuple):
    """Where pieces of one length lie: piece i begins at ``first_byte + i * stride_bytes``."""

    first_byte: int
    stride_bytes: int
    """0 or more."""
    piece_bytes: int


@kernel
def _pread_pieces(
    file: int,
    first_byte: int,
    stride: int,
    piece_bytes: int,
    ids: np.ndarray,
    order: np.ndarray,
    scratch: np.ndarray,
    out: np.ndarray,
) -> int:
    """Read the pieces that `order` lists by rising id; return one that cannot be read, or -1.

    Pieces that lie close together come in one call, with what lies between them.
    """
    begin = 0
    while begin < order.size:
        first = signed(ids[order[begin]])
        last, end, straight = first, begin + 1, True
        while end < order.size:
            id = signed(ids[order[end]])
            if (id - last) * stride > _GAP_BYTES:
                break
            if (id - first) * stride + piece_bytes > scratch.size:
                break
            straight = straight and id == last + 1 and order[end] == order[end - 1] + 1
            last, end = id, end + 1
        straight = straight and (stride == piece_bytes or end == begin + 1)
        into = out[order[begin]].ctypes if straight else scratch.ctypes
        size = (last - first) * stride + piece_bytes
        if _pread(np.int32(file), into, np.uint64(size), first_byte + first * stride) != size:
            return signed(order[begin])
        if not straight:
            for i in range(begin, end):
                start = (signed(ids[order[i]]) - first) * stride
                copy_bytes(scratch, start, out, order[i] * piece_bytes, piece_bytes)
        begin = end
    return -1


def opened(path: Path) -> BufferedReader:
    """Open a file to read.

    Raises
    ------
    InputError
        It cannot be opened.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        check_permission(error, path)
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error


class PositionedFile:
    """A file that pieces are read from.

    Parameters
    ----------
    path
    file
        An open one, which is closed with this; by default the one at `path`.

    Raises
    ------
    InputError
        It cannot be opened.
    """

    def __init__(self, path: Path | str, file: IO[bytes] | None = None) -> None:
        self.file = opened(Path(path)) if file is None else file
        self._path = path
        self._pool = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="bandana-kv-load")

    @property
    def size_bytes(self) -> int:
        """How long the file is now."""
        return os.fstat(self.file.fileno()).st_size

    def gather(self, run: Run, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the pieces of `ids` (n,) into `out`, uint8 (n, piece_bytes), C-contiguous.

        Raises
        ------
        InputError
            The file became shorter, or the device failed, while it was read.
        """
        order = np.argsort(ids) if np.any(ids[1:] < ids[:-1]) else np.arange(ids.size)

        def read(part: slice) -> None:
            scratch = np.empty(max(_SPAN_BYTES, run.piece_bytes), np.uint8)
            bad = _pread_pieces(self.file.fileno(), *run, ids, order[part], scratch, out)
            if bad >= 0:
                raise InputError(f"{self._path}: row {int(ids[bad])} cannot be read any more")

        edges = [ids.size * part // _READ_THREADS for part in range(_READ_THREADS + 1)]
        self.each(read, [slice(first, last) for first, last in pairwise(edges)])

    def each(self, work: Callable[[slice], None], parts: list[slice]) -> None:
        """Do parts of a work at once. ThreadError: that cannot be; none of it goes on."""
        try:
            with threads_named():
                for _ in self._pool.map(work, parts):
                    pass
        except ThreadError:
            self._pool.shutdown(cancel_futures=True)
            raise

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close it if what is done meanwhile fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it."""
        self._pool.shutdown()
        self.file.close()


class RunRows(RowSource):
    """Rows that lie in a file one after another; resident memory does not grow with the file.

    Parameters
    ----------
    name
        As messages name them.
    file
        Closed with this, and where it is refused.
    first_byte
        Where the first row begins.
    shape, dtype

    Raises
    ------
    InputError
        Not two-dimensional, empty, or not numeric; the file ends before the last row.
    """

    def __init__(
        self,
        name: str,
        file: PositionedFile,
        first_byte: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self._file = file
        with file.closed_on_error():
            self._describe(name, shape, dtype)
            need = first_byte + self.rows * self.row_bytes
            if file.size_bytes < need:
                raise InputError(
                    f"{name}: truncated: {file.size_bytes} bytes, its header promises {need}; "
                    "copy it again"
                )
        self._run = Run(first_byte, self.row_bytes, self.row_bytes)

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes).

        Raises
        ------
        InputError
            The file became shorter, or the device failed, while it was read.
        """
        self._file.gather(self._run, ids, out)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
