"""Rows in DRAM under LRU: the bookkeeping, as kernels over flat arrays.

The state knows positions and slots, never row data; the live cache copies rows by the
slots these kernels answer, and the simulator runs the same kernels without any data.
Positions are found through an open-addressing table (linear probing, deletion by
backward shift), so that the index costs DRAM by what is cached, not by what exists.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel

__all__ = ["LruState", "bookkeeping_bytes", "check", "find", "insert", "make_state", "touch"]

NONE = -1
USED, NEWEST, OLDEST = 0, 1, 2
_BUCKETS_PER_SLOT = 1.6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class LruState(NamedTuple):
    """Arrays of one table's cache of `capacity` rows.

    Attributes
    ----------
    buckets : uint64 (about 1.6 x capacity + 1,)
        ``position << 32 | slot + 1``; 0 is empty.
    position_of_slot : uint32 (capacity,)
    newer, older : int32 (capacity,)
        The recency list; -1 ends it.
    unasked : uint8 (capacity,)
        1 while a row came along as a neighbour and nobody has asked for it yet.
    ends : int64 (3,)
        Slots in use, newest slot, oldest slot.
    """

    buckets: NDArray[np.uint64]
    position_of_slot: NDArray[np.uint32]
    newer: NDArray[np.int32]
    older: NDArray[np.int32]
    unasked: NDArray[np.uint8]
    ends: NDArray[np.int64]


def _bucket_count(capacity_rows: int) -> int:
    return int(_BUCKETS_PER_SLOT * capacity_rows) + 1


def bookkeeping_bytes(capacity_rows: int) -> int:
    """Return the bytes that :func:`make_state` allocates for `capacity_rows`."""
    return 8 * _bucket_count(capacity_rows) + (4 + 4 + 4 + 1) * capacity_rows + 3 * 8


def make_state(capacity_rows: int) -> LruState:
    """Return the state of an empty cache of `capacity_rows` rows (0: it never holds any)."""
    return LruState(
        np.zeros(_bucket_count(capacity_rows), np.uint64),
        np.zeros(capacity_rows, np.uint32),
        np.zeros(capacity_rows, np.int32),
        np.zeros(capacity_rows, np.int32),
        np.zeros(capacity_rows, np.uint8),
        np.array([0, NONE, NONE], np.int64),
    )


@kernel
def _home(state: LruState, position: int) -> int:
    scattered = (np.uint64(position) * _GOLDEN) >> np.uint64(32)
    return np.int64((scattered * np.uint64(state.buckets.size)) >> np.uint64(32))


@kernel
def find(state: LruState, position: int) -> int:
    """Return the slot that holds `position`, or -1."""
    buckets = state.buckets
    at = _home(state, position)
    while True:
        entry = buckets[at]
        if entry == np.uint64(0):
            return NONE
        if entry >> np.uint64(32) == np.uint64(position):
            return np.int64(entry & np.uint64(0xFFFFFFFF)) - 1
        at += 1
        if at == buckets.size:
            at = 0


@kernel
def _index(state: LruState, position: int, slot: int) -> None:
    buckets = state.buckets
    at = _home(state, position)
    while buckets[at] != np.uint64(0):
        at += 1
        if at == buckets.size:
            at = 0
    buckets[at] = (np.uint64(position) << np.uint64(32)) | np.uint64(slot + 1)


@kernel
def _unindex(state: LruState, position: int) -> None:
    """Remove `position` and close the gap, so that no tombstone slows later searches."""
    buckets = state.buckets
    size = buckets.size
    gap = _home(state, position)
    while buckets[gap] >> np.uint64(32) != np.uint64(position) or buckets[gap] == np.uint64(0):
        gap = gap + 1 if gap + 1 < size else 0
    at = gap
    while True:
        at = at + 1 if at + 1 < size else 0
        entry = buckets[at]
        if entry == np.uint64(0):
            break
        home = _home(state, np.int64(entry >> np.uint64(32)))
        # The entry may fall back into the gap only if its home is not after the gap.
        if (at - home + size) % size >= (at - gap + size) % size:
            buckets[gap] = entry
            gap = at
    buckets[gap] = np.uint64(0)


@kernel
def _unlink(state: LruState, slot: int) -> None:
    newer, older = state.newer[slot], state.older[slot]
    if newer == NONE:
        state.ends[NEWEST] = older
    else:
        state.older[newer] = older
    if older == NONE:
        state.ends[OLDEST] = newer
    else:
        state.newer[older] = newer


@kernel
def _link_newest(state: LruState, slot: int) -> None:
    newest = state.ends[NEWEST]
    state.newer[slot] = NONE
    state.older[slot] = newest
    if newest == NONE:
        state.ends[OLDEST] = slot
    else:
        state.newer[newest] = slot
    state.ends[NEWEST] = slot


@kernel
def touch(state: LruState, slot: int) -> None:
    """Make `slot` the most recently used."""
    if state.ends[NEWEST] != slot:
        _unlink(state, slot)
        _link_newest(state, slot)


@kernel
def insert(state: LruState, position: int) -> int:
    """Give `position`, which must not be cached, a slot; evict the oldest row when full.

    Returns the slot, or -1 where the capacity is 0.
    """
    capacity = state.position_of_slot.size
    if capacity == 0:
        return NONE
    slot = state.ends[USED]
    if slot < capacity:
        state.ends[USED] += 1
    else:
        slot = state.ends[OLDEST]
        _unlink(state, slot)
        _unindex(state, state.position_of_slot[slot])
    state.position_of_slot[slot] = position
    state.unasked[slot] = 0
    _index(state, position, slot)
    _link_newest(state, slot)
    return slot


def check(state: LruState) -> None:
    """Assert every invariant of `state`.

    Raises
    ------
    AssertionError
        Says which invariant is broken.
    """
    used = int(state.ends[USED])
    assert 0 <= used <= state.position_of_slot.size, "more slots in use than there are"
    positions = state.position_of_slot[:used]
    assert np.unique(positions).size == used, "a position is cached twice"
    assert np.count_nonzero(state.buckets) == used, "index and slots disagree in number"
    for slot, position in enumerate(positions):
        assert find(state, int(position)) == slot, "the index does not find a cached position"
    seen = []
    slot, newer = int(state.ends[NEWEST]), NONE
    while slot != NONE and len(seen) <= used:
        assert state.newer[slot] == newer, "the recency list is not its own mirror image"
        seen.append(slot)
        slot, newer = int(state.older[slot]), slot
    assert newer == state.ends[OLDEST], "the recency list does not end at the oldest slot"
    assert sorted(seen) == list(range(used)), "the recency list misses slots"
