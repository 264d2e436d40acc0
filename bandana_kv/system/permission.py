"""What may not be read or written is told as that, and never as missing or damaged."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from bandana_kv.errors import BandanaError, NoPermissionError

__all__ = ["check_permission", "denied_by_engine", "no_permission", "permission_named"]

_DENIED = (errno.EACCES, errno.EPERM)
_DENIED_TEXTS = ("permission denied", "operation not permitted")


def check_permission(error: Exception, path: str | os.PathLike[str]) -> None:
    """Raise what an error is if it is one of permission; to be asked before it becomes another.

    Parameters
    ----------
    error
        What was caught.
    path
        What it is about, where the error itself does not name a file.

    Raises
    ------
    NoPermissionError
        Names the file or directory that may not be read, written or entered.
    """
    if isinstance(error, NoPermissionError):
        raise error
    if isinstance(error, OSError) and error.errno in _DENIED:
        named = error.filename if isinstance(error.filename, str | bytes) else path
        raise no_permission(os.fsdecode(named)) from error


def no_permission(path: str | os.PathLike[str]) -> NoPermissionError:
    """Return the error that says what may not be done with `path`, or with what it lies in."""
    doing, what = _lacking(Path(path))
    return NoPermissionError(
        errno.EACCES,
        f"no permission to {doing} {what}; run as a user who may, or have its owner allow it",
    )


def denied_by_engine(what: str, error: Exception) -> NoPermissionError | None:
    """Return the error for one of an engine about `what`, if its text speaks of permission."""
    if isinstance(error, NoPermissionError):
        return error
    if not any(sign in str(error).lower() for sign in _DENIED_TEXTS):
        return None
    return NoPermissionError(
        errno.EACCES,
        f"no permission to use {what}: {error}; run as a user who may, or have its owner allow it",
    )


@contextlib.contextmanager
def permission_named() -> Iterator[None]:
    """Turn an error of permission that nothing below has told into the library's own."""
    try:
        yield
    except PermissionError as error:
        if isinstance(error, BandanaError) or error.filename is None:
            raise
        check_permission(error, error.filename)
        raise


def _lacking(path: Path) -> tuple[str, Path]:
    """Return what the user may not do, and with what."""
    path = path.absolute()
    for above in reversed(path.parents):
        if not os.access(above, os.X_OK):
            return "enter", above
        if not os.path.lexists(above):
            return "write to", above.parent
    if not os.path.lexists(path):
        return "write to", path.parent
    if not os.access(path, os.R_OK):
        return "read", path
    if path.is_dir() and not os.access(path, os.X_OK):
        return "enter", path
    return "write to", path
