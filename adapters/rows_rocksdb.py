"""Rows by key in a RocksDB that somebody else writes, opened without a trace."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import rocksdict

from bandana_kv.adapters.rocksdb import open_to_read
from bandana_kv.adapters.rows import KeyCodec, KeyedRows, Pairs, batch_size
from bandana_kv.errors import AdapterError, StoreNotFoundError

__all__ = ["RocksdbRows"]

_DEFAULT = "default"
_READ_AHEAD_BYTES = 2 << 20


class RocksdbRows(KeyedRows):
    """Rows in one column family, as they were when it was opened.

    Databases with a comparator or a merge operator of their own cannot be opened. Parameters as
    of :func:`bandana_kv.adapters.rows.open_rows`.
    """

    name: ClassVar[str] = "rocksdb"

    def __init__(
        self,
        path: Path,
        *,
        key: str | KeyCodec,
        dtype: npt.DTypeLike,
        inner: str | None = None,
        prefix: bytes = b"",
    ) -> None:
        super().__init__(str(path), key, dtype, inner, prefix)
        if not (path / "CURRENT").is_file():
            raise StoreNotFoundError(f"no {self.name} database at {path}")
        self._path = str(path.resolve())
        self._inner = inner or _DEFAULT
        self._lock = threading.Lock()
        self._closed = False
        self._open()

    def _open(self) -> None:
        try:
            self._database = open_to_read(self._path, tuple({_DEFAULT, self._inner}))
            self._family = self._database.get_column_family(self._inner)
        except Exception as error:
            if "column family" in str(error).lower():
                raise StoreNotFoundError(
                    f"{self.name} at {self._path} has no column family {self._inner!r}"
                ) from error
            raise AdapterError(f"{self.name} at {self._path} cannot be opened: {error}") from error
        self._process = os.getpid()

    def _current_family(self) -> rocksdict.Rdict:
        """Return the column family, opened again in a child after a fork."""
        with self._lock:
            if self._closed:
                raise AdapterError(f"{self.name} at {self._path} is closed")
            if self._process != os.getpid():
                # The engine's threads stayed in the parent: closing would wait for them.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._family))
                self._open()
            return self._family

    def _values(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        asked: Any = list(keys)
        values: list[bytes | None] = self._current_family().get(asked)  # type: ignore[assignment]
        return values

    def _batches(self, prefix: bytes, after: bytes | None) -> Iterator[Pairs]:
        pairs, most = self._pairs(prefix, after), 1
        while batch := list(islice(pairs, most)):
            yield batch
            most = batch_size(batch)

    def _pairs(self, prefix: bytes, after: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        options = rocksdict.ReadOptions()
        options.set_readahead_size(_READ_AHEAD_BYTES)
        cursor = self._current_family().iter(options)
        cursor.seek(prefix if after is None else after)
        if cursor.valid() and cursor.key() == after:
            cursor.next()
        while cursor.valid():
            key: bytes = cursor.key()
            if not key.startswith(prefix):
                break
            yield key, cursor.value()
            cursor.next()
        cursor.status()  # raises what has ended it early

    def state(self) -> dict[str, str | int]:
        """Return who the database is, and the number of its last write."""
        self._current_family()
        own = Path(self._path, "IDENTITY")
        return {
            "identity": own.read_text().strip() if own.exists() else "",
            "sequence": self._database.latest_sequence_number(),
        }

    def count(self) -> int:
        """Return about how many keys there are: those written twice may count twice."""
        family = self._current_family()
        # The engine's own estimate needs statistics that opening here does not gather.
        of_files = family.property_value("rocksdb.aggregated-table-properties") or ""
        entries = re.search(r"# entries=(\d+)", of_files)
        in_memory = family.property_int_value("rocksdb.num-entries-active-mem-table") or 0
        return in_memory + (int(entries[1]) if entries else 0)

    def close(self) -> None:
        """Close the database; a second call does nothing."""
        with self._lock:
            if not self._closed and self._process == os.getpid():
                self._family.close()
                self._database.close()
            self._closed = True
