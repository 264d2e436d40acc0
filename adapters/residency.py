"""How many pages of a mapped file this process holds, and letting go of them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

__all__ = ["MappedPages"]

_LOOK_EVERY_READS = 128
_MOST_BYTES = 8 << 20
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class MappedPages:
    """Lets go of the pages of a mapped file once this process holds more than 8 MiB anew.

    A page that is read through a mapping counts as resident memory of the process, with its
    neighbours that happen to be in the page cache, until the system is short of memory:
    a store of 10 GB seems to take 10 GB. Letting go unmaps the pages; they stay in the page
    cache, where they cost nobody anything.

    Parameters
    ----------
    path
        The mapped file.

    Notes
    -----
    Cost: 20 us in 128 reads, and a millisecond for 8 MiB of pages. Only while the mapping can
    neither be closed nor moved.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.path.realpath(path)
        self._reads = 0
        self._held_bytes = _resident_file_bytes()

    def advise(self, advice: int) -> None:
        """Tell the system how the mapping will be read, by one of mmap's ``MADV_`` numbers."""
        for start, size in _mappings(self._path):
            _libc.madvise(start, size, advice)

    def after_reads(self, count: int) -> None:
        """Count reads; look at the memory now and then."""
        self._reads += count
        if self._reads < _LOOK_EVERY_READS:
            return
        self._reads = 0
        # Without a descriptor to spare there is no looking; and the reads are done.
        with contextlib.suppress(OSError):
            if _resident_file_bytes() < self._held_bytes + _MOST_BYTES:
                return
            self.advise(mmap.MADV_DONTNEED)
            self._held_bytes = _resident_file_bytes()


def _resident_file_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[2]) * mmap.PAGESIZE


def _mappings(path: str) -> list[tuple[int, int]]:
    """Return start and size of every read-only mapping of the file."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\n").split(maxsplit=5)
            # What could be written to must not be dropped: changes might be lost.
            if len(fields) == 6 and fields[5] == path and fields[1] == "r--s":
                first, last = (int(each, 16) for each in fields[0].split("-"))
                found.append((first, last - first))
    return found
