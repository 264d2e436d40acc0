"""Many reads of one LMDB file in flight: down the tree for all keys at once, in compiled code.

The engine reads one key at a time: each waits in a page fault, and takes the GIL back after.
Here a call asks the system for all the pages it needs next, of the tree as of the values, and
only then looks at them. That needs a tree that holds still, and the engine provides it: the
caller has a read transaction open, and pages of its snapshot are not reused until it ends. Its
number says which of the file's two first pages has the root.

Only what is beyond doubt is answered here: the tree of a format we know, keys of 8 bytes, big
values of the right length. For everything else the answer is no, the caller asks the engine,
and the engine's answer, or error, counts.

The format (data version 1, engine 0.9), in the machine's byte order. A page begins with its
number (8 bytes), 2 bytes unused, flags (2), and the end of a list of offsets of nodes (2), which
begins 16 bytes into the page. A node has 8 bytes and then its key: in a branch 6 for the
child's number, in a leaf 4 for the value's length and 2 for flags, and in both 2 for the key's
length. In a leaf a big value's first page follows the key; the value is 16 bytes into that.
"""

from __future__ import annotations

import collections
import errno
import functools
import mmap
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numba
import numpy as np
import numpy.typing as npt

from bandana_kv.adapters.contract import Words
from bandana_kv.kernels.addresses import bytes_at, last_errno, words_at
from bandana_kv.kernels.compile import foreign, inlined, kernel, signed
from bandana_kv.kernels.reads import ADDRESS, FOUND, KEY, READ_WORDS

__all__ = ["TreeReads", "failure"]

_HEADER_BYTES = 16
_BRANCH, _LEAF, _META = 1, 2, 8
_BIG_VALUE = 1
_KEY_BYTES = 8
_WILLNEED = 3  # POSIX_FADV_WILLNEED, on Linux
_ENGINE = 0  # the major version whose format this is
_MAGIC, _FORMAT = 0xBEEFC0DE, 1
_MOST_LEVELS = 32
_FORMER_KEPT = 4
_IN_DOUBT = 1

# A page of the file's head: flags; magic, format; depth and root of the tree; last page, number.
_HEAD = struct.Struct("<10xH4x II 16x 48x 6xH32xQ QQ")

types: Any = numba.types
_int64 = types.int64
_pread: Any = types.ExternalFunction("pread", _int64(types.int32, _int64, types.uint64, _int64))
_fadvise: Any = types.ExternalFunction(
    "posix_fadvise", types.int32(types.int32, _int64, _int64, types.int32)
)

# -- kernels ------------------------------------------------------------------------------


@inlined
def _key_at(file: np.ndarray, at: int) -> np.uint64:
    """Return the 8 bytes at `at`, big-endian."""
    key = np.uint64(0)
    for i in range(_KEY_BYTES):
        key = key << np.uint64(8) | np.uint64(file[at + i])
    return key


@inlined
def _number_at(file: np.ndarray, at: int, count: int) -> int:
    """Return the `count` bytes at `at`, little-endian."""
    number = 0
    for i in range(count):
        number |= signed(file[at + i]) << (8 * i)
    return number


@inlined
def _node(file: np.ndarray, page: int, page_bytes: int, i: int) -> int:
    """Return where the page's node `i` begins, or -1 if it is not one with a key of 8 bytes."""
    within = _number_at(file, page + _HEADER_BYTES + 2 * i, 2)
    if within + 8 + _KEY_BYTES > page_bytes:
        return -1
    if _number_at(file, page + within + 6, 2) != _KEY_BYTES:
        return -1
    return page + within


@inlined
def _step(
    file: np.ndarray, number: int, page_bytes: int, kind: int, key: np.uint64, size: int
) -> int:
    """Return the page to look at after page `number` on the way to `key`, or -1."""
    page = number * page_bytes
    if number < 0 or page + page_bytes > file.size or _number_at(file, page + 10, 2) != kind:
        return -1
    end = _number_at(file, page + 12, 2)
    if end > page_bytes:
        return -1
    # The last node whose key is not above ours. A branch's first stands for all below.
    low, high = 0, (end - _HEADER_BYTES) // 2
    while high - low > 1:
        middle = (low + high) // 2
        node = _node(file, page, page_bytes, middle)
        if node < 0:
            return -1
        if _key_at(file, node + 8) <= key:
            low = middle
        else:
            high = middle
    if high < 1:
        return -1
    if kind == _BRANCH:
        within = _number_at(file, page + _HEADER_BYTES + 2 * low, 2)
        return _number_at(file, page + within, 6) if within + 8 <= page_bytes else -1
    node = _node(file, page, page_bytes, low)
    if node < 0 or node + 8 + _KEY_BYTES + 8 > page + page_bytes:
        return -1
    if _key_at(file, node + 8) != key or _number_at(file, node + 4, 2) != _BIG_VALUE:
        return -1
    if _number_at(file, node, 4) != size:
        return -1
    return _number_at(file, node + 8 + _KEY_BYTES, 8)


# The words: the function; the file, where it is mapped, its pages; of a block; of a tree.
_FUNCTION, _FD, _FILE, _FILE_BYTES, _PAGE_BYTES, _SIZE, _ROOT, _LEVELS = range(8)
_OF_CALL = slice(_SIZE, _LEVELS + 1)


