"""Many direct reads in flight: io_uring where the kernel allows it, else ``pread``.

Both are loops in compiled code that never hold the GIL. A ring keeps 128 reads in flight from
a single thread, for half the CPU of as many threads that read one block each; containers
often forbid it, and then queue depth comes from threads.

- Direct reads go to memory at a page's boundary. An array that does not lie there is filled
  by way of memory that does, which costs a copy.
- Addresses of C functions must not be in cached machine code: the linker finds them by name.
- A ring is shared memory with the kernel, also after a fork: a child must not touch it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import extending

from bandana_kv.adapters.blockfile_files import View
from bandana_kv.adapters.contract import Words
from bandana_kv.kernels.addresses import (
    add,
    compare_and_set,
    last_errno,
    store,
    uint32s_at,
    uint64s_at,
    words_at,
)
from bandana_kv.kernels.compile import brief, foreign, inlined, kernel, signed
from bandana_kv.kernels.reads import ADDRESS, FOUND, KEY, READ_WORDS

__all__ = ["ABSENT", "BlockReads", "aligned_bytes"]

ABSENT = 1 << 40  # in place of a length: no run has that key

_PAGE_BYTES = 4096
_DEPTH = 128
# Waking for each completion costs more than it gains; for all of them, the device runs dry.
_REAP = 16
_MOST_RINGS = 8

_SYS_SETUP, _SYS_ENTER = 425, 426  # the same numbers on every architecture numba knows
_ENTER_GETEVENTS = 1
_SETUP_COOP_TASKRUN = 1 << 8  # spares interrupts; Linux 5.19
_FEATURES = 1 | 1 << 3  # one mapping for both rings; plain reads, which came with it in 5.6
_OFFSET_SQES = 0x10000000
_OP_READ = 22
_EINTR, _EAGAIN, _EBUSY, _EINVAL = errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.EINVAL

# numba's own annotations say too little of these.
types: Any = numba.types
intrinsic: Any = extending.intrinsic

_int64 = types.int64
_syscall: Any = types.ExternalFunction("syscall", _int64(*[_int64] * 7))
_pread: Any = types.ExternalFunction("pread", _int64(types.int32, _int64, types.uint64, _int64))
_usleep: Any = types.ExternalFunction("usleep", types.int32(types.uint32))


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
def _place(runs: np.ndarray, run: int, key: np.uint64) -> int:
    """Return the run that has `key`, `run` perhaps, or -1: keys rise, and tables are one run."""
    if run >= 0 and key - runs[run, 0] < runs[run, 1]:
        return run
    return _run_of(runs, key)


@kernel
def _read_singly(runs: np.ndarray, size: int, reads: np.ndarray) -> None:
    """Do what is left of `reads`, one after the other: :data:`~.contract.Words` describes them.

    A read may end before its block does, at a bad sector for example: the next one says why.
    """
    run = -1
    for i in range(reads.shape[0]):
        if reads[i, FOUND] == size or reads[i, FOUND] == ABSENT:
            continue
        key = np.uint64(reads[i, KEY])
        run = _place(runs, run, key)
        if run < 0:
            reads[i, FOUND] = ABSENT
            continue
        fd = np.int32(signed(runs[run, 3]))
        offset = signed(runs[run, 2] + (key - runs[run, 0]) * np.uint64(size))
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


@inlined
def _ask(
    sqe: np.ndarray, runs: np.ndarray, run: int, read: np.ndarray, size: int, token: int
) -> None:
    """Fill a submission queue entry."""
    offset = runs[run, 2] + (np.uint64(read[KEY]) - runs[run, 0]) * np.uint64(size)
    sqe[0] = np.uint64(_OP_READ) | runs[run, 3] << np.uint64(32)
    sqe[1] = offset
    sqe[2] = np.uint64(read[ADDRESS])
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
            run = _place(runs, run, np.uint64(reads[asked, KEY]))
            if failed or run < 0:
                reads[asked, FOUND] = failed or ABSENT
            else:
                _ask(sqes[signed(tail & sqe_mask)], runs, run, reads[asked], size, asked)
                tail = np.uint32(tail + np.uint32(1))
                fresh += 1
            asked += 1
        _store_release(words, at[1], tail)
        if fresh + in_flight == 0:
            return
        taken = 0
        if not failed:
            wanted = min(_REAP, fresh + in_flight)
            taken = _syscall(_SYS_ENTER, ring, fresh, wanted, _ENTER_GETEVENTS, 0, 0)
        else:
            _usleep(np.uint32(1000))  # what is in flight still ends, and is to be waited for
        if taken < 0:
            reason = last_errno()
            if reason != _EINTR and (in_flight == 0 or (reason != _EAGAIN and reason != _EBUSY)):
                failed = -reason
                # Take back what was not submitted.
                head = _load_acquire(words, at[0])
                while tail != head:
                    tail = np.uint32(tail - np.uint32(1))
                    reads[signed(sqes[signed(tail & sqe_mask), 4]), FOUND] = failed
                _store_release(words, at[1], tail)
                fresh = 0
            taken = 0  # interrupted, or short of memory until some reads have ended
        fresh -= taken
        in_flight += taken
        head, end = words[at[2]], _load_acquire(words, at[3])
        while head != end:
            cqe = cqes[signed(head & cqe_mask)]
            reads[signed(cqe[0]), FOUND] = signed(np.int32(cqe[1]))
            head = np.uint32(head + np.uint32(1))
            in_flight -= 1
        _store_release(words, at[2], head)


# The words of a view: the function, the length of a block, where runs and rings are.
_FUNCTION, _SIZE, _RUNS, _RUNS_COUNT, _RINGS = range(5)
# A ring: whether there is one, and nobody has it; what it is.
_STATE, _FD, _RING_WORDS, _RING_AT, _SQES, _SQES_COUNT, _CQES = range(7)
_RING_SIZE = 8
_NONE, _FREE, _TAKEN = range(3)
# Behind the rings: how many more could have been of use.
_WANTED = _RING_SIZE * _MOST_RINGS


@inlined
def _take_ring(rings: np.ndarray) -> int:
    """Return where a ring stands that nobody else has from now on, or -1."""
    for number in range(_MOST_RINGS):
        at = number * _RING_SIZE
        if rings[at] == _FREE and compare_and_set(rings, at, _FREE, _TAKEN):
            return at
    add(rings, _WANTED, 1)
    return -1


@kernel
def _read_by(rings: np.ndarray, first: int, runs: np.ndarray, size: int, reads: np.ndarray) -> None:
    """Read by the ring that stands at `first`, and give it back."""
    ring = rings[first : first + _RING_SIZE]
    at, entries = words_at(ring[_RING_AT], 4), ring[_SQES_COUNT]
    _read_by_ring(
        ring[_FD],
        uint32s_at(ring[_RING_WORDS], at.max() + 1),
        at,
        uint64s_at(ring[_SQES], 8 * entries).reshape(entries, 8),
        uint64s_at(ring[_CQES], 4 * entries).reshape(2 * entries, 2),
        runs,
        size,
        reads,
    )
    store(rings, first + _STATE, _FREE)


@kernel
def _read(view: np.ndarray, reads_at: int, count: int) -> int:
    runs = uint64s_at(view[_RUNS], 4 * view[_RUNS_COUNT]).reshape(view[_RUNS_COUNT], 4)
    reads = words_at(reads_at, READ_WORDS * count).reshape(count, READ_WORDS)
    rings = words_at(view[_RINGS], _WANTED + 1)
    ring = _take_ring(rings) if count > 1 else -1  # with so many threads, no need of one
    if ring < 0:
        reads[:, FOUND] = 0
    else:
        _read_by(rings, ring, runs, view[_SIZE], reads)
    # All, or what the ring did not bring: it may be forbidden since, or have been interrupted.
    _read_singly(runs, view[_SIZE], reads)
    return 0


@brief
def _show_ring(rings: np.ndarray, at: int) -> None:
    store(rings, at, _FREE)


@brief
def _hide_ring(rings: np.ndarray, at: int) -> bool:
    """Take a ring away, unless somebody has it."""
    hidden: bool = compare_and_set(rings, at, _FREE, _NONE)
    return hidden


@functools.cache
def _function() -> Any:
    """Return what :data:`~.contract.Words` name; made when first needed."""

    @foreign(_int64(_int64, _int64, _int64))
    def read(view_at: int, reads_at: int, count: int) -> int:
        return _read(words_at(view_at, _RINGS + 1), reads_at, count)

    return read


# -- rings --------------------------------------------------------------------------------


class _Ring:
    """An io_uring of one user at a time.

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


