"""Measuring from cold: forget what the page cache holds, count what the device delivers."""

from __future__ import annotations

import os
from pathlib import Path

from bandana_kv.errors import InputError

__all__ = ["device_bytes_read", "drop_page_cache"]


def device_bytes_read() -> int:
    """Return the bytes that this process has caused storage to deliver so far.

    Raises
    ------
    InputError
        The system does not count them.
    """
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError as error:
        raise InputError(f"this system does not count device bytes: {error}") from error
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def drop_page_cache(directory: Path) -> None:
    """Let the system forget its copies of the files under `directory`.

    Works without privileges, for files that no process maps.
    """
    for path in directory.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
