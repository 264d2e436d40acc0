"""Files mapped into memory without a file descriptor, of which a store of many tables has few.

Python's own maps keep one each for as long as they live; the system needs none.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["let_go", "map_file"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value

# What is mapped, while an array refers to it: bytes by address.
_maps: dict[int, int] = {}


def map_file(handle: int, size_bytes: int) -> NDArray[np.uint8]:
    """Return the first bytes of an open file, read-only, mapped until no array refers to them.

    Parameters
    ----------
    handle
        Of the file, open to read; may be closed afterwards.
    size_bytes
        From 1 up, and no more than the file has.

    Raises
    ------
    OSError
        It cannot be mapped.
    """
    address = _libc.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    raw = (ctypes.c_ubyte * size_bytes).from_address(address)
    _maps[address] = size_bytes
    # At exit the system does it; what still runs then may still read.
    weakref.finalize(raw, _unmap, address).atexit = False
    mapped: NDArray[np.uint8] = np.frombuffer(memoryview(raw), np.uint8)
    mapped.flags.writeable = False
    return mapped


def _unmap(address: int) -> None:
    _libc.munmap(address, _maps.pop(address))


def let_go(array: NDArray[Any]) -> None:
    """Take the pages of a mapped array out of this process's memory until it is read again.

    An array that is not mapped stays as it is.
    """
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    raw = base.obj if isinstance(base, memoryview) else base
    address = ctypes.addressof(raw) if isinstance(raw, ctypes.Array) else 0
    if address in _maps:
        _libc.madvise(address, _maps[address], mmap.MADV_DONTNEED)