class BlockReads:
    """Reads blocks for any number of threads at once.

    Parameters
    ----------
    block_bytes
        Length of a block, a multiple of 4096.
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._function = _function().address  # loaded now, not in the middle of a lookup
        self._closed = False
        self._rings: dict[int, _Ring] = {}  # by where it stands in the next
        self._words = np.zeros(_WANTED + 1, np.int64)
        self._most_rings = _MOST_RINGS
        self._making = threading.Lock()
        self._make_ring()
        self.by_ring = bool(self._rings)
        """Whether one call keeps many reads in flight."""

    def _make_ring(self) -> None:
        """Have one more ring, unless there are enough, or the kernel or a limit forbids."""
        with self._making:
            self._words[_WANTED] = 0
            if len(self._rings) >= self._most_rings or self._closed:
                return
            try:
                ring = _Ring()
            except OSError:
                self._most_rings = 0
                return
            at = len(self._rings) * _RING_SIZE
            self._words[at + _FD : at + _FD + len(ring.words)] = ring.words
            self._rings[at] = ring
            _show_ring(self._words, at)

    def after_fork_in_child(self) -> None:
        """Begin anew with rings: those of the parent are still the parent's."""
        self._words[:] = 0
        self._rings = {}
        self._making = threading.Lock()
        self._most_rings = _MOST_RINGS if self.by_ring else 0

    def close(self) -> None:
        """Release the rings; those in use go when their users have done with them."""
        with self._making:
            self._closed = True
            for at in list(self._rings):
                if _hide_ring(self._words, at):
                    del self._rings[at]

    def reading(self, view: View, use: Callable[[Words], int]) -> int:
        """Call `use` with what compiled code needs to read blocks of a view.

        The view's files stay open until it returns.
        """
        words = view.words
        if words is None:
            runs, rings = view.runs, self._words
            place = runs.ctypes.data, len(runs), rings.ctypes.data
            words = np.array([self._function, self._block_bytes, *place], np.int64)
            view.words = words
        result = use(words)
        if self._closed:
            self.close()
        elif self._words[_WANTED]:
            self._make_ring()
        return result

    def read(
        self, view: View, keys: npt.NDArray[np.uint64], out: npt.NDArray[np.uint8]
    ) -> tuple[int, int]:
        """Read the blocks of `keys` (n,) into `out` (n, block_bytes), without the GIL.

        Returns
        -------
        index, found
            ``(-1, 0)``, or the first key that could not be read, and why: :data:`ABSENT`, a
            negated errno, or how many bytes there were.
        """
        size = self._block_bytes
        straight = out.ctypes.data % _PAGE_BYTES == 0
        memory = out if straight else aligned_bytes(out.size).reshape(out.shape)
        reads = np.zeros((len(keys), READ_WORDS), np.int64)
        reads[:, KEY] = keys.view(np.int64) if keys.flags.c_contiguous else keys.astype(np.int64)
        reads[:, ADDRESS] = memory.ctypes.data + size * np.arange(len(keys))
        self.reading(view, lambda words: _read(words, reads.ctypes.data, len(keys)))
        if not straight:
            out[...] = memory
        bad = np.flatnonzero(reads[:, FOUND] != size)
        return (int(bad[0]), int(reads[bad[0], FOUND])) if bad.size else (-1, 0)