@kernel
def _read(words: np.ndarray, reads_at: int, count: int) -> int:
    """Copy values from the file to where reads want them; return _IN_DOUBT: ask the engine."""
    fd, page_bytes, size = np.int32(words[_FD]), words[_PAGE_BYTES], words[_SIZE]
    file = bytes_at(words[_FILE], words[_FILE_BYTES])
    reads = words_at(reads_at, READ_WORDS * count).reshape(count, READ_WORDS)
    pages = reads[:, FOUND]
    pages[:] = words[_ROOT]
    for level in range(words[_LEVELS]):
        asked = -1
        for i in range(count):
            if count > 1 and pages[i] != asked:  # a single one waits for it anyway
                asked = pages[i]
                _fadvise(fd, asked * page_bytes, page_bytes, _WILLNEED)
        kind = _LEAF if level == words[_LEVELS] - 1 else _BRANCH
        for i in range(count):
            pages[i] = _step(file, pages[i], page_bytes, kind, np.uint64(reads[i, KEY]), size)
            if pages[i] < 0:
                return _IN_DOUBT
    if count > 1:
        for i in range(count):
            _fadvise(fd, pages[i] * page_bytes, _HEADER_BYTES + size, _WILLNEED)
    for i in range(count):
        offset = pages[i] * page_bytes + _HEADER_BYTES
        found = _pread(fd, reads[i, ADDRESS], np.uint64(size), offset)
        reads[i, FOUND] = found if found >= 0 else -last_errno()
    return 0


@functools.cache
def _function() -> Any:
    """Return what :data:`~.contract.Words` name; made when first needed."""

    @foreign(_int64(_int64, _int64, _int64))
    def read(words_of: int, reads_at: int, count: int) -> int:
        return _read(words_at(words_of, _LEVELS + 1), reads_at, count)

    return read


# -- the file -----------------------------------------------------------------------------


class TreeReads:
    """Reads the main database of an LMDB data file, beside the engine.

    Parameters
    ----------
    path
        The data file.
    page_bytes
        The engine's pages.

    Notes
    -----
    Nothing here belongs to one process: a child may go on after a fork.
    """

    def __init__(self, path: Path, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # The system would read pages beside those that a read finds missing.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        self._function = _function().address  # loaded now, not in the middle of a lookup
        self._file = self._mapped()
        # A file that is written to grows again and again, and each mapping has a descriptor.
        self._former: collections.deque[object] = collections.deque(maxlen=_FORMER_KEPT)

    @classmethod
    def of(cls, path: Path, engine: int, page_bytes: int) -> Self | None:
        """Return reads of `path`, or None where the format or the system is another."""
        if engine != _ENGINE or sys.byteorder != "little" or sys.platform != "linux":
            return None
        self = cls(path, page_bytes)
        for at in (0, page_bytes):
            flags, magic, form, *_ = _HEAD.unpack_from(self._file[0].data, at)
            if (flags, magic, form) != (_META, _MAGIC, _FORMAT):
                self.close()
                return None
        return self

    def close(self) -> None:
        """Let go of the file; no call may be running."""
        # Mappings have descriptors, too.
        self._file = np.empty(0, np.uint8), np.empty(0, np.int64)
        self._former.clear()
        os.close(self._fd)

    def _mapped(self) -> tuple[npt.NDArray[np.uint8], Words]:
        mapped = mmap.mmap(self._fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        file = np.frombuffer(mapped, np.uint8)
        place = file.ctypes.data, file.size, self._page_bytes
        return file, np.array([self._function, self._fd, *place, 0, 0, 0], np.int64)

    def reading(self, snapshot: int, size: int, use: Callable[[Words], int]) -> int | None:
        """Call `use` with what compiled code needs to read values of `size` bytes.

        Parameters
        ----------
        snapshot
            The number of the engine's read transaction, which the caller has open meanwhile.

        Returns
        -------
        int or None
            What `use` returned. None, and it was not called: ask the engine.
        """
        found = self._tree(snapshot)
        if found is None:
            return None
        file, words = self._file  # mapped until this returns, also if the file has grown
        words = words.copy()
        words[_OF_CALL] = size, *found
        result = use(words)
        del file
        return result

    def read(self, snapshot: int, keys: npt.NDArray[np.uint64], out: npt.NDArray[np.uint8]) -> bool:
        """Copy the values of `keys` (n,) into `out` (n, size), or return False: ask the engine.

        Raises
        ------
        OSError
            The device failed, or the file ends too early: the engine would be killed by it.
        """
        count, size = out.shape
        reads = np.zeros((count, READ_WORDS), np.int64)
        reads[:, KEY] = keys.view(np.int64) if keys.flags.c_contiguous else keys.astype(np.int64)
        reads[:, ADDRESS] = out.ctypes.data + size * np.arange(count)
        at = reads.ctypes.data
        if self.reading(snapshot, size, lambda words: _read(words, at, count)) != 0:
            return False
        bad = np.flatnonzero(reads[:, FOUND] != size)
        if bad.size:
            raise failure(int(reads[bad[0], FOUND]))
        return True

    def _tree(self, snapshot: int) -> tuple[int, int] | None:
        """Return the snapshot's root and its levels; None if commits came meanwhile."""
        *_, levels, root, last, number = self._head(snapshot & 1)
        # The commit after the next writes where we have just read, and cannot begin to
        # before the next has written its number. This order of reading is what matters.
        if number != snapshot or self._head(~snapshot & 1)[-1] > snapshot:
            return None
        if (last + 1) * self._page_bytes > self._file[0].size:
            # The file has grown. The former mapping stays for some commits: another thread may be
            # about to let go of its pages, which by then could be somebody else's.
            self._former.append(self._file)
            self._file = self._mapped()
        return (root, levels) if 0 < levels <= _MOST_LEVELS and root <= last else None

    def _head(self, which: int) -> tuple[int, ...]:
        return _HEAD.unpack_from(self._file[0].data, which * self._page_bytes)


def failure(found: int) -> OSError:
    """Return what is wrong where a value was not found whole, but for so many bytes, or -errno."""
    if found < 0:
        return OSError(-found, os.strerror(-found))
    return OSError(errno.EIO, f"the data file ends before the block, {found} bytes into it")
