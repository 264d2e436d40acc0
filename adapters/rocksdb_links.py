"""Directories of links to a database's files, by which it is read without a trace in its own.

They lie in the folder for temporary files. Whoever dies leaves its own; the next one to make one
removes it, which the lock that the living hold on theirs tells.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from bandana_kv.adapters.rocksdb_files import log_directory
from bandana_kv.errors import AdapterError

__all__ = ["Links"]

_PREFIX = "bandana-kv-links-"


class Links:
    """Links to the files of a database, removed by :meth:`remove`, or with this.

    Parameters
    ----------
    database
        Its directory.

    Attributes
    ----------
    path : str
        The directory of links.

    Raises
    ------
    AdapterError
        There is no folder for temporary files; says how to name one.
    """

    def __init__(self, database: Path) -> None:
        self.path, lock = _made()
        self._end = weakref.finalize(self, _remove, self.path, lock, os.getpid())
        for entry in os.scandir(database):
            own = entry.name == "LOCK" or entry.name.startswith(("LOG", "rocksdict-config"))
            if entry.is_file() and not own:
                Path(self.path, entry.name).symlink_to(Path(database, entry.name).absolute())
        of_log = log_directory(database)
        if of_log != database:
            for file in of_log.glob("*[0-9].log"):
                Path(self.path, file.name).symlink_to(file)

    def remove(self) -> None:
        """Remove them; a second call does nothing."""
        self._end()


def _made() -> tuple[str, int]:
    """Make a directory and return its path and the handle that holds its lock."""
    try:
        while True:
            made = tempfile.mkdtemp(prefix=_PREFIX)
            lock = _locked(made)
            if lock is not None:
                break
    except OSError as error:
        raise AdapterError(
            f"reading a rocksdb database takes a folder for temporary files ({error}); set TMPDIR "
            "to one that can be written to, some KiB are enough"
        ) from error
    for other in Path(made).parent.glob(f"{_PREFIX}*"):
        if str(other) != made:
            _remove_left(other)
    return made, lock


def _locked(made: str) -> int | None:
    """Hold a directory's lock; None if another process took it for one left by the dead."""
    try:
        lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(lock, fcntl.LOCK_SH)
    if os.fstat(lock).st_nlink:  # removed, it has no name any more
        return lock
    os.close(lock)
    return None


def _remove_left(path: Path) -> None:
    """Remove what a process that was killed has left; what somebody holds, stays."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
        finally:
            os.close(handle)


def _remove(path: str, lock: int, process: int) -> None:
    os.close(lock)
    if process == os.getpid():  # those of its parent a fork leaves alone
        shutil.rmtree(path, ignore_errors=True)
