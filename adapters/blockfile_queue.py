"""Reads in flight that one thread waits for together, by a ring: what event loops wait for.

Beside the reads the ring watches a descriptor by which others wake whoever waits for it.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import numba
import numpy as np

from bandana_kv.adapters.blockfile_ring import (
    AT,
    CQES,
    EAGAIN,
    EBUSY,
    EINTR,
    ENTER_GETEVENTS,
    FD,
    SQES,
    SQES_COUNT,
    SYS_ENTER,
    WORDS,
    Ring,
    ask,
    load_acquire,
    pause_us,
    store_release,
    system_call,
)
from bandana_kv.adapters.blockfile_runs import QUEUES, SIZE, place, runs_at
from bandana_kv.adapters.words import Queue
from bandana_kv.kernels.addresses import last_errno, uint32s_at, uint64s_at, words_at
from bandana_kv.kernels.compile import foreign, kernel, signed
from bandana_kv.kernels.reads import FOUND, KEY, READ_WORDS

__all__ = ["load_functions", "new_queue"]

_log = logging.getLogger("bandana_kv")

_OP_POLL_ADD = 6
_POLL_IN = 1 << 32  # where the entry has the events
_PAUSE_US = 1000
_TAKEN_BACK = -1  # in place of a number of reads: the ring has failed, and nothing is in flight

# numba's own annotations say too little of these.
types: Any = numba.types
_int64 = types.int64
_eventfd_read: Any = types.ExternalFunction("eventfd_read", types.int32(types.int32, _int64))

# -- kernels ------------------------------------------------------------------------------

# The words of a queue: what `Queue` says, where the ring's are; reads that were begun and have not
# ended, entries that were not submitted yet, whether the descriptor is watched, whether the ring
# has failed; and where a read of the descriptor goes.
_RING, _IN_FLIGHT, _FRESH, _WATCHED, _FAILED, _COUNT, _ALL = range(4, 11)


@kernel
def _submission(ring: np.ndarray) -> np.ndarray:
    """Return the next free submission queue entry, shown to the kernel with the next call."""
    at, entries = words_at(ring[AT], 4), ring[SQES_COUNT]
    words = uint32s_at(ring[WORDS], at.max() + 1)
    number = signed(words[at[1]] & np.uint32(entries - 1))
    store_release(words, at[1], np.uint32(words[at[1]] + np.uint32(1)))
    # Nobody looks at it before the call that submits it, which this thread makes.
    return uint64s_at(ring[SQES] + 64 * number, 8)  # type: ignore[no-any-return]


@kernel
def _begin(queue: np.ndarray, view: np.ndarray, read_at: int) -> int:
    runs, read = runs_at(view), words_at(read_at, READ_WORDS)
    run = place(runs, -1, np.uint64(read[KEY]))
    if run < 0 or queue[_FAILED]:
        return 0
    ask(_submission(words_at(queue[_RING], CQES + 1)), runs, run, read, view[SIZE], read_at)
    queue[_FRESH] += 1
    queue[_IN_FLIGHT] += 1
    return 1


@kernel
def _watch(queue: np.ndarray, descriptor: int) -> None:
    entry = _submission(words_at(queue[_RING], CQES + 1))
    entry[:] = 0
    entry[0] = np.uint64(_OP_POLL_ADD | descriptor << 32)
    entry[3] = np.uint64(_POLL_IN)
    queue[_FRESH] += 1
    queue[_WATCHED] = 1


@kernel
def _end(queue: np.ndarray, ended: np.ndarray, count: int, token: int, found: int) -> int:
    """Note what became of an entry; return how many reads have ended by now."""
    if token == 0:
        queue[_WATCHED] = 0
        if found > 0:
            _eventfd_read(np.int32(queue[2]), queue.ctypes.data + 8 * _COUNT)
        elif found < 0:
            queue[_FAILED] = 1
        return count
    words_at(token, READ_WORDS)[FOUND] = found
    queue[_IN_FLIGHT] -= 1
    ended[count] = token
    return count + 1


@kernel
def _take_back(queue: np.ndarray, ended: np.ndarray, count: int) -> int:
    """Take back what could not be submitted: those reads have ended, with nothing found."""
    ring = words_at(queue[_RING], CQES + 1)
    at, entries = words_at(ring[AT], 4), ring[SQES_COUNT]
    words, sqes = uint32s_at(ring[WORDS], at.max() + 1), uint64s_at(ring[SQES], 8 * entries)
    tail, head = words[at[1]], load_acquire(words, at[0])
    while tail != head:
        tail = np.uint32(tail - np.uint32(1))
        number = signed(tail & np.uint32(entries - 1))
        count = _end(queue, ended, count, signed(sqes[8 * number + 4]), 0)
    store_release(words, at[1], tail)
    queue[_FRESH] = 0
    return count


@kernel
def _wait(queue: np.ndarray, ended_at: int, least: int) -> int:
    ring, room = words_at(queue[_RING], CQES + 1), queue[3]
    ended, count = words_at(ended_at, room), 0
    if queue[_WATCHED] == 0 and queue[_FAILED] == 0:
        _watch(queue, queue[2])
    taken = 0
    if queue[_FAILED] == 0:
        taken = system_call(SYS_ENTER, ring[FD], queue[_FRESH], least, ENTER_GETEVENTS, 0, 0)
    elif queue[_IN_FLIGHT]:
        pause_us(np.uint32(_PAUSE_US))  # what is in flight still ends, and is to be waited for
    else:
        return _TAKEN_BACK
    if taken < 0:
        reason = last_errno()
        short = reason == EAGAIN or reason == EBUSY  # of memory, until some reads have ended
        if reason != EINTR and not (short and queue[_IN_FLIGHT] > queue[_FRESH]):
            queue[_FAILED] = not short
            count = _take_back(queue, ended, count)
            pause_us(np.uint32(_PAUSE_US))
        taken = 0
    queue[_FRESH] -= taken
    at, entries = words_at(ring[AT], 4), ring[SQES_COUNT]
    words, cqes = uint32s_at(ring[WORDS], at.max() + 1), uint64s_at(ring[CQES], 4 * entries)
    head, end = words[at[2]], load_acquire(words, at[3])
    while head != end:
        number = 2 * signed(head & np.uint32(2 * entries - 1))
        found = signed(np.int32(cqes[number + 1]))
        count = _end(queue, ended, count, signed(cqes[number]), found)
        head = np.uint32(head + np.uint32(1))
    store_release(words, at[2], head)
    return count


@functools.cache
def load_functions() -> tuple[Any, Any]:
    """Return what a queue's words name: loaded when first needed, not in the middle of a lookup."""

    @foreign(_int64(_int64, _int64, _int64))
    def begin(queue_at: int, view_at: int, read_at: int) -> int:
        return _begin(words_at(queue_at, _ALL), words_at(view_at, QUEUES + 1), read_at)

    @foreign(_int64(_int64, _int64, _int64))
    def wait(queue_at: int, ended_at: int, least: int) -> int:
        return _wait(words_at(queue_at, _ALL), ended_at, least)

    return begin, wait


# -- setting up ---------------------------------------------------------------------------


@functools.cache
def _say(reason: str) -> None:
    """Say once why there are none."""
    _log.warning(
        "no io_uring for event loops: %s; a few threads read for them instead",
        reason,
        extra={"event": "no_queue", "reason": reason},
    )


def new_queue() -> Queue | None:
    """Return a new queue; None, where the system or a limit forbids it, which is logged once."""
    try:
        ring = Ring()
        wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    except OSError as error:
        _say(os.strerror(error.errno or 0))
        return None
    begin, wait = load_functions()
    held = np.array(ring.words, np.int64)
    words = np.zeros(_ALL, np.int64)
    room = ring.words[SQES_COUNT] - 1  # one is for the descriptor
    words[: _RING + 1] = begin.address, wait.address, wake, room, held.ctypes.data
    return Queue(words, wake, ring, held)
