"""Rows that can only be read one after another, put where each can be read by its place.

In the order of a placement rows lie anywhere, and what is compressed would be unpacked again for
nearly every row. So all of it is unpacked once, into a file without a name: it is gone when the
rows are closed, or their process ends, however that happens.
"""

from __future__ import annotations

import tempfile
import threading
from abc import abstractmethod
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import DiskFullError, InputError
from bandana_kv.rows.positioned import PositionedFile, Run
from bandana_kv.rows.table import RowSource
from bandana_kv.system.durable import NO_ROOM
from bandana_kv.system.permission import check_permission

__all__ = ["AT_ONCE_BYTES", "StagedRows", "unnamed_file", "write_all"]

AT_ONCE_BYTES = 8 << 20
"""About how much is read at once."""


class StagedRows(RowSource):
    """Rows that are read in order, once, when the first of them is asked for.

    Describes itself by `_describe_staged` when it is made, and reads rows by `_parts`.
    """

    _name: str
    _staged: PositionedFile | None = None

    def _describe_staged(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._describe(name, shape, dtype)

    @abstractmethod
    def _parts(self, most_rows: int) -> Iterator[NDArray[Any]]:
        """Yield all rows in order, (n, dim) of `dtype`; n is to be about `most_rows`."""

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes).

        Raises
        ------
        InputError
            What was described cannot be read, or is something else.
        DiskFullError
            It does not fit into the directory for temporary files.
        """
        with self._lock:
            if self._staged is None:
                self._staged = self._stage()
        self._staged.gather(Run(0, self.row_bytes, self.row_bytes), ids, out)

    def _stage(self) -> PositionedFile:
        file = self._unnamed()
        try:
            done = 0
            for part in self._parts(max(1, AT_ONCE_BYTES // self.row_bytes)):
                done += part.shape[0] if part.ndim == 2 else self.rows + 1
                if done > self.rows or part.shape[1] != self.dim or part.dtype != self.dtype:
                    raise InputError(
                        f"{self._name}: gives {part.dtype} of shape {part.shape} for some rows; "
                        f"it is to be {self.rows} rows of {self.dim} {self.dtype}: write it again"
                    )
                self._write(file, part)
            if done != self.rows:
                raise InputError(
                    f"{self._name}: truncated: {done} rows, not {self.rows}; copy it again"
                )
            return PositionedFile(self._name, file)
        except BaseException:
            file.close()
            raise

    def _unnamed(self) -> IO[bytes]:
        return unnamed_file(self._name)

    def _write(self, file: IO[bytes], part: NDArray[Any]) -> None:
        write_all(file, part, self._name)

    def close(self) -> None:
        """Let go of the temporary file."""
        if self._staged is not None:
            self._staged.close()


def unnamed_file(name: str) -> IO[bytes]:
    """Return a new file that is gone when it is closed; `name` is what is unpacked into it.

    Raises
    ------
    InputError
        It cannot be made.
    """
    try:
        return tempfile.TemporaryFile(buffering=0)
    except OSError as error:
        check_permission(error, tempfile.tempdir or "/tmp")
        raise InputError(
            f"{name}: is unpacked into a temporary file, which cannot be made "
            f"({error.strerror}); name a directory by TMPDIR"
        ) from error


def write_all(file: IO[bytes], part: NDArray[Any], name: str) -> None:
    """Write an array to the end of such a file.

    Raises
    ------
    DiskFullError
        There is no room.
    """
    left = np.ascontiguousarray(part).view(np.uint8).reshape(-1).data
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise DiskFullError(
            error.errno,
            f"{tempfile.gettempdir()}: no space left for {name} unpacked; "
            "name another directory by TMPDIR",
        ) from error
