"""Many direct reads in flight: io_uring where the kernel allows it, else ``pread``.

Both are loops in compiled code that never hold the GIL. A ring keeps 128 reads in flight from
a single thread, for half the CPU of as many threads that read one block each; containers
often forbid it, and then queue depth comes from threads.

- Direct reads go to memory at a page's boundary. An array that does not lie there is filled
  by way of memory that does, which costs a copy, 1 us a block.
- Addresses of C functions must not be in cached machine code: the linker finds them by name.
- A ring is shared memory with the kernel, also after a fork: a child must not touch it.
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

from bandana_kv.compiled import kernel, signed

__all__ = ["ABSENT", "BlockReads", "aligned_bytes"]

ABSENT = 1 << 40  # in place of a length: no run has that key

_PAGE_BYTES = 4096
_DEPTH = 128
_WIDEST_DEPTH_BYTES = 4 << 20
# Waking for each completion costs more than it gains; for all of them, the device runs dry.
_REAP = 16
_MOST_RINGS = 8

_SYS_SETUP, _SYS_ENTER = 425, 426  # the same numbers on every architecture numba knows
_ENTER_GETEVENTS = 1
_SETUP_COOP_TASKRUN = 1 << 8  # spares interrupts; Linux 5.19
_FEATURES = 1 | 1 << 3  # one mapping for both rings; plain reads, which came with it in 5.6
_OFFSET_SQES = 0x10000000
_OP_READ = 22
_EINTR, _EAGAIN, _EBUSY = errno.EINTR, errno.EAGAIN, errno.EBUSY

# numba's own annotations say too little of these.
types: Any = numba.types
intrinsic: Any = extending.intrinsic

_int64 = types.int64
_syscall: Any = types.ExternalFunction("syscall", _int64(*[_int64] * 7))
_pread: Any = types.ExternalFunction("pread", _int64(types.int32, _int64, types.uint64, _int64))
_errno_at: Any = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())

Runs = npt.NDArray[np.uint64]
"""(n, 4), rising and apart: first key, keys, byte offset of the first, file descriptor."""


def aligned_bytes(count: int) -> npt.NDArray[np.uint8]:
    """Return `count` zero bytes, (count,), that begin at a page's boundary."""
    return np.frombuffer(mmap.mmap(-1, max(1, count)), np.uint8, count)


# -- kernels ------------------------------------------------------------------------------


