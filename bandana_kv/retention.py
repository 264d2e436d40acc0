"""Which versions of a store stay, and that none goes while some process reads it.

A reader holds a shared ``flock`` on the manifest of its version, opened read-only: that
works on read-only media, a forked child inherits it, and a process that dies lets go of it.
Whoever removes a version first takes the lock alone, and leaves the version where that is
refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bandana_kv.errors import BandanaError, FormatError
from bandana_kv.manifest import (
    Manifest,
    current_number,
    current_path,
    has_store,
    manifest_path,
    numbers_in,
    read_current,
    read_version,
    segment_path,
    temporary_path,
)

__all__ = ["discard", "drop_unused", "hold_current"]


def hold_current(root: Path, resources: contextlib.ExitStack) -> Manifest:
    """Return the manifest of the version to serve, which stays until `resources` closes.

    Raises
    ------
    StoreNotFoundError, FormatError
        As :func:`bandana_kv.manifest.read_current`.
    """
    while True:
        version = current_number(root)
        handle = _shared_lock(manifest_path(root, version))
        if handle is not None:
            resources.callback(os.close, handle)
            return read_version(root, version)
        # Removed after CURRENT was read: then another version is current by now.
        if current_number(root) == version:
            read_version(root, version)  # says what is wrong


def _shared_lock(path: Path) -> int | None:
    """Open a manifest and lock it against removal; None where it is not there any more."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        # A lock on what has no name any more keeps nothing.
        if os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    except FileNotFoundError:
        pass
    except OSError as error:
        os.close(handle)
        raise FormatError(f"{path}: cannot be locked ({error.strerror})") from error
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def drop_unused(root: Path, keep: int, forget: Callable[[int], bool]) -> None:
    """Drop versions that need not stay, and the segments that none of the others uses.

    Only with the writer's lock held. What stays: the current version, those before it until
    there are `keep`, and any that some process reads. A version after the current one was
    rolled back from, or its load died.

    Parameters
    ----------
    root
        The store.
    keep
        How many versions stay, the current one included.
    forget
        Called with each segment before its directory is removed; False keeps it for now.

    Raises
    ------
    FormatError
        The current version cannot be read; nothing was dropped.
    """
    # One that cannot be read is not for this release to clear up after.
    current = read_current(root).version if has_store(root) else 0
    for path in (root / "manifests").glob(temporary_path(Path("*")).name):
        path.unlink()
    numbers = numbers_in(root / "manifests")
    upto = [number for number in numbers if number <= current]
    kept = set(upto[-keep:])
    for number in numbers:
        if number not in kept and not _removed(manifest_path(root, number)):
            kept.add(number)
    used: set[int] = set()
    for number in kept:
        try:
            used |= set(read_version(root, number).segments)
        except FormatError:
            used |= set(range(number + 1))  # whichever it needs, should it be restored
    for segment in numbers_in(root / "segments"):
        if segment not in used and forget(segment):
            shutil.rmtree(segment_path(root, segment))


def _removed(path: Path) -> bool:
    """Remove a manifest, unless somebody reads its version."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def discard(root: Path, version: int, forget: Callable[[int], bool]) -> None:
    """Remove what a failed load wrote, unless its version is served already.

    Only with the writer's lock held; `forget` as for :func:`drop_unused`.
    """
    with contextlib.suppress(BandanaError):
        if current_number(root) == version:
            return
    for path in (manifest_path(root, version), current_path(root)):
        temporary_path(path).unlink(missing_ok=True)
    manifest_path(root, version).unlink(missing_ok=True)
    if forget(version):
        shutil.rmtree(segment_path(root, version), ignore_errors=True)
