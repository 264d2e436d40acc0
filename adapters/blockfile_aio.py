"""Many reads in flight by the system's older way, where io_uring is forbidden.

Containers often forbid io_uring, and seldom these calls (io_submit and its like). A read that
bypasses the page cache is under way when submitting returns; one that does not is over by then,
so where reads are not direct this is no faster than one read after the other.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from typing import Any

import numba
import numpy as np

from bandana_kv.adapters.blockfile_runs import ABSENT, offset_of, place
from bandana_kv.kernels.addresses import last_errno, uint64s_at
from bandana_kv.kernels.compile import inlined, kernel, signed
from bandana_kv.kernels.reads import ADDRESS, FOUND, KEY

__all__ = ["Aio", "read_by_aio"]

_DEPTH = 128
_X86 = platform.machine() == "x86_64"
_SYS_SETUP, _SYS_DESTROY, _SYS_GETEVENTS, _SYS_SUBMIT = (
    (206, 207, 208, 209) if _X86 else (0, 1, 4, 2)
)
_OP_PREAD = 0
_EINTR = errno.EINTR

# numba's own annotations say too little of these.
types: Any = numba.types
_int64 = types.int64
_syscall: Any = types.ExternalFunction("syscall", _int64(*[_int64] * 7))
_usleep: Any = types.ExternalFunction("usleep", types.int32(types.uint32))

# Words of it: the kernel's number, and where requests, their addresses, and events are.
_CONTEXT, _REQUESTS, _ADDRESSES, _EVENTS = range(4)
_REQUEST_WORDS, _EVENT_WORDS = 8, 4


@inlined
def _fill(requests: np.ndarray, runs: np.ndarray, size: int, reads: np.ndarray, first: int) -> int:
    """Make requests of the reads from `first` on, as many as there is room for; return how many."""
    count, run = 0, -1
    for i in range(first, min(first + _DEPTH, reads.shape[0])):
        key = np.uint64(reads[i, KEY])
        run = place(runs, run, key)
        reads[i, FOUND] = 0
        if run < 0:
            reads[i, FOUND] = ABSENT
            continue
        request = requests[count]
        request[:] = 0
        request[0] = np.uint64(i)
        request[2] = np.uint64(_OP_PREAD) | runs[run, 3] << np.uint64(32)
        request[3] = np.uint64(reads[i, ADDRESS])
        request[4] = np.uint64(size)
        request[5] = offset_of(runs, run, key, size)
        count += 1
    return count


@kernel
def read_by_aio(aio: np.ndarray, runs: np.ndarray, size: int, reads: np.ndarray) -> None:
    """Do reads, of which `aio` has the words, and which nobody else uses meanwhile.

    Those that the system would not take are left undone. Nothing is in flight when this returns.
    """
    requests = uint64s_at(aio[_REQUESTS], _REQUEST_WORDS * _DEPTH).reshape(_DEPTH, _REQUEST_WORDS)
    events = uint64s_at(aio[_EVENTS], _EVENT_WORDS * _DEPTH).reshape(_DEPTH, _EVENT_WORDS)
    for first in range(0, reads.shape[0], _DEPTH):
        count = _fill(requests, runs, size, reads, first)
        in_flight = 0
        while in_flight < count:
            at = aio[_ADDRESSES] + 8 * in_flight
            taken = _syscall(_SYS_SUBMIT, aio[_CONTEXT], count - in_flight, at, 0, 0, 0)
            if taken > 0:
                in_flight += taken
            elif taken == 0 or last_errno() != _EINTR:
                break
        while in_flight > 0:
            came = _syscall(_SYS_GETEVENTS, aio[_CONTEXT], in_flight, in_flight, aio[_EVENTS], 0, 0)
            if came < 0 and last_errno() != _EINTR:
                _usleep(np.uint32(1000))  # what is in flight still ends, and is to be waited for
            for i in range(came):
                reads[signed(events[i, 0]), FOUND] = signed(events[i, 2])
                in_flight -= 1


class Aio:
    """Requests and events of one user at a time.

    Raises
    ------
    OSError
        The system or a limit forbids it.

    Attributes
    ----------
    words : list of int
        What compiled code knows of it.
    """

    def __init__(self) -> None:
        self._context = ctypes.c_ulong(0)
        self._process = os.getpid()
        if sys.byteorder != "little":
            raise OSError(errno.ENOSYS, "requests are laid out in another way here")
        _call(_SYS_SETUP, ctypes.c_long(_DEPTH), ctypes.byref(self._context))
        nothing = ctypes.c_long(0)  # requests to submit, events to wait for: is that allowed?
        _call(_SYS_SUBMIT, self._context, nothing, nothing)
        _call(_SYS_GETEVENTS, self._context, nothing, nothing, nothing, nothing)
        self._arrays = (
            requests := np.zeros(_REQUEST_WORDS * _DEPTH, np.uint64),
            np.arange(_DEPTH, dtype=np.uint64) * 8 * _REQUEST_WORDS + requests.ctypes.data,
            np.zeros(_EVENT_WORDS * _DEPTH, np.uint64),
        )
        self.words = [
            ctypes.c_long(self._context.value).value,
            *(array.ctypes.data for array in self._arrays),
        ]

    def __del__(self) -> None:
        if self._context.value and self._process == os.getpid():
            _call(_SYS_DESTROY, self._context)


def _call(number: int, *arguments: Any) -> None:
    call = ctypes.CDLL(None, use_errno=True).syscall
    if call(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
