"""Many reads in flight by io_uring: shared memory with the kernel, and one system call for many.

A ring keeps 128 reads in flight from a single thread, for half the CPU of as many threads that
read one block each. It is shared with the kernel also after a fork: a child must not touch it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import extending

from bandana_kv.adapters.blockfile_runs import ABSENT, offset_of, place
from bandana_kv.kernels.addresses import last_errno, uint32s_at, uint64s_at, words_at
from bandana_kv.kernels.compile import inlined, kernel, signed
from bandana_kv.kernels.reads import ADDRESS, FOUND, KEY

__all__ = [
    "AT",
    "CQES",
    "EAGAIN",
    "EBUSY",
    "EINTR",
    "ENTER_GETEVENTS",
    "FD",
    "Ring",
    "SQES",
    "SQES_COUNT",
    "SYS_ENTER",
    "WORDS",
    "ask",
    "load_acquire",
    "pause_us",
    "read_by_ring",
    "store_release",
    "system_call",
]

_DEPTH = 128
# Waking for each completion costs more than it gains; for all of them, the device runs dry.
_REAP = 16

_SYS_SETUP, SYS_ENTER = 425, 426  # the same numbers on every architecture numba knows
ENTER_GETEVENTS = 1
_SETUP_COOP_TASKRUN = 1 << 8  # spares interrupts; Linux 5.19
_FEATURES = 1 | 1 << 3  # one mapping for both rings; plain reads, which came with it in 5.6
_OFFSET_SQES = 0x10000000
_OP_READ = 22
EINTR, EAGAIN, EBUSY = errno.EINTR, errno.EAGAIN, errno.EBUSY

# numba's own annotations say too little of these.
types: Any = numba.types
intrinsic: Any = extending.intrinsic

_int64 = types.int64
system_call: Any = types.ExternalFunction("syscall", _int64(*[_int64] * 7))
pause_us: Any = types.ExternalFunction("usleep", types.int32(types.uint32))

# -- kernels ------------------------------------------------------------------------------

# Words of a ring.
FD, WORDS, AT, SQES, SQES_COUNT, CQES = range(6)


def _element(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic  # type: ignore[untyped-decorator]
def load_acquire(typing_context: Any, words: Any, at: Any) -> Any:
    """Read an element that the kernel writes, and nothing written before it later."""
    del typing_context, at

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = _element(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(element, "acquire", 4)

    return types.uint32(words, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_release(typing_context: Any, words: Any, at: Any, value: Any) -> Any:
    """Write an element that the kernel reads, once all that was written before is there."""
    del typing_context, at, value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = _element(context, builder, signature.args[0], *arguments[:2])
        builder.store_atomic(arguments[2], element, "release", 4)
        return context.get_dummy_value()

    return types.void(words, types.intp, types.uint32), generate


@inlined
def ask(
    sqe: np.ndarray, runs: np.ndarray, run: int, read: np.ndarray, size: int, token: int
) -> None:
    """Fill a submission queue entry."""
    sqe[0] = np.uint64(_OP_READ) | runs[run, 3] << np.uint64(32)
    sqe[1] = offset_of(runs, run, np.uint64(read[KEY]), size)
    sqe[2] = np.uint64(read[ADDRESS])
    sqe[3] = np.uint64(size)
    sqe[4] = np.uint64(token)


@kernel
def _read_by(
    ring: int,
    words: np.ndarray,
    at: np.ndarray,
    sqes: np.ndarray,
    cqes: np.ndarray,
    runs: np.ndarray,
    size: int,
    reads: np.ndarray,
) -> None:
    """Keep as many reads in flight as the ring has entries.

    `at` says where in `words` are the heads and tails: of submissions, of completions. Nothing
    is in flight any more when this returns, also where the ring failed.
    """
    sqe_mask, cqe_mask = np.uint32(sqes.shape[0] - 1), np.uint32(cqes.shape[0] - 1)
    tail = words[at[1]]
    asked, fresh, in_flight, run, failed = 0, 0, 0, -1, 0
    while True:
        while asked < reads.shape[0] and fresh + in_flight < sqes.shape[0]:
            run = place(runs, run, np.uint64(reads[asked, KEY]))
            if failed or run < 0:
                reads[asked, FOUND] = failed or ABSENT
            else:
                ask(sqes[signed(tail & sqe_mask)], runs, run, reads[asked], size, asked)
                tail = np.uint32(tail + np.uint32(1))
                fresh += 1
            asked += 1
        store_release(words, at[1], tail)
        if fresh + in_flight == 0:
            return
        taken = 0
        if not failed:
            wanted = min(_REAP, fresh + in_flight)
            taken = system_call(SYS_ENTER, ring, fresh, wanted, ENTER_GETEVENTS, 0, 0)
        else:
            pause_us(np.uint32(1000))  # what is in flight still ends, and is to be waited for
        if taken < 0:
            reason = last_errno()
            if reason != EINTR and (in_flight == 0 or (reason != EAGAIN and reason != EBUSY)):
                failed = -reason
                # Take back what was not submitted.
                head = load_acquire(words, at[0])
                while tail != head:
                    tail = np.uint32(tail - np.uint32(1))
                    reads[signed(sqes[signed(tail & sqe_mask), 4]), FOUND] = failed
                store_release(words, at[1], tail)
                fresh = 0
            taken = 0  # interrupted, or short of memory until some reads have ended
        fresh -= taken
        in_flight += taken
        head, end = words[at[2]], load_acquire(words, at[3])
        while head != end:
            cqe = cqes[signed(head & cqe_mask)]
            reads[signed(cqe[0]), FOUND] = signed(np.int32(cqe[1]))
            head = np.uint32(head + np.uint32(1))
            in_flight -= 1
        store_release(words, at[2], head)


@kernel
def read_by_ring(ring: np.ndarray, runs: np.ndarray, size: int, reads: np.ndarray) -> None:
    """Do reads by a ring, of which `ring` has the words, and which nobody else uses meanwhile.

    What it could not do says so in its FOUND.
    """
    at, entries = words_at(ring[AT], 4), ring[SQES_COUNT]
    _read_by(
        ring[FD],
        uint32s_at(ring[WORDS], at.max() + 1),
        at,
        uint64s_at(ring[SQES], 8 * entries).reshape(entries, 8),
        uint64s_at(ring[CQES], 4 * entries).reshape(2 * entries, 2),
        runs,
        size,
        reads,
    )


# -- setting up ---------------------------------------------------------------------------


class Ring:
    """An io_uring of one user at a time.

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
        self._fd = -1
        self._fd, parameters = _set_up(_DEPTH)
        if parameters[5] & _FEATURES != _FEATURES:
            raise OSError(errno.ENOSYS, "this kernel's io_uring is too old")
        sq_entries, cq_entries = int(parameters[0]), int(parameters[1])
        sq_head, sq_tail, *_, sq_array, _, _, _ = parameters[10:20].tolist()
        cq_head, cq_tail, _, _, _, cqes_at, *_ = parameters[20:30].tolist()
        length = max(sq_array + 4 * sq_entries, cqes_at + 16 * cq_entries)
        shared = mmap.mmap(self._fd, length, mmap.MAP_SHARED)
        entries = mmap.mmap(self._fd, 64 * sq_entries, mmap.MAP_SHARED, offset=_OFFSET_SQES)
        words = np.frombuffer(shared, np.uint32, length // 4)
        words[sq_array // 4 :][:sq_entries] = np.arange(sq_entries)
        at = np.array([sq_head, sq_tail, cq_head, cq_tail], np.int64) // 4
        sqes = np.frombuffer(entries, np.uint64)
        self._arrays = words, at, sqes
        self.words = [
            self._fd,
            words.ctypes.data,
            at.ctypes.data,
            sqes.ctypes.data,
            sq_entries,
            words.ctypes.data + cqes_at,
        ]

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _set_up(entries: int) -> tuple[int, npt.NDArray[np.uint32]]:
    """Return a new ring's descriptor, and the parameters that the kernel filled in."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    reason = 0
    for flags in (_SETUP_COOP_TASKRUN, 0):
        parameters = np.zeros(30, np.uint32)
        parameters[2] = flags
        address = ctypes.c_void_p(parameters.ctypes.data)
        fd = int(call(ctypes.c_long(_SYS_SETUP), ctypes.c_long(entries), address))
        if fd >= 0:
            return fd, parameters
        reason = ctypes.get_errno()
        if reason != errno.EINVAL:
            break
    raise OSError(reason, os.strerror(reason))
