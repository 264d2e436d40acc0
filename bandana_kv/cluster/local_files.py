"""The index of versions on a serving machine: fetched once a version, shared by its processes.

``LOCAL_DIR/STORE/`` is a store directory, of which the blocks lie in the cluster; STORE is the
store's own random name, so that a store that was made anew, or another one, is not taken for it.
One process fetches at a time (``fetch-lock``); a segment's files come to be there by the rename of
their directory, when they were checked and are durable. Each process that serves holds a lock on
the manifest of its version, as in any store directory; what nobody holds is removed by whoever
fetches next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bandana_kv.cluster.files import read_files
from bandana_kv.cluster.records import MANIFEST, Record
from bandana_kv.disk import manifest, retention
from bandana_kv.errors import DiskFullError, FormatError, InputError
from bandana_kv.system.durable import (
    NO_ROOM,
    make_directory,
    sync_directory,
    write_durably,
)
from bandana_kv.system.permission import check_permission

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["hold_fetched"]

_LOCK = "fetch-lock"
_PARTIAL = ".fetching"


def hold_fetched(
    root: Path, record: Record, adapter: Adapter, resources: contextlib.ExitStack
) -> manifest.Manifest:
    """Return the manifest of a version whose files are here, and stay until `resources` closes.

    Raises
    ------
    InputError, NoPermissionError
        The directory cannot be made, or not be written to.
    DiskFullError
        There is no room.
    BlockMissingError, BlockCorruptError, AdapterError, FormatError
        The cluster has not what was written there.
    """
    try:
        with _alone(root):
            _fetch(root, record, adapter)
            found = retention.hold_version(root, record.version, resources)
            if found.identity != record.identity:
                raise FormatError(f"{root}: version {record.version} is another one; remove it")
            retention.drop_unused(root, 1, lambda _: True)
            return found
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(
                error.errno, f"{root}: no room for the index of version {record.version}; free some"
            ) from error
        check_permission(error, root)
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EROFS):
            raise InputError(f"{root}: cannot be made a directory ({error.strerror})") from error
        raise


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Be the only one of this machine's processes that fetches."""
    make_directory(root)
    handle = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _fetch(root: Path, record: Record, adapter: Adapter) -> None:
    path = manifest.manifest_path(root, record.version)
    if path.exists():
        return
    for directory in (root / "segments", root / "manifests"):
        make_directory(directory)
    for litter in (root / "segments").glob(f"*{_PARTIAL}"):
        shutil.rmtree(litter)
    for segment, files in record.segments.items():
        wanted = manifest.segment_path(root, segment)
        if wanted.exists():
            continue
        partial = wanted.with_name(wanted.name + _PARTIAL)
        partial.mkdir()
        read_files(adapter, files, partial)
        sync_directory(partial)
        partial.rename(wanted)
    sync_directory(root / "segments")
    own = manifest.segment_path(root, record.version) / MANIFEST
    # Its name comes last: a version whose manifest is there is there.
    write_durably(path, own.read_bytes())
    manifest.point_at(root, record.version)
