"""The files of a block file store: opened, written past the page cache, and cleared of litter."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bandana_kv.adapters.blockfile_index import (
    INDEX_FILE,
    NEW_INDEX_FILE,
    Space,
    ends_of,
    read_index,
)
from bandana_kv.adapters.contract import PAGE_BYTES, Payloads, Standing, block_keys
from bandana_kv.errors import AdapterError, InputError

__all__ = ["BLOCKS_FILE", "BlockFile", "View", "locked", "open_view", "remove_litter"]

BLOCKS_FILE = "space-{}.blocks"
LOCK_FILE = "lock"
_MODE = 0o666
_ATTEMPTS = 5
_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class BlockFile:
    """An open file of blocks, closed when nothing refers to it any more."""

    def __init__(self, path: Path, flags: int, end_slot: int = 0) -> None:
        self.path = path
        self.end_slot = end_slot
        self.reserved: set[tuple[int, int]] = set()  # slots that are written just now
        self.direct = True
        try:
            self.handle = os.open(path, flags | os.O_DIRECT, _MODE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.direct = False
            self.handle = os.open(path, flags, _MODE)
            os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_RANDOM)

    def write(self, offset: int, payloads: Payloads, scratch: npt.NDArray[np.uint8]) -> None:
        """Write (n, block_bytes) at an offset; by way of `scratch` if they do not lie on pages."""
        with _tolerated(errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            # Tells of a full disk first, and keeps the file in few pieces.
            os.posix_fallocate(self.handle, offset, payloads.nbytes)
        flat = payloads.reshape(-1)
        straight = flat.ctypes.data % PAGE_BYTES == 0
        size = flat.size if straight else scratch.size
        for at in range(0, flat.size, size):
            piece = flat[at : at + size]
            if not straight:
                scratch[: piece.size] = piece
                piece = scratch[: piece.size]
            done = 0
            while done < piece.size:
                done += os.pwrite(self.handle, piece[done:].data, offset + at + done)

    def sync(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self.handle)
        if not self.direct:
            os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def give_back(self, offset: int, size_bytes: int) -> None:
        """Give the room of a part back to the file system, where it can; it reads as zeros then."""
        if _libc.fallocate(self.handle, _PUNCH_HOLE, offset, size_bytes):
            number = ctypes.get_errno()
            if number not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise OSError(number, os.strerror(number), str(self.path))

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


class View:
    """Blocks that can be read, as they were at one time; never changed once made."""

    def __init__(
        self, spaces: dict[int, Space], files: dict[int, BlockFile], block_bytes: int
    ) -> None:
        self.spaces = spaces
        self.files = files
        parts = [np.empty((0, 4), np.uint64)]
        for space, held in sorted(spaces.items()):
            runs = held.runs.astype(np.uint64)
            runs[:, 0] |= block_keys(space, 0)
            runs[:, 2] *= np.uint64(block_bytes)
            handles = np.full((len(runs), 1), files[held.file].handle, np.uint64)
            parts.append(np.hstack([runs, handles]))
        self.runs = np.concatenate(parts)
        self.standing: Standing | None = None  # kept by who reads


def open_view(path: Path, block_bytes: int, *, read_only: bool) -> View:
    """Return the blocks at `path`, also while a writer changes them."""
    for _ in range(_ATTEMPTS):
        with open(path / INDEX_FILE, "rb") as index:
            found_bytes, spaces = read_index(index.fileno())
            if found_bytes != block_bytes:
                raise InputError(
                    f"{path} holds blocks of {found_bytes // PAGE_BYTES} pages, "
                    f"not {block_bytes // PAGE_BYTES}"
                )
            try:
                files = _open_files(path, spaces, block_bytes, read_only=read_only)
            except (FileNotFoundError, AdapterError):
                if _is_current(path, index.fileno()):
                    raise
                continue
            # The files are those that the index means, unless it was replaced meanwhile.
            if _is_current(path, index.fileno()):
                return View(spaces, files, block_bytes)
    raise AdapterError("its index changes faster than it can be read")


def _is_current(path: Path, index: int) -> bool:
    return os.path.samestat(os.fstat(index), (path / INDEX_FILE).stat())


def _open_files(
    path: Path, spaces: dict[int, Space], block_bytes: int, *, read_only: bool
) -> dict[int, BlockFile]:
    files = {}
    for number, end_slot in ends_of(spaces).items():
        name = BLOCKS_FILE.format(number)
        file = BlockFile(path / name, os.O_RDONLY if read_only else os.O_RDWR, end_slot)
        found, expected = os.fstat(file.handle).st_size, end_slot * block_bytes
        if found < expected:
            raise AdapterError(f"{name} is cut short: {found} of {expected} bytes")
        files[number] = file
    return files


def remove_litter(path: Path, view: View, block_bytes: int) -> None:
    """Remove what a killed writer left; the lock says that no other is writing."""
    (path / NEW_INDEX_FILE).unlink(missing_ok=True)
    known = {file.path for file in view.files.values()}
    for found in path.glob(BLOCKS_FILE.format("*")):
        if found not in known:
            found.unlink()
    for file in view.files.values():
        os.ftruncate(file.handle, file.end_slot * block_bytes)


def locked(path: Path) -> int:
    """Return a descriptor that holds the lock of the one writer at `path`."""
    handle = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, _MODE)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise AdapterError("another adapter has it open to write") from error
    return handle


@contextlib.contextmanager
def _tolerated(*numbers: int) -> Iterator[None]:
    """Ignore an OSError of one of these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
