"""Positions remembered without their rows: the ghost of S3-FIFO, the shadow of admission."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.index import bucket_count, find, index, make_buckets, unindex
from bandana_kv.cache.queues import (
    COUNT,
    OLDEST,
    empty_queues,
    link_newest,
    slots_of,
    unlink,
)
from bandana_kv.kernels.compile import inlined, signed

__all__ = [
    "Remembered",
    "check_remembered",
    "forget",
    "make_remembered",
    "remember",
    "remembered_bytes",
    "remembers",
]


class Remembered(NamedTuple):
    """The positions remembered last, oldest forgotten first.

    Attributes
    ----------
    buckets : uint64
        See :mod:`bandana_kv.cache.index`.
    held : uint32 (capacity,)
        Position of each slot.
    links : int32 (capacity, 2)
    older_half : uint8 (0,)
    ends : int64 (1, 6)
        See :mod:`bandana_kv.cache.queues`.
    free : int32 (capacity,)
        The slots not in use, as many as `counts` says.
    counts : int64 (2,)
        Slots not in use; 1 if every position has its own bucket.
    """

    buckets: NDArray[np.uint64]
    held: NDArray[np.uint32]
    links: NDArray[np.int32]
    older_half: NDArray[np.uint8]
    ends: NDArray[np.int64]
    free: NDArray[np.int32]
    counts: NDArray[np.int64]


FREE, DIRECT = 0, 1


def make_remembered(capacity: int, rows: int, *, frugal: bool) -> Remembered:
    """Return a memory for `capacity` positions of a table of `rows` rows, empty."""
    buckets = make_buckets(capacity, rows, frugal=frugal) if capacity else np.zeros(0, np.uint64)
    return Remembered(
        buckets,
        np.zeros(capacity, np.uint32),
        np.zeros((capacity, 2), np.int32),
        np.zeros(0, np.uint8),
        empty_queues(1, halved=False),
        np.arange(capacity, dtype=np.int32),
        np.array([capacity, buckets.size == rows], np.int64),
    )


def remembered_bytes(capacity: int, rows: int) -> int:
    """Return the bytes that a frugal :func:`make_remembered` allocates."""
    buckets = 8 * bucket_count(capacity, rows) if capacity else 0
    return buckets + 16 * capacity + 6 * 8 + 2 * 8


@inlined
def remembers(memory: Remembered, position: int) -> bool:
    """Return whether `position` is remembered."""
    if memory.held.size == 0:
        return False
    return bool(find(memory.buckets, memory.counts[DIRECT], position) >= 0)


@inlined
def forget(memory: Remembered, position: int) -> bool:
    """Forget `position`; return whether it was remembered."""
    buckets, held, links, older_half, ends, free, counts = memory
    if held.size == 0:
        return False
    slot = find(buckets, counts[DIRECT], position)
    if slot < 0:
        return False
    unindex(buckets, counts[DIRECT], position)
    unlink(links, older_half, ends, 0, slot)
    free[counts[FREE]] = slot
    counts[FREE] += 1
    return True


@inlined
def remember(memory: Remembered, position: int) -> None:
    """Remember `position` as the newest."""
    buckets, held, links, older_half, ends, free, counts = memory
    if held.size == 0:
        return
    slot = find(buckets, counts[DIRECT], position)
    if slot >= 0:
        unlink(links, older_half, ends, 0, slot)
        link_newest(links, older_half, ends, 0, slot)
        return
    if counts[FREE] == 0:
        slot = int(ends[0, OLDEST])
        unlink(links, older_half, ends, 0, slot)
        unindex(buckets, counts[DIRECT], signed(held[slot]))
    else:
        counts[FREE] -= 1
        slot = int(free[counts[FREE]])
    held[slot] = position
    index(buckets, counts[DIRECT], position, slot)
    link_newest(links, older_half, ends, 0, slot)


def check_remembered(memory: Remembered) -> None:
    """Assert every invariant of `memory`.

    Raises
    ------
    AssertionError
        Says what is broken.
    """
    slots = slots_of(memory.links, memory.older_half, memory.ends, 0)
    free = memory.free[: memory.counts[FREE]].tolist()
    assert sorted(slots + free) == list(range(memory.held.size)), "a slot is lost, or used twice"
    assert memory.ends[0, COUNT] == np.count_nonzero(memory.buckets), "index and slots disagree"
    for slot in slots:
        position = int(memory.held[slot])
        assert find(memory.buckets, int(memory.counts[DIRECT]), position) == slot, (
            "the index misses a position"
        )