def _element(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic  # type: ignore[untyped-decorator]
def _load_acquire(typing_context: Any, words: Any, at: Any) -> Any:
    """Read an element that the kernel writes, and nothing written before it later."""
    del typing_context, at

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = _element(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(element, "acquire", 4)

    return types.uint32(words, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def _store_release(typing_context: Any, words: Any, at: Any, value: Any) -> Any:
    """Write an element that the kernel reads, once all that was written before is there."""
    del typing_context, at, value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = _element(context, builder, signature.args[0], *arguments[:2])
        builder.store_atomic(arguments[2], element, "release", 4)
        return context.get_dummy_value()

    return types.void(words, types.intp, types.uint32), generate


@kernel
def _errno() -> int:
    return signed(_errno_at()[0])


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


@kernel
def _places(runs: np.ndarray, keys: np.ndarray, size: int, places: np.ndarray) -> int:
    """Fill `places` (n, 2) with file descriptor and offset; return the first absent key, or -1."""
    run = 0
    for i in range(keys.size):
        key = keys[i]
        # Keys rise as a rule, and tables are a single run.
        if run >= runs.shape[0] or key - runs[run, 0] >= runs[run, 1]:
            run = _run_of(runs, key)
            if run < 0:
                return i
        places[i, 0] = signed(runs[run, 3])
        places[i, 1] = signed(runs[run, 2] + (key - runs[run, 0]) * np.uint64(size))
    return -1


@kernel
def _read_singly(
    runs: np.ndarray, keys: np.ndarray, scratch: np.ndarray, out: np.ndarray
) -> tuple[int, int]:
    """Read one block after the other; returns as :meth:`BlockReads.read`."""
    size = out.shape[1]
    places = np.empty((keys.size, 2), np.int64)
    absent = _places(runs, keys, size, places)
    if absent >= 0:
        return absent, ABSENT
    straight = out.ctypes.data % _PAGE_BYTES == 0
    for i in range(keys.size):
        memory = out.ctypes.data + i * size if straight else scratch.ctypes.data
        found = _pread(np.int32(places[i, 0]), memory, size, places[i, 1])
        while found < 0 and _errno() == _EINTR:
            found = _pread(np.int32(places[i, 0]), memory, size, places[i, 1])
        if found != size:
            return i, -_errno() if found < 0 else found
        if not straight:
            out[i] = scratch[0]
    return -1, 0


@kernel
def _ask(sqe: np.ndarray, place: np.ndarray, memory: int, size: int, token: int) -> None:
    """Fill a submission queue entry."""
    sqe[0] = np.uint64(_OP_READ) | np.uint64(place[0]) << np.uint64(32)
    sqe[1] = np.uint64(place[1])
    sqe[2] = np.uint64(memory)
    sqe[3] = np.uint64(size)
    sqe[4] = np.uint64(token)


@kernel
def _read_by_ring(
    ring: int,
    words: np.ndarray,
    at: np.ndarray,
    sqes: np.ndarray,
    cqes: np.ndarray,
    runs: np.ndarray,
    keys: np.ndarray,
    scratch: np.ndarray,
    out: np.ndarray,
) -> tuple[int, int, int]:
    """Keep as many reads in flight as `scratch` has rows; returns as :meth:`BlockReads.read`.

    `at` says where in `words` are the heads and tails: of submissions, of completions. Third
    in the answer are the reads still in flight: none, unless the ring itself has failed.
    """
    size = out.shape[1]
    places = np.empty((keys.size, 2), np.int64)
    bad = _places(runs, keys, size, places)
    if bad >= 0:
        return bad, ABSENT, 0
    straight = out.ctypes.data % _PAGE_BYTES == 0
    memory = out.ctypes.data if straight else scratch.ctypes.data
    sqe_mask, cqe_mask = np.uint32(sqes.shape[0] - 1), np.uint32(cqes.shape[0] - 1)
    tail = words[at[1]]
    asked = min(keys.size, scratch.shape[0])
    for i in range(asked):
        row = i  # of `out` or of `scratch`: the same at first
        _ask(sqes[signed(tail & sqe_mask)], places[i], memory + row * size, size, i << 16 | i)
        tail = np.uint32(tail + np.uint32(1))
    _store_release(words, at[1], tail)
    fresh, in_flight = asked, 0
    found = 0
    while fresh + in_flight:
        wanted = min(_REAP, fresh + in_flight)
        taken = _syscall(_SYS_ENTER, ring, fresh, wanted, _ENTER_GETEVENTS, 0, 0)
        if taken < 0:
            reason = _errno()
            if reason != _EINTR and (in_flight == 0 or (reason != _EAGAIN and reason != _EBUSY)):
                # Take back what was not submitted, and give up.
                _store_release(words, at[1], _load_acquire(words, at[0]))
                return max(bad, 0), -reason, in_flight
            taken = 0  # interrupted, or short of memory until some reads have ended
        fresh -= taken
        in_flight += taken
        head, end = words[at[2]], _load_acquire(words, at[3])
        while head != end:
            cqe = cqes[signed(head & cqe_mask)]
            token, result = signed(cqe[0]), signed(np.int32(cqe[1]))
            i, slot = token >> 16, token & 0xFFFF
            if result != size:
                if bad < 0 or i < bad:
                    bad, found = i, result
            elif not straight:
                out[i] = scratch[slot]
            head = np.uint32(head + np.uint32(1))
            in_flight -= 1
            if asked < keys.size and bad < 0:
                row = asked if straight else slot
                sqe = sqes[signed(tail & sqe_mask)]
                _ask(sqe, places[asked], memory + row * size, size, asked << 16 | slot)
                tail = np.uint32(tail + np.uint32(1))
                asked += 1
                fresh += 1
        _store_release(words, at[2], head)
        _store_release(words, at[1], tail)
    return bad, found, 0


# -- rings --------------------------------------------------------------------------------


# Memory that the device may still write to, because a ring failed with reads in flight.
_abandoned: list[object] = []


class _Ring:
    """An io_uring of one user at a time, with memory for reads into unaligned arrays."""

    def __init__(self, block_bytes: int) -> None:
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
        cqes = np.frombuffer(shared, np.uint64, 2 * cq_entries, cqes_at).reshape(-1, 2)
        sqes = np.frombuffer(entries, np.uint64).reshape(-1, 8)
        self._arrays = words, at, sqes, cqes
        depth = max(1, min(_DEPTH, _WIDEST_DEPTH_BYTES // block_bytes))
        self._scratch = aligned_bytes(depth * block_bytes).reshape(depth, block_bytes)

    def read(
        self, runs: Runs, keys: npt.NDArray[np.uint64], out: npt.NDArray[np.uint8]
    ) -> tuple[int, int, int]:
        return _read_by_ring(self._fd, *self._arrays, runs, keys, self._scratch, out)

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


class BlockReads:
    """Reads blocks for any number of threads at once.

    Parameters
    ----------
    block_bytes
        Length of a block, a multiple of 4096.
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._idle: list[_Ring] = []
        self._to_make = _MOST_RINGS
        self._idle += self._new_ring()
        self.by_ring = bool(self._idle)
        """Whether one call keeps many reads in flight."""

    def _new_ring(self) -> list[_Ring]:
        """Return a new ring, or none where the kernel or a limit forbids."""
        if self._to_make <= 0:
            return []
        self._to_make -= 1
        try:
            return [_Ring(self._block_bytes)]
        except OSError:
            self._to_make = 0
            return []

    def after_fork_in_child(self) -> None:
        """Begin anew with rings: those of the parent are still the parent's."""
        self._idle = []
        self._to_make = _MOST_RINGS if self.by_ring else 0

    def close(self) -> None:
        """Release the rings; no call may be running."""
        self._idle = []

    def read(
        self, runs: Runs, keys: npt.NDArray[np.uint64], out: npt.NDArray[np.uint8]
    ) -> tuple[int, int]:
        """Read the blocks of `keys` (n,) into `out` (n, block_bytes), without the GIL.

        Returns
        -------
        index, found
            ``(-1, 0)``, or a key that could not be read, and why: :data:`ABSENT`, a
            negated errno, or how many bytes there were.
        """
        if not (keys.flags.c_contiguous and keys.flags.writeable and keys.flags.aligned):
            keys = keys.copy()  # for other kinds of arrays the kernels would be compiled anew
        ring = self._take() if len(keys) > 1 else None
        if ring is None:
            straight = out.ctypes.data % _PAGE_BYTES == 0
            scratch = out[:1] if straight else aligned_bytes(self._block_bytes).reshape(1, -1)
            return _read_singly(runs, keys, scratch, out)
        at, found, in_flight = ring.read(runs, keys, out)
        if in_flight:
            _abandoned.append((ring, out))
        else:
            self._idle.append(ring)
        return at, found

    def _take(self) -> _Ring | None:
        """Return a ring that no other thread uses, or None: with so many threads, no need."""
        try:
            return self._idle.pop()
        except IndexError:
            return next(iter(self._new_ring()), None)
