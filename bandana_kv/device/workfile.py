"""The file that a profile reads: it has no name, so that nothing can leave it behind.

A file opened without a name, or whose name is gone, ends with the last process that has it
open, even one that is killed. Others reach it as ``/proc/self/fd/N``.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bandana_kv.device.mount import IN_MEMORY, Mount
from bandana_kv.errors import DiskFullError, InputError
from bandana_kv.progress import Progress

__all__ = ["WorkFile", "check_place", "work_file"]

_CHUNK_BYTES = 4 << 20
_SPARE_BYTES = 256 << 20
_PROBED_BYTES, _PROBES = 4096, 64


class WorkFile:
    """An open file of random bytes without a name.

    Attributes
    ----------
    handle : int
        Open for direct reads and writes.
    bytes : int
    """

    def __init__(self, handle: int, bytes: int) -> None:
        self.handle = handle
        self.bytes = bytes

    @property
    def path(self) -> str:
        """Of the file, for this process and for those that inherit `handle`."""
        return f"/proc/self/fd/{self.handle}"

    def can_read(self, block_bytes: int) -> bool:
        """Return whether the device reads blocks of a size directly."""
        with mmap.mmap(-1, block_bytes) as block:
            try:
                return os.preadv(self.handle, [block], block_bytes) == block_bytes
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return False
                raise


def check_place(directory: Path, file_bytes: int) -> Mount:
    """Check, without touching it, that a directory can be profiled; return its mount.

    Raises
    ------
    InputError
        It is no directory, or lies in memory.
    DiskFullError
        No room for the file.
    """
    try:
        mode = directory.stat().st_mode
    except OSError as error:
        raise InputError(f"{directory}: cannot be profiled ({error.strerror})") from error
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        raise InputError(
            f"{directory}: is a raw device, to which nothing is ever written here; "
            "name a directory of a file system that is mounted from it"
        )
    if not stat.S_ISDIR(mode):
        raise InputError(f"{directory}: is not a directory")
    mount = Mount.of(directory)
    if mount.file_system in IN_MEMORY:
        raise InputError(
            f"{directory}: lies in memory ({mount.file_system}), not on a device; "
            "name a directory on the device to profile"
        )
    status = os.statvfs(directory)
    # A file system mounted read-only may be full as well, and that is not what is wrong.
    if not status.f_flag & os.ST_RDONLY:
        free_bytes = status.f_bavail * status.f_frsize
        if free_bytes < file_bytes + _SPARE_BYTES:
            raise DiskFullError(
                f"{directory}: {free_bytes >> 20} MiB free, but the work takes "
                f"{file_bytes >> 20} MiB (512 with --quick) and leaves {_SPARE_BYTES >> 20} free; "
                "free some"
            )
    return mount


@contextlib.contextmanager
def work_file(directory: Path, file_bytes: int, progress: Progress) -> Iterator[WorkFile]:
    """Make the file for as long as it is needed.

    Parameters
    ----------
    directory
        Passed :func:`check_place`.
    file_bytes
        A multiple of 4 MiB; really written, since a device need not read what never was.
    progress
        Told of the bytes written, in MiB.

    Raises
    ------
    InputError
        The directory is not writable, or reads of its files do not reach a device.
    DiskFullError
        It ran full while the file was written.
    """
    with contextlib.ExitStack() as stack:
        try:
            plain = _open_nameless(directory)
            stack.callback(os.close, plain)
            handle = os.open(f"/proc/self/fd/{plain}", os.O_RDWR | os.O_DIRECT)
            stack.callback(os.close, handle)
            _fill(directory, handle, file_bytes, progress)
        except OSError as error:
            raise _named(directory, error) from error
        yield WorkFile(handle, file_bytes)


def _open_nameless(directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # what file systems and kernels answer that know nothing of such files
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
    handle, path = tempfile.mkstemp(prefix=".bandana-profile-", dir=directory)
    Path(path).unlink()
    return handle


def _fill(directory: Path, handle: int, file_bytes: int, progress: Progress) -> None:
    rng = np.random.default_rng()
    progress.start("write", file_bytes >> 20, "MiB")
    # direct writes need aligned memory, which a map is
    with mmap.mmap(-1, _CHUNK_BYTES) as chunk:
        for begin in range(0, file_bytes, _CHUNK_BYTES):
            # random, since a device may not store what repeats
            chunk[:] = rng.bytes(_CHUNK_BYTES)
            if os.pwritev(handle, [chunk], begin) < _CHUNK_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if begin == 0:
                _refuse_cached(directory, handle)
            progress.advance(_CHUNK_BYTES >> 20)
    os.fsync(handle)
    progress.finish()


def _refuse_cached(directory: Path, handle: int) -> None:
    """Refuse a file system that accepts direct reads, and answers them from memory.

    The kernel counts what a thread reads from storage. What was read once and is read
    again without being counted came from a cache, or there is no storage at all.
    """
    os.fsync(handle)
    _probe(handle)
    before = _bytes_from_storage()
    _probe(handle)
    after = _bytes_from_storage()
    if before is not None and after is not None and after - before < _PROBES * _PROBED_BYTES // 2:
        raise InputError(
            f"{directory}: direct reads are answered from memory and reach no device "
            f"({Mount.of(directory).file_system}), so that a profile would be one of a cache; "
            "name a directory whose file system reads directly"
        )


def _probe(handle: int) -> None:
    with mmap.mmap(-1, _PROBED_BYTES) as block:
        for number in range(_PROBES):
            os.preadv(handle, [block], number * _PROBED_BYTES)


def _bytes_from_storage() -> int | None:
    """Return what this thread has read from storage; None where the kernel does not count."""
    try:
        counters = Path("/proc/thread-self/io").read_text()
    except OSError:
        return None
    return int(counters.partition("\nread_bytes:")[2].split()[0])


def _named(directory: Path, error: OSError) -> Exception:
    """Return the error that says what a failure of the system means for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{directory}: ran full; free some, nothing was left")
    if error.errno == errno.EROFS:
        return InputError(
            f"{directory}: is on a read-only file system, where the profiler cannot make its "
            "file; mount it writable"
        )
    if error.errno == errno.EINVAL:
        return InputError(
            f"{directory}: its file system has no direct I/O, so that a profile would be one of "
            "the page cache; name a directory of another file system"
        )
    return InputError(f"{directory}: cannot be profiled ({error.strerror})")
