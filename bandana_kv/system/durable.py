"""Files that outlast a crash of the machine, or an error that says they may not.

A sync that failed is never tried again as if it could still be good: the kernel drops what it could
not write, and reports the next sync as done. Whoever goes on writes everything anew, elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from bandana_kv.errors import BandanaError, DiskFullError, DurabilityError

__all__ = [
    "NO_ROOM",
    "disk_full_named",
    "make_directory",
    "replacing",
    "sync_directory",
    "sync_file",
    "temporary_path",
    "write_durably",
]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a full disk, or of a full share of it."""


def temporary_path(path: Path) -> Path:
    """Return the name under which a file is written before it takes its place."""
    return path.with_name(path.name + ".new")


def write_durably(path: Path, content: bytes) -> None:
    """Put `content` at `path`, by a rename: a crash leaves the old file or the new one.

    Raises
    ------
    DurabilityError
        The device failed. Where it says that the file is there, it may be gone after a crash.
    OSError
        It cannot be written; the old file is there.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            sync_file(file.fileno(), path)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    try:
        sync_directory(path.parent)
    except DurabilityError as error:
        raise DurabilityError(
            error.errno,
            f"{path}: is written, and whether it is there after a power failure too is not known: "
            f"{error.strerror}",
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give an empty file beside `path`, which takes its place at the end; no trace on an error.

    For files at paths that users name. In a directory where others may write too, /tmp for
    example, a name that can be guessed may be a link of theirs, to what only we may write to; and
    no name is so odd that a file of the user's own could not have it.
    """
    if not path.name:  # of "." and "/"
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    beside.touch(exist_ok=False)
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def sync_file(handle: int, path: Path) -> None:
    """Make what was written to a file durable.

    Parameters
    ----------
    handle
        Of the open file.
    path
        What an error calls it.

    Raises
    ------
    DurabilityError
        The device failed: what was written since the sync before may be lost, also where a later
        sync succeeds.
    OSError
        There is no room, which some file systems notice as late as now; the same holds.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise DurabilityError(error.errno, f"{path}: {_failed(error)}") from error


def _failed(error: OSError) -> str:
    said = f"the device did not make it durable ({error.strerror})"
    return f"{said}; see the system's log, and repeat"


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable.

    Raises
    ------
    DurabilityError
        The device failed.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_file(handle, path)
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, and make their names durable.

    Raises
    ------
    DurabilityError
        The device failed; what was made is removed again.
    OSError
        It cannot be made.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        for each in reversed(missing):
            # A directory that only may be entered and written to cannot be opened.
            with contextlib.suppress(PermissionError):
                sync_directory(each.parent)
    except BaseException:
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


@contextlib.contextmanager
def disk_full_named(root: Path) -> Iterator[None]:
    """Turn "no space left on device" into the library's own error."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and not isinstance(error, BandanaError):
            raise DiskFullError(
                error.errno, f"{root}: no space left; free some and load again, nothing was lost"
            ) from error
        raise
