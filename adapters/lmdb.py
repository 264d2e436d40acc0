"""Blocks in LMDB: a memory-mapped B-tree in one file, shared by processes.

Traps this module steers around, all of them measured:

- A value that does not fit half a page goes to *overflow pages* of its own, behind a page
  header of 16 bytes (engine 0.9) or 24 (engine 1.0). A value of 4096 bytes takes two.
- With the default read-ahead the kernel reads some 50 pages for every cold lookup.
- Buffers that a transaction hands out are valid inside it only, and fail silently later.
- A process must not open an environment twice: closing one would drop the file locks of
  the other. Adapters on one path share an environment here.
- An environment must not cross a fork. Closing it in the child is wrong too: it clears
  the *parent's* slots in the reader table, and a writer may then recycle pages that the
  parent is reading. So the parent closes before the fork, and both sides open again.
"""

from __future__ import annotations

import os
import threading
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
    key_bytes,
)
from bandana_kv.adapters.gate import Gate, StaleHandleError
from bandana_kv.adapters.lmdb_reads import TreeReads
from bandana_kv.adapters.residency import MappedPages
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    DiskFullError,
    InputError,
    StoreNotFoundError,
)

__all__ = ["LmdbAdapter", "acquire", "release"]

_DATA_FILE = "data.mdb"
_MAP_STEP = 16 << 20
_MAP_AS_RECORDED = 0
_MAX_READERS = 1024
_MAX_DATABASES = 16
_KEY_BYTES = 8
_DELETE_PIECE = 1 << 14
_TOUCH_THREADS = 16
_SPARE_PAGES = 1024


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
        self, environment: _Environment, *, pages: int, read_only: bool, database: object = None
    ) -> None:
        self._environment = environment
        self._user_database = database
        super().__init__(environment.where, pages=pages, read_only=read_only, gate=environment.gate)

    @classmethod
    def create(cls, path: Path, *, size_hint_bytes: int, pages: int) -> Self:
        """Make a new, empty environment at `path` and open it for writing."""
        cls._make_directory(path)
        # Leaf and branch pages add under 1 %; the rest is room for the free list.
        map_bytes = _rounded_map(size_hint_bytes + size_hint_bytes // 16 + _MAP_STEP)
        return cls._on_path(path, read_only=False, pages=pages, map_bytes=map_bytes)

    @classmethod
    def open_existing(cls, path: Path, *, read_only: bool, pages: int) -> Self:
        """Open the environment at `path`; StoreNotFoundError if there is none."""
        if not (path / _DATA_FILE).is_file():
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
            _Environment.of_user(environment),
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
            if found.f_bavail * found.f_frsize < _MAP_STEP:
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

    def _bulk_writer(self) -> BulkWriter:
        return _Writer(self)

    def _first_key(self, first: int, last: int) -> int | None:
        with self._begin() as txn, txn.cursor() as cursor:
            return _seek(cursor, first, last)

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
        with ThreadPoolExecutor(_TOUCH_THREADS) as pool:
            for _ in pool.map(read, parts):
                pass

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


def _rounded_map(size_bytes: int) -> int:
    return -(-size_bytes // _MAP_STEP) * _MAP_STEP


class _Environment:
    """An environment, opened once per process however many adapters are on it.

    The handle changes only while the gate is held alone: before a fork, when the map must
    grow, and when a writer joins readers.
    """

    handle: lmdb.Environment
    reads: TreeReads | None
    """Of many blocks in flight, where that is possible."""

    def __init__(self, path: str, *, read_only: bool, map_bytes: int) -> None:
        self.where = path
        self.is_users = False
        self.references = 0
        self._read_only = read_only
        self._map_bytes = map_bytes
        self._process = os.getpid()
        self._open()
        self.pages = MappedPages(Path(path, _DATA_FILE))
        self._map_bytes = _MAP_AS_RECORDED
        self.gate = Gate(self._close_for_fork, self._after_fork_in_child)

    @classmethod
    def of_user(cls, handle: lmdb.Environment) -> _Environment:
        """Wrap an environment that is not ours to close, reopen or enlarge."""
        self = cls.__new__(cls)
        self.where = handle.path()
        self.is_users = True
        self.references = 1
        self.handle = handle
        self.reads = None  # nothing says which tree of the file is theirs
        self._read_only = handle.flags()["readonly"]
        self._map_bytes = 0
        self._process = os.getpid()
        self._open_now = True
        # With subdir=False the environment's path is the file itself.
        where = Path(self.where)
        self.pages = MappedPages(where / _DATA_FILE if where.is_dir() else where)
        self.gate = Gate()
        return self

    def engine_version(self) -> tuple[int, ...]:
        """Return the version of the engine that this environment is in the format of."""
        # One py-lmdb carries two engines since its release 3.
        of_environment = getattr(self.handle, "lib_version", lmdb.version)
        return tuple(of_environment())

    def _open(self) -> None:
        media_is_read_only = bool(os.statvfs(self.where).f_flag & os.ST_RDONLY)
        handle = lmdb.open(
            self.where,
            map_size=self._map_bytes,
            readonly=self._read_only,
            # Without the lock file a reader is not in the table of readers, and a writer
            # may recycle pages under it. Only where nobody can write is that no danger.
            lock=not (self._read_only and media_is_read_only),
            readahead=False,
            # The buffers below are written in full, so zeroing them first is waste.
            meminit=False,
            max_readers=_MAX_READERS,
            # Ours has none; rows by key may lie in one of a user's.
            max_dbs=_MAX_DATABASES,
            create=not self._read_only,
        )
        self._refuse_truncated(handle)
        self.handle = handle
        try:
            self.reads = TreeReads.of(
                Path(self.where, _DATA_FILE), self.engine_version()[0], handle.stat()["psize"]
            )
        except BaseException:
            handle.close()
            raise
        self._open_now = True

    def _close_handle(self) -> None:
        self._open_now = False
        if self.reads is not None:
            self.reads.close()
        self.handle.close()

    def _refuse_truncated(self, handle: lmdb.Environment) -> None:
        # A read past the end of a mapped file is not an error but a SIGBUS.
        # Pages that a transaction took and gave back may be missing at the end.
        page_bytes = handle.stat()["psize"]
        pages = handle.info()["last_pgno"] + 1
        spare = max(8, min(_SPARE_PAGES, pages // 16))
        found = Path(self.where, _DATA_FILE).stat().st_size
        if found < (pages - spare) * page_bytes:
            handle.close()
            raise lmdb.CorruptedError(
                f"{_DATA_FILE} is cut short: {found} of {pages * page_bytes} bytes"
            )

    def check(self) -> None:
        """Raise when the handle cannot be used in this process as it is."""
        if not self._open_now or self._process != os.getpid():
            raise StaleHandleError("the environment was opened before a fork")

    def recover(self, error: Exception) -> bool:
        """Reopen after a fork, follow a map that has grown, or enlarge a full one."""
        if self.is_users:
            return False
        if isinstance(error, StaleHandleError):
            return self._reopen()
        if isinstance(error, lmdb.MapResizedError):
            with self.gate.alone():
                self.handle.set_mapsize(0)
            return True
        if isinstance(error, lmdb.MapFullError):
            return self._grow()
        return False

    def _reopen(self) -> bool:
        with self.gate.alone():
            if self._process != os.getpid():
                return False
            if not self._open_now:
                self._open()
        return True

    def _grow(self) -> bool:
        with self.gate.alone():
            size = self.handle.info()["map_size"]
            self.handle.set_mapsize(_rounded_map(size + size // 4 + _MAP_STEP))
        return True

    def allow_writing(self) -> None:
        """Turn a read-only environment into a writable one, between its readers' calls."""
        with self.gate.alone():
            if not self._read_only:
                return
            if self._open_now:
                self._close_handle()
            self._read_only = False
            try:
                self._open()
            except Exception:
                self._read_only = True  # the readers reopen at their next call
                raise

    def close(self) -> None:
        with self.gate.alone():
            if self._open_now and self._process == os.getpid():
                self._close_handle()
            self._open_now = False

    def _close_for_fork(self) -> None:
        if self._open_now:
            self._close_handle()

    def _after_fork_in_child(self, closed_before: bool) -> None:
        if closed_before:
            self._process = os.getpid()


# What is open in this process, by the identity of the data file: paths have aliases.
_open_environments: dict[tuple[int, int], _Environment] = {}
_registry_lock = threading.Lock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_registry_lock.acquire,
        after_in_parent=_registry_lock.release,
        after_in_child=_registry_lock.release,
    )


def _identity(path: str) -> tuple[int, int]:
    found = Path(path, _DATA_FILE).stat()
    return found.st_dev, found.st_ino


def acquire(path: Path, *, read_only: bool, map_bytes: int) -> _Environment:
    """Return the environment at `path`, opened now or shared, and count a reference."""
    where = str(path.resolve())
    with _registry_lock:
        known = None
        if Path(where, _DATA_FILE).exists():
            known = _open_environments.get(_identity(where))
        if known is None:
            known = _Environment(where, read_only=read_only, map_bytes=map_bytes)
            _open_environments[_identity(where)] = known
        elif not read_only:
            known.allow_writing()
        known.references += 1
        return known


def release(environment: _Environment) -> None:
    """Drop a reference; the last one closes what was not a user's."""
    if environment.is_users:
        return
    with _registry_lock:
        environment.references -= 1
        if environment.references:
            return
        for identity, known in list(_open_environments.items()):
            if known is environment:
                del _open_environments[identity]
        environment.close()
