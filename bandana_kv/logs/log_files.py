"""Access logs in files: the two arrays read by their format, and written in one step."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bandana_kv.errors import DiskFullError, DurabilityError, InputError
from bandana_kv.logs.formats import WRITERS, format_of, read_directory, reader_of
from bandana_kv.logs.formats.bad_rows import BadRows
from bandana_kv.logs.options import LogOptions
from bandana_kv.progress import Progress
from bandana_kv.system.durable import replacing, sync_directory, sync_file
from bandana_kv.system.permission import check_permission

__all__ = ["read_arrays", "write_arrays"]


def read_arrays(
    path: Path, options: LogOptions, bad: BadRows, progress: Progress
) -> tuple[str, NDArray[Any], NDArray[Any]]:
    """Return what a file or directory is called, and its offsets and ids, not checked.

    Raises as :meth:`bandana_kv.AccessLog.read`.
    """
    try:
        if path.is_dir():
            return read_directory(path, options, bad, progress)
        return str(path), *_of_file(path, options, bad, progress)
    except OSError as error:
        check_permission(error, path)
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _of_file(
    path: Path, options: LogOptions, bad: BadRows, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    if not path.suffix and not path.exists():
        raise InputError(f"{path}: no such file or directory")  # perhaps a recording's
    read = reader_of(path, options)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    return read(path, options, bad, progress)


def write_arrays(path: Path, offsets: NDArray[Any], ids: NDArray[Any]) -> None:
    """Write a log in the format of its suffix; raises as :meth:`bandana_kv.AccessLog.write`."""
    write = WRITERS[format_of(path, WRITERS)]
    try:
        with replacing(path) as partial:
            write(partial, offsets, ids)
            with open(partial, "rb") as file:
                sync_file(file.fileno(), path)
        sync_directory(path.parent)
    except DurabilityError:
        raise
    except OSError as error:
        check_permission(error, path)
        if error.errno == errno.ENOSPC:
            raise DiskFullError(f"{path}: no room on the device") from error
        if error.errno is None:
            raise
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
