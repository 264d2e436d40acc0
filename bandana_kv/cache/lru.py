"""Rows in DRAM under LRU: the bookkeeping, as kernels over flat arrays.

The state knows positions and slots, never row data; the live cache copies rows by the
slots these kernels answer, and the simulator runs the same kernels without any data.
Positions are found through an open-addressing table (linear probing, deletion by
backward shift), so that the index costs DRAM by what is cached, not by what exists. Where
there is a bucket for every position, each is at home in its own and nothing is probed:
so it is in simulations, whose memory is nobody's budget, and with very large caches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel, signed

__all__ = [
    "UNASKED",
    "LruState",
    "bookkeeping_bytes",
    "check",
    "find",
    "insert",
    "make_state",
    "positions",
    "touch",
]

NONE = -1
USED, NEWEST, OLDEST, DIRECT = 0, 1, 2, 3
POSITION, NEWER, OLDER, UNASKED = 0, 1, 2, 3
_BUCKETS_PER_SLOT = 1.6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class LruState(NamedTuple):
    """Arrays of one table's cache.

    Kernels unpack it once and hand the arrays on: reference counts of a tuple's members
    cost more than the work, when they are taken for every row.

    Attributes
    ----------
    buckets : uint64 (about 1.6 x capacity + 1,), or one for each row of the table
        ``position << 32 | slot + 1``; 0 is empty.
    slots : int32 (capacity, 4)
        Of each slot: its row's position (the bits of a uint32); the next newer and the next
        older slot, -1 at the ends; and 1 while the row, which came along as a neighbour,
        has not been asked for.
    ends : int64 (4,)
        Slots in use, newest slot, oldest slot, 1 if every position has its own bucket.
    """

    buckets: NDArray[np.uint64]
    slots: NDArray[np.int32]
    ends: NDArray[np.int64]


def _bucket_count(capacity_rows: int, rows: int) -> int:
    return min(rows, int(_BUCKETS_PER_SLOT * capacity_rows) + 1)


def bookkeeping_bytes(capacity_rows: int, rows: int) -> int:
    """Return the bytes that :func:`make_state` allocates."""
    return 8 * _bucket_count(capacity_rows, rows) + 16 * capacity_rows + 4 * 8


def make_state(capacity_rows: int, rows: int, *, frugal: bool = True) -> LruState:
    """Return the state of an empty cache.

    Parameters
    ----------
    capacity_rows
        Rows it holds when full; 0: it never holds any.
    rows
        Rows of the table.
    frugal
        Spend index memory by the capacity. False spends it by `rows`, for speed; the
        cache decides the same.
    """
    buckets = _bucket_count(capacity_rows, rows) if frugal else rows
    return LruState(
        np.zeros(buckets, np.uint64),
        np.zeros((capacity_rows, 4), np.int32),
        np.array([0, NONE, NONE, buckets == rows], np.int64),
    )


@kernel
def _home(buckets: np.ndarray, ends: np.ndarray, position: int) -> int:
    if ends[DIRECT]:
        return position
    scattered = (np.uint64(position) * _GOLDEN) >> np.uint64(32)
    return signed((scattered * np.uint64(buckets.size)) >> np.uint64(32))


@kernel
def find(buckets: np.ndarray, ends: np.ndarray, position: int) -> int:
    """Return the slot that holds `position`, or -1."""
    at = _home(buckets, ends, position)
    while True:
        entry = buckets[at]
        if entry == np.uint64(0):
            return NONE
        if entry >> np.uint64(32) == np.uint64(position):
            return signed(entry & np.uint64(0xFFFFFFFF)) - 1
        at += 1
        if at == buckets.size:
            at = 0


@kernel
def _index(buckets: np.ndarray, ends: np.ndarray, position: int, slot: int) -> None:
    at = _home(buckets, ends, position)
    while buckets[at] != np.uint64(0):
        at += 1
        if at == buckets.size:
            at = 0
    buckets[at] = (np.uint64(position) << np.uint64(32)) | np.uint64(slot + 1)


@kernel
def _unindex(buckets: np.ndarray, ends: np.ndarray, position: int) -> None:
    """Remove `position` and close the gap, so that no tombstone slows later searches."""
    size = buckets.size
    gap = _home(buckets, ends, position)
    while buckets[gap] >> np.uint64(32) != np.uint64(position):
        gap = gap + 1 if gap + 1 < size else 0
    at = gap
    while not ends[DIRECT]:
        at = at + 1 if at + 1 < size else 0
        entry = buckets[at]
        if entry == np.uint64(0):
            break
        home = _home(buckets, ends, signed(entry >> np.uint64(32)))
        from_home = at - home if at >= home else at - home + size
        from_gap = at - gap if at >= gap else at - gap + size
        # The entry may fall back into the gap only if its home is not after the gap.
        if from_home >= from_gap:
            buckets[gap] = entry
            gap = at
    buckets[gap] = np.uint64(0)


@kernel
def _unlink(slots: np.ndarray, ends: np.ndarray, slot: int) -> None:
    newer, older = slots[slot, NEWER], slots[slot, OLDER]
    if newer == NONE:
        ends[NEWEST] = older
    else:
        slots[newer, OLDER] = older
    if older == NONE:
        ends[OLDEST] = newer
    else:
        slots[older, NEWER] = newer


@kernel
def _link_newest(slots: np.ndarray, ends: np.ndarray, slot: int) -> None:
    newest = ends[NEWEST]
    slots[slot, NEWER] = NONE
    slots[slot, OLDER] = newest
    if newest == NONE:
        ends[OLDEST] = slot
    else:
        slots[newest, NEWER] = slot
    ends[NEWEST] = slot


@kernel
def touch(slots: np.ndarray, ends: np.ndarray, slot: int) -> None:
    """Make `slot` the most recently used."""
    if ends[NEWEST] != slot:
        _unlink(slots, ends, slot)
        _link_newest(slots, ends, slot)


@kernel
def insert(buckets: np.ndarray, slots: np.ndarray, ends: np.ndarray, position: int) -> int:
    """Give `position`, which must not be cached, a slot; evict the oldest row when full.

    Returns the slot, or -1 where the capacity is 0.
    """
    capacity = slots.shape[0]
    if capacity == 0:
        return NONE
    slot = int(ends[USED])
    if slot < capacity:
        ends[USED] += 1
    else:
        slot = int(ends[OLDEST])
        _unlink(slots, ends, slot)
        _unindex(buckets, ends, signed(np.uint32(slots[slot, POSITION])))
    slots[slot, POSITION] = np.int32(np.uint32(position))
    slots[slot, UNASKED] = 0
    _index(buckets, ends, position, slot)
    _link_newest(slots, ends, slot)
    return slot


def positions(state: LruState) -> NDArray[np.int64]:
    """Return the position that each slot in use holds: int64 (used,)."""
    used = int(state.ends[USED])
    return state.slots[:used, POSITION].astype(np.uint32).astype(np.int64)


def check(state: LruState) -> None:
    """Assert every invariant of `state`.

    Raises
    ------
    AssertionError
        Says which invariant is broken.
    """
    buckets, slots, ends = state
    used = int(ends[USED])
    assert 0 <= used <= slots.shape[0], "more slots in use than there are"
    held = positions(state)
    assert np.unique(held).size == used, "a position is cached twice"
    assert np.count_nonzero(buckets) == used, "index and slots disagree in number"
    for slot, position in enumerate(held.tolist()):
        assert find(buckets, ends, position) == slot, "the index misses a cached position"
    seen: list[int] = []
    slot, newer = int(ends[NEWEST]), NONE
    while slot != NONE and len(seen) <= used:
        assert slots[slot, NEWER] == newer, "the recency list is not its own mirror image"
        seen.append(slot)
        slot, newer = int(slots[slot, OLDER]), slot
    assert newer == ends[OLDEST], "the recency list does not end at the oldest slot"
    assert sorted(seen) == list(range(used)), "the recency list misses slots"
