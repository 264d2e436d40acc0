"""LMDB environments, opened once per process however many adapters and sources are on them.

- A process must not open an environment twice: closing one would drop the file locks of
  the other. Adapters on one path share an environment here.
- An environment must not cross a fork. Closing it in the child is wrong too: it clears
  the *parent's* slots in the reader table, and a writer may then recycle pages that the
  parent is reading. So the parent closes before the fork, and both sides open again.
- A reader that is killed keeps its slot in the table of readers, of which there are 1,024, and
  pins pages. Who lives takes such slots back, once a second while it reads, and where none is
  left.
- The lock file of a directory lies in it; that of a single file (``subdir=False``) lies beside
  it, under the name that the file was opened by. A reader with another lock file is not seen by
  the writer, which may recycle pages under it.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import lmdb

from bandana_kv.adapters.gate import Gate, StaleHandleError
from bandana_kv.adapters.lmdb_reads import TreeReads
from bandana_kv.adapters.residency import MappedPages
from bandana_kv.errors import NoPermissionError
from bandana_kv.system.forks import at_fork

__all__ = ["DATA_FILE", "MAP_STEP", "Environment", "acquire", "release", "rounded_map"]

DATA_FILE = "data.mdb"
MAP_STEP = 16 << 20
_LOCK_ENDING = "-lock"
_MAP_AS_RECORDED = 0
_MAX_READERS = 1024
_MAX_DATABASES = 16
_SPARE_PAGES = 1024
# How often slots of dead readers are looked for, and how long whoever opens waits for others to.
_TIDY_S = 1.0
_OPEN_PATIENCE_S = 5.0


def rounded_map(size_bytes: int) -> int:
    """Return the size of a map that has room for so much."""
    return -(-size_bytes // MAP_STEP) * MAP_STEP


class Environment:
    """An environment, opened once per process however many adapters are on it.

    The handle changes only while the gate is held alone: before a fork, when the map must
    grow, and when a writer joins readers.
    """

    handle: lmdb.Environment
    reads: TreeReads | None
    """Of many blocks in flight, where that is possible."""

    def __init__(self, path: str, *, read_only: bool, map_bytes: int) -> None:
        self.where = path
        self.data_file = _data_file(path)
        self.is_users = False
        self.references = 0
        self._read_only = read_only
        self._map_bytes = map_bytes
        self._process = os.getpid()
        self._tidy_at = 0.0
        self._open()
        self.pages = MappedPages(self.data_file)
        self._map_bytes = _MAP_AS_RECORDED
        self.gate = Gate(self._close_for_fork, self._after_fork_in_child)

    @classmethod
    def of_user(cls, handle: lmdb.Environment) -> Environment:
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
        self._tidy_at = 0.0
        self.data_file = _data_file(self.where)
        self.pages = MappedPages(self.data_file)
        self.gate = Gate()
        return self

    def engine_version(self) -> tuple[int, ...]:
        """Return the version of the engine that this environment is in the format of."""
        # One py-lmdb carries two engines since its release 3.
        of_environment = getattr(self.handle, "lib_version", lmdb.version)
        return tuple(of_environment())

    def _open(self) -> None:
        end = time.monotonic() + _OPEN_PATIENCE_S
        while True:
            try:
                self._open_handle()
            except lmdb.ReadersFullError as error:
                # Opening takes a slot, and only who is in can take those of the dead back.
                if time.monotonic() > end:
                    raise lmdb.ReadersFullError(
                        f"all {_MAX_READERS} slots of its table of readers are taken, by killed "
                        "processes perhaps: a process that reads from it takes those back, and so "
                        "does opening it when all who have it open have ended"
                    ) from error
                time.sleep(_TIDY_S / 10)
            else:
                return

    def _open_handle(self) -> None:
        media_is_read_only = bool(os.statvfs(self.where).f_flag & os.ST_RDONLY)
        lock = self._lock_file()
        needed = lock if lock.exists() else lock.parent
        if self._read_only and not media_is_read_only and not os.access(needed, os.W_OK):
            raise NoPermissionError(
                errno.EACCES,
                f"no permission to write to {lock}, the table that readers enter themselves in, "
                "else a writer would take pages from under them: have its owner allow it (chmod "
                "a+rw; that of the rows stays as it is)",
            )
        handle = lmdb.open(
            self.where,
            subdir=self.data_file != Path(self.where),
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
        self.handle = handle
        try:
            self._refuse_truncated(handle)
            self._refuse_replaced(handle)
            self.reads = TreeReads.of(
                self.data_file, self.engine_version()[0], handle.stat()["psize"]
            )
        except BaseException:
            handle.close()
            raise
        self._open_now = True

    def _lock_file(self) -> Path:
        if self.data_file == Path(self.where):
            return self.data_file.with_name(f"{self.data_file.name}{_LOCK_ENDING}")
        return self.data_file.with_name("lock.mdb")

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
        found = self.data_file.stat().st_size
        if found < (pages - spare) * page_bytes:
            raise lmdb.CorruptedError(
                f"{self.data_file.name} is cut short: {found} of {pages * page_bytes} bytes"
            )

    def _refuse_replaced(self, handle: lmdb.Environment) -> None:
        # A file that was renamed over one that others still have open, a copy for example, has
        # their table of readers beside it. The engine takes the number of the last commit from
        # that table, and by it one of the file's two roots: perhaps an older one, or an empty
        # one, which the next commit would make the only one.
        before = handle.info()["last_txnid"]
        with handle.begin() as txn:
            number = txn.id()
        # A commit is in the file a moment before it is in the table.
        if not before - 1 <= number <= handle.info()["last_txnid"]:
            raise lmdb.CorruptedError(
                f"{self.data_file.name} has taken the place of a file that other processes still "
                f"have open, which shows in {self._lock_file().name}: end those first"
            )

    def check(self) -> None:
        """Raise when the handle cannot be used in this process as it is."""
        if not self._open_now or self._process != os.getpid():
            raise StaleHandleError("the environment was opened before a fork")
        now = time.monotonic()
        if now >= self._tidy_at:
            self._tidy_at = now + _TIDY_S
            self.handle.reader_check()

    def recover(self, error: Exception) -> bool:
        """Reopen after a fork, follow a map that grew, enlarge a full one, free dead readers."""
        if isinstance(error, lmdb.ReadersFullError):
            return self._free_slots()
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

    def _free_slots(self) -> bool:
        """Take back the slots of dead readers; return whether there is one by now."""
        with self.gate.inside:
            if not self._open_now:
                return True
            self.handle.reader_check()
            try:
                self.handle.begin().abort()  # another thread may have done it
            except lmdb.ReadersFullError:
                return False
        return True

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
            self.handle.set_mapsize(rounded_map(size + size // 4 + MAP_STEP))
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
        """Close what is open, in the process that opened it."""
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
_open_environments: dict[tuple[int, int], Environment] = {}
_registry_lock = threading.Lock()

at_fork(
    "environments",
    before=_registry_lock.acquire,
    in_parent=_registry_lock.release,
    in_child=_registry_lock.release,
)


def _data_file(where: str) -> Path:
    """Return the data file of an environment's path, which may be that file itself."""
    path = Path(where)
    return path if path.is_file() else path / DATA_FILE


def _identity(path: str) -> tuple[int, int]:
    found = _data_file(path).stat()
    return found.st_dev, found.st_ino


def acquire(path: Path, *, read_only: bool, map_bytes: int) -> Environment:
    """Return the environment at `path`, opened now or shared, and count a reference.

    `path` is a directory, or the file of an environment that has none.
    """
    where = str(_place(path))
    with _registry_lock:
        known = None
        if _data_file(where).exists():
            known = _open_environments.get(_identity(where))
        if known is None:
            known = Environment(where, read_only=read_only, map_bytes=map_bytes)
            _open_environments[_identity(where)] = known
        elif not read_only:
            known.allow_writing()
        known.references += 1
        return known


def _place(path: Path) -> Path:
    """Return the absolute path by which others open the environment, for their lock file."""
    if not path.is_file():
        return path.resolve()
    named, real = path.parent.resolve() / path.name, path.resolve()
    for file in (named, real):
        if file.with_name(f"{file.name}{_LOCK_ENDING}").exists():
            return file
    # What nobody has open may be the file of a directory, or may be a copy of one.
    return real.parent if real.name == DATA_FILE else named


def release(environment: Environment) -> None:
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
