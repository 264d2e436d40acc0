"""Rows by key in a RocksDB that somebody else writes, opened without a trace."""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import rocksdict

from bandana_kv.adapters.gate import Gate
from bandana_kv.adapters.rocksdb_files import signature as signature_of
from bandana_kv.adapters.rocksdb_links import Links
from bandana_kv.adapters.rocksdb_open import open_to_read
from bandana_kv.adapters.rows import MAX_AGE_S, KeyCodec, KeyedRows, Pairs, batch_size
from bandana_kv.errors import AdapterError, StoreNotFoundError
from bandana_kv.system.ending import PATIENCE_S, end_engine_at_exit
from bandana_kv.system.permission import denied_by_engine

__all__ = ["RocksdbRows"]

_DEFAULT = "default"
_READ_AHEAD_BYTES = 2 << 20


@dataclass(frozen=True)
class _Opened:
    """A database as it was at one time, and the links that it may need."""

    database: rocksdict.Rdict
    family: rocksdict.Rdict
    links: Links | None
    signature: object

    def close(self) -> None:
        self.family.close()
        self.database.close()
        if self.links is not None:
            self.links.remove()

    def leave_to_parent(self) -> None:
        """Never let go of handles that were opened before a fork.

        The engine's threads stayed in the parent: closing would wait for them.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.database))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.family))


class RocksdbRows(KeyedRows):
    """Rows in one column family; lookups follow who writes it, scans see it as at the first one.

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
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        super().__init__(str(path), key, dtype, inner, prefix)
        self._path = str(path.resolve())
        self._inner = inner or _DEFAULT
        self._max_age_s = max_age_s
        # Whoever opens or closes; and who reads by the handle of lookups.
        self._lock = threading.Lock()
        self._reading = Gate(after_fork_in_child=self._after_fork_in_child)
        self._closed = False
        self._process = os.getpid()
        self._now = self._open()
        self._look_at = time.monotonic() + max_age_s
        self._scanned: _Opened | None = None
        end_engine_at_exit(self)

    def _after_fork_in_child(self, _: bool) -> None:
        self._lock = threading.Lock()  # another thread of the parent may hold it

    def _open(self) -> _Opened:
        if not Path(self._path, "CURRENT").is_file():
            raise StoreNotFoundError(f"no {self.name} database at {self._path}")
        try:
            # Before, so that what is written meanwhile is noticed.
            signature = signature_of(Path(self._path))
            database, links = open_to_read(self._path, tuple({_DEFAULT, self._inner}))
            return _Opened(database, database.get_column_family(self._inner), links, signature)
        except AdapterError:
            raise
        except Exception as error:
            if "column family" in str(error).lower():
                raise StoreNotFoundError(
                    f"{self.name} at {self._path} has no column family {self._inner!r}"
                ) from error
            where = f"{self.name} at {self._path}"
            raise denied_by_engine(where, error) or AdapterError(
                f"{where} cannot be opened: {error}"
            ) from error

    def _check(self) -> None:
        """See that handles are of this process, and not closed; the lock is held."""
        if self._closed:
            raise AdapterError(f"{self.name} at {self._path} is closed")
        if self._process != os.getpid():
            self._now.leave_to_parent()
            if self._scanned is not None and self._scanned is not self._now:
                self._scanned.leave_to_parent()
            self._now, self._scanned = self._open(), None
            self._process = os.getpid()

    def _follow(self) -> None:
        """Open the database anew if somebody has written since, and it is time to look.

        Raises
        ------
        AdapterError, StoreNotFoundError
            It cannot be opened any more: what was read before may be old by now.
        """
        due = self._process != os.getpid() or time.monotonic() >= self._look_at
        if not due and not self._closed:
            return
        with self._lock:
            self._check()
            if time.monotonic() < self._look_at:
                return  # another thread has just done it
            if self._signature() != self._now.signature:
                new = self._open()
                with self._reading.alone():
                    old, self._now = self._now, new
                if old is not self._scanned:
                    old.close()
            self._look_at = time.monotonic() + self._max_age_s

    def _signature(self) -> object:
        try:
            return signature_of(Path(self._path))
        except FileNotFoundError:
            return None  # replaced just now, or gone: opening it says so

    def _values(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        asked: Any = list(keys)
        self._follow()
        with self._reading.inside:  # else closing would take the handle from under it
            if self._closed:
                raise AdapterError(f"{self.name} at {self._path} is closed")
            values: list[bytes | None] = self._now.family.get(asked)  # type: ignore[assignment]
        return values

    def _as_scanned(self) -> _Opened:
        """Return the database as all scans see it."""
        with self._lock:
            self._check()
            if self._scanned is None:
                self._scanned = self._now
            return self._scanned

    def _batches(self, prefix: bytes, after: bytes | None) -> Iterator[Pairs]:
        pairs, most = self._pairs(prefix, after), 1
        while batch := list(islice(pairs, most)):
            yield batch
            most = batch_size(batch)

    def _pairs(self, prefix: bytes, after: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        options = rocksdict.ReadOptions()
        options.set_readahead_size(_READ_AHEAD_BYTES)
        cursor = self._as_scanned().family.iter(options)
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
        """Return who the database is, and the number of its last write, as scans see it."""
        scanned = self._as_scanned()
        own = Path(self._path, "IDENTITY")
        return {
            "identity": own.read_text().strip() if own.exists() else "",
            "sequence": scanned.database.latest_sequence_number(),
        }

    def count(self) -> int:
        """Return about how many keys there are: those written twice may count twice."""
        family = self._as_scanned().family
        # The engine's own estimate needs statistics that opening here does not gather.
        of_files = family.property_value("rocksdb.aggregated-table-properties") or ""
        entries = re.search(r"# entries=(\d+)", of_files)
        in_memory = family.property_int_value("rocksdb.num-entries-active-mem-table") or 0
        return in_memory + (int(entries[1]) if entries else 0)

    def close(self) -> None:
        """Close the database when nobody reads; a second call does nothing."""
        with self._lock, self._reading.alone():
            self._release()

    def end(self) -> None:
        """Close it at the end of the interpreter, unless a read hangs."""
        with self._reading.alone_soon(PATIENCE_S) as alone:
            if alone:
                self._release()

    def _release(self) -> None:
        if not self._closed and self._process == os.getpid():
            self._now.close()
            if self._scanned is not None and self._scanned is not self._now:
                self._scanned.close()
        self._closed = True
