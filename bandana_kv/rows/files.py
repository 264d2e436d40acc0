"""Where a load takes its rows from: arrays in memory, or .npy files of any size."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.views import refuse_masked
from bandana_kv.rows.mapped import MappedRows, place_of
from bandana_kv.rows.positioned import PositionedFile, Run
from bandana_kv.rows.table import RowSource

__all__ = ["ArrayRows", "NpyRows", "RowSource", "open_rows"]


class ArrayRows(RowSource):
    """Rows of an array (rows, dim) in memory, however it lies there; it is not copied.

    Raises
    ------
    InputError
        Not two-dimensional, empty, or not numeric.
    """

    def __init__(self, name: str, array: NDArray[np.generic]) -> None:
        self._describe(name, array.shape, array.dtype)
        self._array = array

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes)."""
        out.view(self.dtype)[...] = self._array[ids]


class NpyRows(RowSource):
    """Rows of a .npy file, read by position; resident memory does not grow with the file.

    Raises
    ------
    InputError
        Missing, truncated, in Fortran order, not two-dimensional, or not numeric.
    """

    def __init__(self, path: Path) -> None:
        self._file = PositionedFile(path)
        self._path = path
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        file = self._file.file
        try:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            # A file of Python 2 makes it warn of the time that reading the header takes.
            with warnings.catch_warnings(action="ignore"):
                shape, fortran, dtype = read(file)
        except Exception as error:
            # Parsing a damaged header ends in errors of many types, some of the tokenizer.
            raise InputError(f"{self._path}: not a readable .npy file ({error})") from error
        self._describe(str(self._path), shape, dtype)
        if fortran:
            raise InputError(
                f"{self._path}: stored column by column (Fortran order); "
                "save np.ascontiguousarray(table) instead"
            )
        self._run = Run(file.tell(), self.row_bytes, self.row_bytes)
        need = self._run.first_byte + self.rows * self.row_bytes
        size = self._file.size_bytes
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
        self._file.gather(self._run, ids, out)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_rows(name: str, table: str | os.PathLike[str] | NDArray[np.generic]) -> RowSource:
    """Return the rows of a table given as an array or as the path of a .npy file.

    An array that is mapped from a file, or any view of one, is read from the file.

    Raises
    ------
    InputError
        Names the table or the file and what is wrong with it.
    """
    refuse_masked(f"table {name!r}", table)
    if isinstance(table, np.ndarray):
        place = place_of(table)
        if place is None:
            return ArrayRows(f"table {name!r}", table)
        return MappedRows(f"table {name!r}", table, place)
    if isinstance(table, (str, os.PathLike)):
        path = Path(table)
        if path.suffix != ".npy":
            raise InputError(f"table {name!r}: {path} is not a .npy file, nor an array in memory")
        return NpyRows(path)
    raise InputError(
        f"table {name!r}: {type(table).__name__} is neither an array nor the path of a .npy file"
    )
