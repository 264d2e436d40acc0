"""Rows of arrays that are mapped from a file, slices and transposes too, read from that file.

Touching a mapped page makes it a part of the process's memory, and a copy of a slice that is
larger than DRAM ends it. So the file behind the map is read instead, a part at a time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.rows.positioned import PositionedFile, Run
from bandana_kv.rows.table import RowSource

__all__ = ["FilePlace", "MappedRows", "bounds", "place_of"]

_MAPS = Path("/proc/self/maps")
# Numbers of a row that lie apart: read with what lies between them, up to so many times a row.
_MOST_TIMES = 8
_AT_ONCE_BYTES = 16 << 20


class FilePlace(NamedTuple):
    """Where an array lies: in a file, its first number at a byte of it."""

    path: Path
    first_byte: int


class _Area(NamedTuple):
    """A mapping of this process, as the kernel lists it."""

    first: int
    end: int
    shared: bool
    offset: int
    file: tuple[str, str]
    """Device and inode, as listed: some file systems tell others elsewhere."""
    path: str


def _areas() -> Iterator[_Area]:
    for line in _MAPS.read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or not fields[5].startswith("/"):
            continue
        first, _, end = fields[0].partition("-")
        path = fields[5].replace("\\012", "\n")
        yield _Area(
            int(first, 16),
            int(end, 16),
            fields[1].endswith("s"),
            int(fields[2], 16),
            (fields[3], fields[4]),
            path,
        )


def place_of(array: NDArray[Any], *, private: bool = False) -> FilePlace | None:
    """Return where in a file an array lies; None: not in one, or it may differ from the file.

    With `private`, what this process alone maps counts too: nobody has written to it.
    """
    first, end = bounds(array)
    try:
        areas = list(_areas())
    except OSError:
        return None
    around = [area for area in areas if area.end > first]
    if not around or around[0].first > first:
        return None
    area, covered = around[0], around[0].end
    for other in around[1:]:
        follows = other.first == covered and other.offset - other.first == area.offset - area.first
        if covered >= end or not follows or other.file != area.file:
            break
        covered = other.end
    # What is private to the process may have been changed in memory alone.
    apart = not (area.shared or private)
    if covered < end or apart or not _is_still(area):
        return None
    return FilePlace(Path(area.path), array.ctypes.data - area.first + area.offset)


def bounds(array: NDArray[np.generic]) -> tuple[int, int]:
    """Return the first byte of an array, and the one behind its last."""
    reach = [
        (count - 1) * step for count, step in zip(array.shape, array.strides, strict=True) if count
    ]
    address = array.ctypes.data
    first = address + sum(each for each in reach if each < 0)
    return first, address + sum(each for each in reach if each > 0) + array.itemsize


def _is_still(area: _Area) -> bool:
    """Return whether the file at a mapping's path is the one that is mapped."""
    with contextlib.suppress(OSError, ValueError), open(area.path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return False
        with mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ) as own:
            view = np.frombuffer(own, np.uint8)
            address = view.ctypes.data
            del view
            return any(
                each.file == area.file for each in _areas() if each.first <= address < each.end
            )
    return False


class MappedRows(RowSource):
    """Rows of an array (rows, dim) that lies in a file; resident memory does not grow with it.

    Parameters
    ----------
    name
        As messages name it.
    array
    place
        Where it lies, of :func:`place_of`.

    Raises
    ------
    InputError
        Not two-dimensional, empty, or not numeric; the file cannot be opened.
    """

    def __init__(self, name: str, array: NDArray[np.generic], place: FilePlace) -> None:
        self._describe(name, array.shape, array.dtype)
        self._strides = array.strides
        self._first_byte = place.first_byte
        self._file = PositionedFile(place.path)

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes).

        Raises
        ------
        InputError
            The file became shorter, or the device failed, while it was read.
        """
        (step, inner), first = self._strides, self._first_byte
        if step < 0:
            ids, first, step = (
                (self.rows - 1) - ids.astype(np.int64),
                first + step * (self.rows - 1),
                -step,
            )
        size = self.dtype.itemsize
        span = (self.dim - 1) * abs(inner) + size
        if inner == size or self.dim == 1:
            self._file.gather(Run(first, step, self.row_bytes), ids, out)
        elif span <= _MOST_TIMES * self.row_bytes:
            self._gather_spans(Run(first + min(0, inner) * (self.dim - 1), step, span), ids, out)
        else:
            self._gather_columns(first, step, ids, out)

    def _gather_spans(self, run: Run, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Read rows whose numbers lie apart, with what lies between."""
        inner, size = self._strides[1], self.dtype.itemsize
        behind = max(0, -inner) * (self.dim - 1)
        many = max(1, _AT_ONCE_BYTES // run.piece_bytes)
        numbers = out.view(f"V{size}")
        for at in range(0, ids.size, many):
            part = ids[at : at + many]
            spans = np.empty((part.size, run.piece_bytes), np.uint8)
            self._file.gather(run, part, spans)
            numbers[at : at + many] = np.ndarray(
                (part.size, self.dim), f"V{size}", spans, behind, (run.piece_bytes, inner)
            )

    def _gather_columns(
        self, first: int, step: int, ids: NDArray[np.integer], out: NDArray[np.uint8]
    ) -> None:
        """Read a table that lies column by column, as a transposed one does."""
        size = self.dtype.itemsize
        numbers = out.view(f"V{size}")
        column = np.empty((ids.size, size), np.uint8)
        for at in range(self.dim):
            run = Run(first + at * self._strides[1], step, size)
            self._file.gather(run, ids, column)
            numbers[:, at] = column.view(f"V{size}")[:, 0]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
