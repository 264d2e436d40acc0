"""Where the blocks of a block file store lie, for compiled code: runs of keys in files.

A run is four uint64: its first key, how many follow each other, where in the file the first lies,
and the file's descriptor.
"""

from __future__ import annotations

import errno
from typing import Any

import numba
import numpy as np

from bandana_kv.kernels.addresses import last_errno, uint64s_at
from bandana_kv.kernels.compile import inlined, kernel, signed
from bandana_kv.kernels.reads import ADDRESS, FOUND, KEY

__all__ = [
    "ABSENT",
    "FUNCTION",
    "QUEUES",
    "RUNS",
    "RUNS_COUNT",
    "SIZE",
    "offset_of",
    "place",
    "read_singly",
    "runs_at",
]

ABSENT = 1 << 40  # in place of a length: no run has that key
# The words of a view: the function, the length of a block, where runs and queues are.
FUNCTION, SIZE, RUNS, RUNS_COUNT, QUEUES = range(5)
_EINTR, _EINVAL = errno.EINTR, errno.EINVAL

# numba's own annotations say too little of these.
types: Any = numba.types

_int64 = types.int64
_pread: Any = types.ExternalFunction("pread", _int64(types.int32, _int64, types.uint64, _int64))


@kernel
def runs_at(view: np.ndarray) -> np.ndarray:
    """Return the runs (n, 4) that the words of a view name."""
    count = view[RUNS_COUNT]
    return uint64s_at(view[RUNS], 4 * count).reshape(count, 4)  # type: ignore[no-any-return]


@kernel
def _run_of(runs: np.ndarray, key: np.uint64) -> int:
    """Return the run that has `key`, or -1."""
    low, high = 0, runs.shape[0]
    while low < high:
        middle = (low + high) // 2
        if runs[middle, 0] <= key:
            low = middle + 1
        else:
            high = middle
    if low == 0 or key - runs[low - 1, 0] >= runs[low - 1, 1]:
        return -1
    return low - 1


@inlined
def place(runs: np.ndarray, run: int, key: np.uint64) -> int:
    """Return the run that has `key`, `run` perhaps, or -1: keys rise, and tables are one run."""
    if run >= 0 and key - runs[run, 0] < runs[run, 1]:
        return run
    return _run_of(runs, key)


@inlined
def offset_of(runs: np.ndarray, run: int, key: np.uint64, size: int) -> np.uint64:
    """Return where in its file the block of `key` lies, which `run` has."""
    offset: np.uint64 = runs[run, 2] + (key - runs[run, 0]) * np.uint64(size)
    return offset


@kernel
def read_singly(runs: np.ndarray, size: int, reads: np.ndarray) -> None:
    """Do what is left of `reads`, one after the other: :data:`~.contract.Words` describes them.

    A read may end before its block does, at a bad sector for example: the next one says why.
    """
    run = -1
    for i in range(reads.shape[0]):
        if reads[i, FOUND] == size or reads[i, FOUND] == ABSENT:
            continue
        key = np.uint64(reads[i, KEY])
        run = place(runs, run, key)
        if run < 0:
            reads[i, FOUND] = ABSENT
            continue
        fd = np.int32(signed(runs[run, 3]))
        offset = signed(offset_of(runs, run, key, size))
        done, reason = 0, _EINTR
        while done < size and reason == _EINTR:
            found = _pread(fd, reads[i, ADDRESS] + done, size - done, offset + done)
            if found > 0:
                done += found
            else:
                reason = last_errno() if found < 0 else 0
        # A direct read cannot go on from where a file ends within a sector.
        ended = done == size or reason == 0 or (done and reason == _EINVAL)
        reads[i, FOUND] = done if ended else -reason
