"""The lock of the one process that loads into a store, places anew, repairs or rolls back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bandana_kv.disk.manifest import has_store, read_current
from bandana_kv.errors import DurabilityError, InputError, LoadInProgressError, StoreChangedError
from bandana_kv.system.durable import NO_ROOM, make_directory, sync_directory
from bandana_kv.system.permission import check_permission

__all__ = ["writer_lock"]

_LOCK = "lock"
# What the directory above says that is not ours, or where nothing is ever written.
_NOT_SYNCED_BY_US = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL)


@contextlib.contextmanager
def writer_lock(root: Path) -> Iterator[Callable[[], None]]:
    """Hold the store's writer lock; makes the directory, and removes it again if unused.

    What it gives is to be called before anything takes effect: it raises StoreChangedError if the
    locked directory is not at `root` any more.

    Raises
    ------
    LoadInProgressError
        Another process, or another thread, holds it. A process that died does not.
    InputError
        The directory cannot be made, or belongs to something else.
    """
    made = [path for path in (root, *root.parents) if not path.exists()]
    _refuse_foreign(root)
    try:
        handle = _lock_file(root)
    except OSError as error:
        check_permission(error, root)
        if error.errno in NO_ROOM or isinstance(error, DurabilityError):
            raise
        raise InputError(f"{root}: cannot be made a store directory ({error.strerror})") from error
    if handle is None:
        raise LoadInProgressError(
            f"{root}: another process is loading into it; wait for it or stop it"
        )
    try:
        if not has_store(root):
            _settle_names(root)
        yield lambda: _check_lock(root, handle)
    finally:
        if _is_at(root / _LOCK, handle) and not has_store(root):
            _remove_unused(root, made)
        # Said, since a child that was forked meanwhile has the handle too.
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _settle_names(root: Path) -> None:
    """Make the names of a store's directory and of its lock durable, before a first load."""
    # Segments that outlast the lock in a crash would be taken for somebody else's.
    sync_directory(root)
    try:
        # Who made the directory may have died before its name was durable.
        sync_directory(root.resolve().parent)
    except OSError as error:
        if error.errno not in _NOT_SYNCED_BY_US:
            raise


def _check_lock(root: Path, handle: int) -> None:
    if not _is_at(root / _LOCK, handle):
        raise StoreChangedError(
            f"{root}: another directory, or none, has come to lie here since the writing began; "
            "nothing of it takes effect. Leave the path alone meanwhile, and repeat"
        )


def _is_at(path: Path, handle: int) -> bool:
    """Return whether a file that is open lies at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _refuse_foreign(root: Path) -> None:
    """Refuse a directory where our names are taken by something that is no store."""
    if (root / _LOCK).exists():
        return
    if has_store(root):
        read_current(root)
    elif any((root / name).exists() for name in ("segments", "manifests")):
        raise InputError(f"{root}: holds segments or manifests, and is no store; name another")


def _lock_file(root: Path) -> int | None:
    """Open and lock the lock file; None where another load holds it."""
    while True:
        try:
            make_directory(root)
            handle = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # a failed first load has just removed the directory
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A failed first load may have removed the file between opening and locking;
            # a lock on what has no name any more keeps nobody out.
            if _is_at(root / _LOCK, handle):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _remove_unused(root: Path, made: list[Path]) -> None:
    """Leave nothing behind of a store that never came to be."""
    for name in ("segments", "manifests"):
        with contextlib.suppress(OSError):
            (root / name).rmdir()
    if not any((root / name).exists() for name in ("segments", "manifests")):
        (root / _LOCK).unlink(missing_ok=True)
    for path in made:
        with contextlib.suppress(OSError):
            path.rmdir()
