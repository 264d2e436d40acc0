"""Blocks in LMDB: a memory-mapped B-tree in one file, shared by processes.

Traps this module steers around, all of them measured:

- A value that does not fit half a page goes to *overflow pages* of its own, behind a page
  header of 16 bytes (engine 0.9) or 24 (engine 1.0). A value of 4096 bytes takes two.
- With the default read-ahead the kernel reads some 50 pages for every cold lookup.
- Buffers that a transaction hands out are valid inside it only, and fail silently later.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Self

import lmdb

from bandana_kv.adapters.contract import (
    PAGE_BYTES,
    Adapter,
    BulkWriter,
    Capabilities,
    Keys,
    Payloads,
    Words,
    key_bytes,
    space_bounds,
)
from bandana_kv.adapters.keys import any_of
from bandana_kv.adapters.lmdb_environment import (
    DATA_FILE,
    MAP_STEP,
    Environment,
    acquire,
    release,
    rounded_map,
)
from bandana_kv.adapters.lmdb_reads import failure
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    DiskFullError,
    InputError,
    StoreNotFoundError,
)
from bandana_kv.system.durable import sync_directory
from bandana_kv.system.threads import cannot_start

__all__ = ["LmdbAdapter"]

_MAP_AS_RECORDED = 0
_KEY_BYTES = 8
_DELETE_PIECE = 1 << 14
_TOUCH_THREADS = 16


class LmdbAdapter(Adapter):
    """Blocks in an LMDB environment of its own, or beside a user's keys in theirs.

    Readers in all processes see what a writer commits, at once. Open one on a path with
    :func:`bandana_kv.adapters.create` or :func:`~bandana_kv.adapters.open_existing`, on
    handles with :meth:`on`.

    Notes
    -----
    In an environment of its own one call keeps many reads in flight, where the system and the
    file's format allow it (:mod:`bandana_kv.adapters.lmdb_reads`). Elsewhere each read waits in
    a page fault, with the GIL released, and queue depth comes from threads. Where the system's
    page is larger than 4096 bytes, a read costs one such page.
    """

    name: ClassVar[str] = "lmdb"
    engine_errors = (lmdb.Error, OSError)

    def __init__(
        self, environment: Environment, *, pages: int, read_only: bool, database: object = None
    ) -> None:
        self._environment = environment
        self._user_database = database
        super().__init__(environment.where, pages=pages, read_only=read_only, gate=environment.gate)

    @classmethod
    def create(cls, path: Path, *, size_hint_bytes: int, pages: int) -> Self:
        """Make a new, empty environment at `path` and open it for writing."""
        cls._make_directory(path)
        # Leaf and branch pages add under 1 %; the rest is room for the free list.
        map_bytes = rounded_map(size_hint_bytes + size_hint_bytes // 16 + MAP_STEP)
        made = cls._on_path(path, read_only=False, pages=pages, map_bytes=map_bytes)
        try:
            sync_directory(path)  # the engine syncs what its files hold, not their names
        except OSError as error:
            made.close()
            raise cls._cannot_open(str(path), error) from error
        return made

    @classmethod
    def open_existing(cls, path: Path, *, read_only: bool, pages: int) -> Self:
        """Open the environment at `path`; StoreNotFoundError if there is none."""
        if not (path / DATA_FILE).is_file():
            raise StoreNotFoundError(f"no {cls.name} store at {path}")
        return cls._on_path(path, read_only=read_only, pages=pages, map_bytes=_MAP_AS_RECORDED)

    @classmethod
    def _on_path(cls, path: Path, *, read_only: bool, pages: int, map_bytes: int) -> Self:
        try:
            environment = acquire(path, read_only=read_only, map_bytes=map_bytes)
        except cls.engine_errors as error:
            raise cls._cannot_open(str(path), error) from error
        try:
            return cls(environment, pages=pages, read_only=read_only)
        except BaseException:
            release(environment)
            raise

    @classmethod
    def on(
        cls,
        environment: lmdb.Environment,
        database: object,
        *,
        pages: int = 1,
        read_only: bool = False,
        strict: bool = True,
    ) -> Self:
        """Use a sub-database of an environment that the caller opened and will close.

        Parameters
        ----------
        environment
            An open ``lmdb.Environment``. It must outlive the adapter.
        database
            A handle from ``environment.open_db``; it may hold keys of the caller's.
        pages
            Device pages per block.
        read_only
            Refuse writes.
        strict
            Refuse an environment with read-ahead on, where each cold read costs dozens
            of pages; False accepts it.

        Raises
        ------
        InputError
            The sub-database orders keys in another way or allows duplicates, or the
            environment reads ahead.

        Notes
        -----
        The map is the caller's too: when it is full, DiskFullError says so, and
        ``environment.set_mapsize`` is for the caller to call. Writing takes the
        environment's write lock: a thread must not write while it holds a write
        transaction of its own.
        """
        where = environment.path()
        try:
            with environment.begin() as txn:
                unfit = [flag for flag, on in database.flags(txn).items() if on]  # type: ignore[attr-defined]
            opened = environment.flags()
        except cls.engine_errors as error:
            raise AdapterError(f"{cls.name} at {where} cannot be used: {error}") from error
        if unfit:
            raise InputError(
                f"the sub-database in {where} has {', '.join(unfit)}; blocks need a plain one"
            )
        if strict and opened["readahead"]:
            raise InputError(
                f"the environment {where} reads ahead, dozens of pages per lookup: open it "
                "with readahead=False, or pass strict=False"
            )
        return cls(
            Environment.of_user(environment),
            pages=pages,
            read_only=read_only or opened["readonly"],
            database=database,
        )

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter, opened as it is, can do."""
        return Capabilities(
            persistent=True,
            read_only_media=True,
            shared_by_processes=True,
            survives_fork=not self._environment.is_users,
            queue_depth="call" if self._environment.reads else "threads",
        )

    def payload_of(self, pages: int) -> int:
        """Return the largest value that costs exactly `pages` device pages to read."""
        major = self._environment.engine_version()[0]
        return pages * PAGE_BYTES - (24 if major >= 1 else 16)

    def _check_handle(self) -> None:
        self._environment.check()

    def _recover(self, error: Exception) -> bool:
        return self._environment.recover(error)

    def _translate(self, error: Exception) -> BandanaError:
        if isinstance(error, lmdb.MapFullError):
            return DiskFullError(
                f"{self.name} at {self._where}: no room for more: the environment's map is "
                "full; its owner may enlarge it with set_mapsize"
            )
        if "input/output error" in str(error).lower():
            # A write cut short by a full disk reaches us as an input/output error.
            found = os.statvfs(self._where)
            if found.f_bavail * found.f_frsize < MAP_STEP:
                return DiskFullError(f"{self.name} at {self._where}: no room for more: {error}")
        return super()._translate(error)

    def _begin(self, *, write: bool = False) -> lmdb.Transaction[memoryview]:
        environment = self._environment.handle
        return environment.begin(db=self._user_database, write=write, buffers=True)  # type: ignore[call-overload, no-any-return]

    def _read(self, keys: Keys, out: Payloads) -> None:
        reads = self._environment.reads
        with self._begin() as txn:
            if reads is None or not reads.read(txn.id(), keys, out):
                self._read_singly(txn, keys, out)
            # Inside the transaction the map cannot move.
            self._environment.pages.after_reads(len(keys))

    def reading(self, count: int, use: Callable[[Words], int]) -> int | None:
        """Have compiled code read, as :meth:`Adapter.reading` says."""
        if self._environment.reads is None:
            return None
        return self._call(lambda: self._reading(count, use))

    def _reading(self, count: int, use: Callable[[Words], int]) -> int | None:
        reads = self._environment.reads  # another, where the environment was opened anew
        if reads is None:
            return None
        with self._begin() as txn:
            result = reads.reading(txn.id(), self.payload_bytes, use)
            self._environment.pages.after_reads(count)
        return result

    def why_unread(self, key: int, found: int) -> BandanaError:
        """Return the error for a block of which so much was found."""
        del key
        return self._translate(failure(found))

    def _read_singly(self, txn: lmdb.Transaction[memoryview], keys: Keys, out: Payloads) -> None:
        length = self.payload_bytes
        flat = out.reshape(-1).data
        get = txn.get  # releases the GIL, and faults the value's pages in meanwhile
        for at, key in enumerate(key_bytes(keys)):
            value = get(key)
            if value is None:
                raise self._missing(int(keys[at]))
            if len(value) != length:
                raise self._wrong_length(int(keys[at]), len(value))
            flat[at * length : (at + 1) * length] = value

    def _write(self, keys: Keys, payloads: Payloads) -> None:
        with self._begin(write=True) as txn:
            for key, row in zip(key_bytes(keys), payloads, strict=True):
                txn.put(key, row.data)

    def _bulk_writer(self, count: int) -> BulkWriter:
        del count
        return _Writer(self)

    def _any_stored(self, keys: Keys) -> int | None:
        return any_of(keys, self._first_key)

    def _space_is_empty(self, space: int) -> bool:
        return self._first_key(*space_bounds(space)) is None

    def _first_key(self, first: int, last: int) -> int | None:
        """Return the lowest 8-byte key stored within first..last, or None."""
        with self._begin() as txn, txn.cursor() as cursor:
            return _seek(cursor, first, last)

    def _delete_space(self, space: int) -> None:
        self._delete_range(*space_bounds(space))

    def _delete_range(self, first: int, last: int) -> None:
        # In pieces: a transaction keeps every page that it changes in memory.
        low = self._first_key(first, last)
        while low is not None:
            high = min(low + _DELETE_PIECE - 1, last)
            self._touch(low, high)
            with self._begin(write=True) as txn:
                for key in self._keys_within(txn, low, high):
                    txn.delete(key)
            low = self._first_key(high, last)

    def _keys_within(self, txn: lmdb.Transaction[memoryview], first: int, last: int) -> list[bytes]:
        """Return the 8-byte keys stored within first..last."""
        keys: list[bytes] = []
        with txn.cursor() as cursor:
            found = cursor.set_range(first.to_bytes(_KEY_BYTES, "big"))
            end = last.to_bytes(_KEY_BYTES, "big")
            while found and (key := bytes(cursor.key())) <= end:
                if len(key) == _KEY_BYTES:
                    keys.append(key)
                found = cursor.next()
        return keys

    def _touch(self, first: int, last: int) -> None:
        """Bring the values of consecutive keys into memory, at the device's queue depth.

        Deleting reads what it deletes: a cursor faults in each value it moves to, and the
        engine frees a value by way of its page's header. By itself that is one read after
        the other. Keys that are not there cost no read.
        """

        def read(numbers: range) -> None:
            with self._begin() as txn:
                for number in numbers:
                    txn.get(number.to_bytes(_KEY_BYTES, "big"))

        parts = [range(at, last + 1, _TOUCH_THREADS) for at in range(first, first + _TOUCH_THREADS)]
        try:
            with ThreadPoolExecutor(_TOUCH_THREADS) as pool:
                for _ in pool.map(read, parts):
                    pass
        except RuntimeError as error:
            if not cannot_start(error):
                raise  # it only is slower without

    def _close(self) -> None:
        release(self._environment)


class _Writer:
    """Commits each chunk of a bulk load by itself, so that memory stays bounded."""

    def __init__(self, adapter: LmdbAdapter) -> None:
        self._adapter = adapter

    def write(self, keys: Keys, payloads: Payloads) -> None:
        with self._adapter._begin(write=True) as txn:
            # Appending packs leaf pages full; it needs keys above all others there.
            with txn.cursor() as cursor:
                append = not cursor.last() or bytes(cursor.key()) < key_bytes(keys[:1])[0]
            for key, row in zip(key_bytes(keys), payloads, strict=True):
                if not txn.put(key, row.data, overwrite=False, append=append):
                    raise lmdb.KeyExistsError(f"key {key.hex()} appeared during the load")

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


def _seek(cursor: lmdb.Cursor[memoryview], first: int, last: int) -> int | None:
    """Return the lowest 8-byte key within first..last; a user's other keys are skipped."""
    found = cursor.set_range(first.to_bytes(_KEY_BYTES, "big"))
    end = last.to_bytes(_KEY_BYTES, "big")
    while found:
        key = bytes(cursor.key())
        if key > end:
            return None
        if len(key) == _KEY_BYTES:
            return int.from_bytes(key, "big")
        found = cursor.next()
    return None
