"""Which versions of a store stay, and that none goes while some process reads it.

A reader holds a shared ``flock`` on the manifest of its version, opened read-only: that
works on read-only media, a forked child inherits it, and a process that dies lets go of it.
Whoever removes a version first takes the lock alone, and leaves the version where that is
refused.

A table that was placed anew has two placements in one key space, and updates are flushed into the
blocks of one of them: the current version's, or else the one that was current last. Versions
with the other are *superseded*: nobody may go back to them, and they go as soon as nobody reads
them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bandana_kv.disk.manifest import (
    Manifest,
    current_number,
    current_path,
    has_store,
    manifest_path,
    numbers_in,
    read_current,
    read_version,
    segment_path,
)
from bandana_kv.errors import BandanaError, FormatError, NoPermissionError
from bandana_kv.system.durable import sync_directory, temporary_path, write_durably
from bandana_kv.system.permission import check_permission

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = [
    "discard",
    "drop_superseded",
    "drop_unused",
    "forget_blocks",
    "held_spaces",
    "hold_current",
    "hold_version",
    "note_held_spaces",
    "readable",
    "superseded",
]

_SPACES_FILE = "held-spaces"


def hold_current(root: Path, resources: contextlib.ExitStack) -> Manifest:
    """Return the manifest of the version to serve, which stays until `resources` closes.

    Raises
    ------
    StoreNotFoundError, FormatError
        As :func:`bandana_kv.disk.manifest.read_current`.
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


def hold_version(root: Path, version: int, resources: contextlib.ExitStack) -> Manifest:
    """Return the manifest of a version, which stays until `resources` closes.

    Only with the writer's lock held: else it may be removed before it is held.
    """
    handle = _shared_lock(manifest_path(root, version))
    if handle is not None:
        resources.callback(os.close, handle)
    return read_version(root, version)


def readable(root: Path) -> dict[int, Manifest]:
    """Return the manifests of all versions that can be read, by rising number."""
    found = {}
    for number in numbers_in(root / "manifests"):
        with contextlib.suppress(FormatError):
            found[number] = read_version(root, number)
    return found


def superseded(kept: Mapping[int, Manifest], current: int) -> set[int]:
    """Return the versions to which nobody may go back: some table of theirs was placed anew.

    Also one that a re-placement wrote which died before the switch: updates may have gone into
    the blocks of the placement before it since.
    """
    live = _live_placements(kept, current)
    return {
        number
        for number, each in kept.items()
        if any(live[table.space] != table.files for table in each.tables.values())
    }


def _live_placements(kept: Mapping[int, Manifest], current: int) -> dict[int, int]:
    """Return where the arrays of the placement lie that is in use, by key space."""
    live: dict[int, int] = {}
    for each in kept.values():
        for table in each.tables.values():
            live[table.space] = max(table.files, live.get(table.space, 0))
    if current in kept:
        live |= {table.space: table.files for table in kept[current].tables.values()}
    return live


def drop_superseded(root: Path) -> set[int]:
    """Remove the manifests of superseded versions that nobody reads; return those that stay.

    Only with the writer's lock held.
    """
    return _removed_all(root, superseded(readable(root), current_number(root)))


def _removed_all(root: Path, numbers: Iterable[int]) -> set[int]:
    """Remove manifests, and return those that somebody reads."""
    return {number for number in numbers if not _removed(manifest_path(root, number))}


def _shared_lock(path: Path) -> int | None:
    """Open a manifest and lock it against removal; None where it is not there any more."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        check_permission(error, path)
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
        check_permission(error, path)
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
    rolled back from, or its load died. Of superseded versions only those stay that are read, and
    with them what superseded them, or they would not be known for it any more.

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
    found = readable(root)
    old = superseded(found, current)
    read = _removed_all(root, old)
    upto = [number for number in numbers if number <= current and number not in old]
    kept = {*upto[-keep:], *read, *_superseding(found, current, read)}
    kept |= _removed_all(root, set(numbers) - old - kept)
    if set(numbers) - kept:
        sync_directory(root / "manifests")  # no version is left without what it is made of
    used: set[int] = set()
    for number in kept:
        try:
            used |= read_version(root, number).directories
        except (FormatError, NoPermissionError):
            used |= set(range(number + 1))  # whichever it needs, should it be restored
    for segment in numbers_in(root / "segments"):
        if segment not in used and forget(segment):
            shutil.rmtree(segment_path(root, segment))


def _superseding(kept: Mapping[int, Manifest], current: int, old: set[int]) -> set[int]:
    """Return the versions that have a placement in use which supersedes one of `old`."""
    live = _live_placements(kept, current)
    wanted = {
        (table.space, live[table.space]) for number in old for table in kept[number].tables.values()
    }
    return {
        number
        for number, each in kept.items()
        if number not in old
        and any((table.space, table.files) in wanted for table in each.tables.values())
    }


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


def note_held_spaces(root: Path, segment: int, adapter: str, spaces: Iterable[int]) -> None:
    """Note the key spaces that a segment has in an engine that the user holds."""
    lines = "".join(f"{adapter} {space}\n" for space in spaces)
    write_durably(segment_path(root, segment) / _SPACES_FILE, lines.encode())


def held_spaces(root: Path, segment: int) -> list[tuple[str, int]]:
    """Return the adapter and the space of each table that a segment has in a user's engine."""
    path = segment_path(root, segment) / _SPACES_FILE
    if not path.exists():
        return []
    named = (line.split() for line in path.read_text().splitlines())
    return [(name, int(space)) for name, space in named]


def forget_blocks(root: Path, segment: int, held: Adapter | None) -> bool:
    """Delete a segment's blocks from the engine that the user holds.

    Returns False, to try again later, where that engine is not at hand or fails.
    """
    named = held_spaces(root, segment)
    if not named:
        return True
    if held is None or any(name != held.name for name, _ in named):
        return False
    try:
        for _, space in named:
            held.delete_space(space)
    except BandanaError:
        return False
    return True
