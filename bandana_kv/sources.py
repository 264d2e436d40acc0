"""Where a load takes its rows from: arrays in memory, or .npy files of any size."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numba import types
from numpy.typing import NDArray

from bandana_kv.compiled import copy_bytes, kernel, signed
from bandana_kv.errors import InputError

__all__ = ["ArrayRows", "NpyRows", "RowSource", "open_rows"]

_KINDS = "biufc"
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


class RowSource(ABC):
    """Rows by id; a context manager.

    Attributes
    ----------
    rows, dim
        Shape of the table.
    dtype
        Of its numbers.
    """

    rows: int
    dim: int
    dtype: np.dtype[np.generic]

    @abstractmethod
    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes)."""

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Release what is held open."""

    def _describe(self, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        if dtype.hasobject or dtype.kind not in _KINDS:
            raise InputError(f"{name}: dtype {dtype} is not numeric; tables hold numbers")
        if len(shape) != 2:
            raise InputError(f"{name}: shape {shape} is not (rows, dim); reshape it")
        if shape[0] < 1 or shape[1] < 1:
            raise InputError(f"{name}: shape {shape} holds no row")
        if shape[0] >= 1 << 31:
            raise InputError(f"{name}: {shape[0]} rows; a table holds less than 2**31")
        self.rows, self.dim = shape
        self.dtype = dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(self.dim * self.dtype.itemsize)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ArrayRows(RowSource):
    """Rows of an array (rows, dim) in memory.

    Raises
    ------
    InputError
        Not two-dimensional, empty, or not numeric.
    """

    def __init__(self, name: str, array: NDArray[np.generic]) -> None:
        self._describe(name, array.shape, array.dtype)
        self._array = np.ascontiguousarray(array)

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes)."""
        out[:] = self._array[ids].view(np.uint8).reshape(ids.size, self.row_bytes)


@kernel
def _pread_rows(
    file: int,
    first_byte: int,
    row_bytes: int,
    ids: np.ndarray,
    order: np.ndarray,
    scratch: np.ndarray,
    out: np.ndarray,
) -> int:
    """Read the rows that `order` lists by rising id; return one that cannot be read, or -1.

    Rows that lie close together come in one call, with what lies between them.
    """
    begin = 0
    while begin < order.size:
        first = signed(ids[order[begin]])
        last, end, straight = first, begin + 1, True
        while end < order.size:
            id = signed(ids[order[end]])
            if (id - last) * row_bytes > _GAP_BYTES or (id + 1 - first) * row_bytes > scratch.size:
                break
            straight = straight and id == last + 1 and order[end] == order[end - 1] + 1
            last, end = id, end + 1
        into = out[order[begin]].ctypes if straight else scratch.ctypes
        size = (last + 1 - first) * row_bytes
        if _pread(np.int32(file), into, np.uint64(size), first_byte + first * row_bytes) != size:
            return signed(order[begin])
        if not straight:
            for i in range(begin, end):
                start = (signed(ids[order[i]]) - first) * row_bytes
                copy_bytes(scratch, start, out, order[i] * row_bytes, row_bytes)
        begin = end
    return -1


class NpyRows(RowSource):
    """Rows of a .npy file, read by position; resident memory does not grow with the file.

    Raises
    ------
    InputError
        Missing, truncated, in Fortran order, not two-dimensional, or not numeric.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
        self._path = path
        self._pool = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="bandana-kv-load")
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        try:
            version = np.lib.format.read_magic(self._file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            # A file of Python 2 makes it warn of the time that reading the header takes.
            with warnings.catch_warnings(action="ignore"):
                shape, fortran, dtype = read(self._file)
        except Exception as error:
            # Parsing a damaged header ends in errors of many types, some of the tokenizer.
            raise InputError(f"{self._path}: not a readable .npy file ({error})") from error
        self._describe(str(self._path), shape, dtype)
        if fortran:
            raise InputError(
                f"{self._path}: stored column by column (Fortran order); "
                "save np.ascontiguousarray(table) instead"
            )
        self._first_byte = self._file.tell()
        need = self._first_byte + self.rows * self.row_bytes
        size = os.fstat(self._file.fileno()).st_size
        if size < need:
            raise InputError(
                f"{self._path}: truncated: {size} bytes, its header promises {need}; copy it again"
            )

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes).

        Raises
        ------
        InputError
            The file became shorter, or the device failed, while it was read.
        """
        order = np.argsort(ids) if np.any(ids[1:] < ids[:-1]) else np.arange(ids.size)

        def read(part: slice) -> None:
            scratch = np.empty(max(_SPAN_BYTES, self.row_bytes), np.uint8)
            file = self._file.fileno()
            bad = _pread_rows(
                file, self._first_byte, self.row_bytes, ids, order[part], scratch, out
            )
            if bad >= 0:
                raise InputError(f"{self._path}: row {int(ids[bad])} cannot be read any more")

        edges = [ids.size * part // _READ_THREADS for part in range(_READ_THREADS + 1)]
        for _ in self._pool.map(read, (slice(first, last) for first, last in pairwise(edges))):
            pass

    def close(self) -> None:
        """Close the file."""
        self._pool.shutdown()
        self._file.close()


def open_rows(name: str, table: str | os.PathLike[str] | NDArray[np.generic]) -> RowSource:
    """Return the rows of a table given as an array or as the path of a .npy file.

    Raises
    ------
    InputError
        Names the table or the file and what is wrong with it.
    """
    if isinstance(table, np.ndarray):
        return ArrayRows(f"table {name!r}", table)
    if isinstance(table, (str, os.PathLike)):
        path = Path(table)
        if path.suffix != ".npy":
            raise InputError(f"table {name!r}: {path} is not a .npy file, nor an array in memory")
        return NpyRows(path)
    raise InputError(
        f"table {name!r}: {type(table).__name__} is neither an array nor the path of a .npy file"
    )
