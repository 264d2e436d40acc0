"""Blocks in RocksDB, through rocksdict: sorted files, read past the page cache.

Traps this module steers around, all of them measured:

- Only a *list* of keys becomes one MultiGet with the GIL released, and inside it reads
  follow one another: queue depth comes from threads.
- A data block holds its values, 33 bytes of framing around each, and a trailer. One value
  per block, of just the right length, makes every block one device page at a page's
  boundary, so that a direct read moves that page and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path
from typing import Any, ClassVar, Self

import rocksdict

from bandana_kv.adapters.contract import (
    PAGE_BYTES,
    Adapter,
    BulkWriter,
    Capabilities,
    Keys,
    Payloads,
    describe_key,
    key_bytes,
    space_bounds,
)
from bandana_kv.adapters.gate import Gate, StaleHandleError
from bandana_kv.adapters.keys import any_of
from bandana_kv.adapters.rocksdb_bulk import SortedFiles
from bandana_kv.adapters.rocksdb_files import newest_options
from bandana_kv.adapters.rocksdb_links import Links
from bandana_kv.adapters.rocksdb_open import open_to_read, open_to_write
from bandana_kv.errors import AdapterError, InputError, StoreNotFoundError

__all__ = ["RocksdbAdapter"]

_KEY_BYTES = 8
_SEQUENCE_BYTES = 8
_RESTARTS_AND_TRAILER_BYTES = 4 + 4 + 5
_READ_CHUNK_BYTES = 4 << 20
_DELETE_CHUNK = 4096


class RocksdbAdapter(Adapter):
    """Blocks in a RocksDB of its own, or in a user's column family beside their keys.

    One process at a time writes. An adapter opened read-only sees the blocks there were
    when it was opened, and leaves no trace in the directory; any number of processes may
    have one. Open on a path with :func:`bandana_kv.adapters.create` or
    :func:`~bandana_kv.adapters.open_existing`, on a handle with :meth:`on`.

    Notes
    -----
    Reads are direct and nothing is cached; the index (about 25 bytes a block, filter
    included) stays in memory. Reading releases the GIL; bulk loading holds it while it
    copies.
    """

    name: ClassVar[str] = "rocksdb"
    # rocksdict raises plain Exception with the engine's status as text.
    engine_errors = (Exception,)

    def __init__(
        self,
        handle: rocksdict.Rdict,
        path: str,
        *,
        pages: int,
        read_only: bool,
        is_users: bool = False,
    ) -> None:
        self._handle = handle
        self._path = path
        self._is_users = is_users
        self._process = os.getpid()
        self._unflushed = False
        self._links: Links | None = None
        gate = Gate(after_fork_in_child=self._after_fork_in_child)
        super().__init__(path, pages=pages, read_only=read_only, gate=gate)

    @classmethod
    def create(cls, path: Path, *, size_hint_bytes: int, pages: int) -> Self:
        """Make a new, empty database at `path` and open it for writing."""
        cls._make_directory(path)
        del size_hint_bytes  # files grow as they are written
        return cls._on_path(path, read_only=False, pages=pages)

    @classmethod
    def open_existing(cls, path: Path, *, read_only: bool, pages: int) -> Self:
        """Open the database at `path`; StoreNotFoundError if there is none."""
        if not (path / "CURRENT").is_file():
            raise StoreNotFoundError(f"no {cls.name} store at {path}")
        return cls._on_path(path, read_only=read_only, pages=pages)

    @classmethod
    def _on_path(cls, path: Path, *, read_only: bool, pages: int) -> Self:
        where = str(path.resolve())
        try:
            handle, links = open_to_read(where) if read_only else (open_to_write(where), None)
        except Exception as error:
            raise cls._cannot_open(where, error) from error
        opened = cls(handle, where, pages=pages, read_only=read_only)
        opened._links = links
        return opened

    @classmethod
    def on(
        cls,
        column_family: rocksdict.Rdict,
        *,
        pages: int = 1,
        read_only: bool = False,
        strict: bool = True,
    ) -> Self:
        """Use a column family that the caller opened and will close.

        Parameters
        ----------
        column_family
            An open ``rocksdict.Rdict`` in raw mode: a database's default column family,
            or one from ``get_column_family``. It must outlive the adapter, and may hold
            keys of the caller's.
        pages
            Device pages per block.
        read_only
            Refuse writes.
        strict
            Refuse options under which a block costs more than its pages: compression,
            buffered reads, or a ``block_size`` that puts several values together. False
            accepts them.

        Raises
        ------
        InputError
            The handle is not in raw mode, or its options do not fit.
        """
        path = column_family.path()
        if not _is_raw(column_family):
            raise InputError(
                f"the column family in {path} is not in raw mode: open it with "
                "Options(raw_mode=True)"
            )
        unfit = _unfit_options(path, _column_family_name(column_family), pages)
        if strict and unfit:
            raise InputError(
                f"blocks in the column family of {path} would cost more than their pages: "
                f"{'; '.join(unfit)}; change that, or pass strict=False"
            )
        return cls(column_family, path, pages=pages, read_only=read_only, is_users=True)

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter, opened as it is, can do."""
        own_reader = self._read_only and not self._is_users
        return Capabilities(
            persistent=True,
            read_only_media=True,
            shared_by_processes=True,
            survives_fork=own_reader,
            queue_depth="threads",
        )

    def payload_of(self, pages: int) -> int:
        """Return the largest value that costs exactly `pages` device pages to read."""
        # Ahead of a value: how much of the last key is shared (always none: 1 byte), the
        # key's length (1 byte), the value's length (7 bits a byte), the key and its
        # sequence number. Behind it: one restart point, their number, type and checksum.
        framing = 2 + _KEY_BYTES + _SEQUENCE_BYTES + _RESTARTS_AND_TRAILER_BYTES
        room = pages * PAGE_BYTES - framing
        length_bytes = 1
        while room - length_bytes >= 1 << (7 * length_bytes):
            length_bytes += 1
        return room - length_bytes

    def _after_fork_in_child(self, _: bool) -> None:
        # The engine's threads stayed in the parent, so closing would wait for them for
        # ever: the child never lets go of the inherited handle.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._handle))

    def _check_handle(self) -> None:
        if self._process != os.getpid():
            raise StaleHandleError("it was opened before a fork; open it again in the child")

    def _recover(self, error: Exception) -> bool:
        reopens = self._read_only and not self._is_users
        if not isinstance(error, StaleHandleError) or not reopens:
            return False
        with self._gate.alone():
            if self._process != os.getpid():
                self._handle, self._links = open_to_read(self._path)
                self._process = os.getpid()
        return True

    def _read(self, keys: Keys, out: Payloads) -> None:
        length = self.payload_bytes
        step = max(1, _READ_CHUNK_BYTES // length)
        flat = out.reshape(-1).data
        stored = key_bytes(keys)
        for start in range(0, len(stored), step):
            values = self._multi_get(keys, stored, start, start + step)
            for at, value in enumerate(values, start):
                if value is None:
                    raise self._missing(int(keys[at]))
                if len(value) != length:
                    raise self._wrong_length(int(keys[at]), len(value))
                flat[at * length : (at + 1) * length] = value

    def _multi_get(
        self, keys: Keys, stored: list[bytes], start: int, stop: int
    ) -> list[bytes | None]:
        try:
            asked: Any = stored[start:stop]
            values: list[bytes | None] = self._handle.get(asked)  # type: ignore[assignment]
        except Exception as error:
            if "corruption" in str(error).lower():
                self._name_damaged(keys[start:stop], stored[start:stop])
            raise
        return values

    def _name_damaged(self, keys: Keys, stored: list[bytes]) -> None:
        """Find the key behind a MultiGet's error, which does not say."""
        for key, name in zip(keys.tolist(), stored, strict=True):
            try:
                self._handle.get(name)
            except Exception as error:
                raise self._damaged(key, error) from error

    def _write(self, keys: Keys, payloads: Payloads) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        family = self._family()
        for key, row in zip(key_bytes(keys), payloads, strict=True):
            batch.put(key, row.tobytes(), family)
        self._commit(batch)

    def _family(self) -> rocksdict.ColumnFamily | None:
        """Return the column family that each entry of a batch must name.

        Else the entry goes to "default", whichever handle the batch is written to. A batch
        has a default of its own, but deletions ignore that in rocksdict 0.3.27.
        """
        if not self._is_users:
            return None
        return self._handle.get_column_family_handle(_column_family_name(self._handle))

    def _commit(self, batch: rocksdict.WriteBatch) -> None:
        durable = rocksdict.WriteOptions()
        durable.sync = True
        self._handle.write(batch, durable)
        self._unflushed = True

    def _bulk_writer(self, count: int) -> BulkWriter:
        del count
        return SortedFiles(self._handle, self._path, self.payload_bytes)

    def _any_stored(self, keys: Keys) -> int | None:
        return any_of(keys, self._first_key)

    def _space_is_empty(self, space: int) -> bool:
        return self._first_key(*space_bounds(space)) is None

    def _first_key(self, first: int, last: int) -> int | None:
        """Return the lowest 8-byte key stored within first..last, or None."""
        cursor = self._handle.iter()
        cursor.seek(first.to_bytes(_KEY_BYTES, "big"))
        end = last.to_bytes(_KEY_BYTES, "big")
        while cursor.valid():
            key: bytes = cursor.key()
            if key > end:
                return None
            if len(key) == _KEY_BYTES:  # a user's other keys are skipped
                return int.from_bytes(key, "big")
            cursor.next()
        cursor.status()
        return None

    def _delete_space(self, space: int) -> None:
        first, last = space_bounds(space)
        if self._is_users:
            self._delete_singly(first, last)
            return
        low = first.to_bytes(_KEY_BYTES, "big")
        end = last.to_bytes(_KEY_BYTES, "big") + b"\0"
        batch = rocksdict.WriteBatch(raw_mode=True)
        batch.delete_range(low, end)
        self._commit(batch)
        # Until a compaction the space on the device is not free.
        self._handle.compact_range(low, end)

    def _delete_singly(self, first: int, last: int) -> None:
        """Delete 8-byte keys one by one: a range may enclose a user's longer keys."""
        key = self._first_key(first, last)
        while key is not None:
            batch = rocksdict.WriteBatch(raw_mode=True)
            family = self._family()
            cursor = self._handle.iter()
            cursor.seek(key.to_bytes(_KEY_BYTES, "big"))
            end = last.to_bytes(_KEY_BYTES, "big")
            while cursor.valid() and cursor.key() <= end and len(batch) < _DELETE_CHUNK:
                if len(cursor.key()) == _KEY_BYTES:
                    batch.delete(cursor.key(), family)
                cursor.next()
            cursor.status()
            self._commit(batch)
            deleted, key = key, self._first_key(key, last)
            if key == deleted:
                raise AdapterError(f"{self.name} at {self._where} keeps {describe_key(key)}")

    def _close(self) -> None:
        if self._is_users or self._process != os.getpid():
            return
        # On a full disk flushing fails, on its own and within the closing. Nothing is lost
        # by that: what a write promised is in the log, which was synced.
        with contextlib.suppress(Exception):
            if self._unflushed:
                self._handle.flush()  # else every read-only open replays the log
        with contextlib.suppress(Exception):
            self._handle.close()
        if self._links is not None:
            self._links.remove()


def _is_raw(column_family: rocksdict.Rdict) -> bool:
    """Return whether keys are taken as bytes only, which is how raw mode shows."""
    try:
        column_family.get("raw?")
    except Exception as error:
        return "raw mode" in str(error)
    return False


def _column_family_name(column_family: rocksdict.Rdict) -> str:
    # The handle does not tell its name, but its statistics are headed by it.
    statistics = column_family.property_value("rocksdb.cfstats") or ""
    found = re.search(r"Compaction Stats \[(.*)\]", statistics)
    return found.group(1) if found else "default"


def _unfit_options(path: str, family: str, pages: int) -> list[str]:
    """Return what in the newest options file makes a block cost more than its pages."""
    sections = newest_options(Path(path))
    database = sections.get("[DBOptions]", {})
    columns = sections.get(f'[CFOptions "{family}"]', {})
    table = sections.get(f'[TableOptions/BlockBasedTable "{family}"]', {})
    unfit = []
    if columns.get("compression", "kNoCompression") != "kNoCompression":
        unfit.append(f"compression is {columns['compression']}")
    if database.get("use_direct_reads") == "false":
        unfit.append("use_direct_reads is off")
    if int(table.get("block_size", PAGE_BYTES)) > pages * PAGE_BYTES:
        unfit.append(f"block_size is {table['block_size']}, not {PAGE_BYTES}")
    return unfit
