"""One request against a cache: look up, find the blocks that are missing, admit rows.

These three kernels are all that happens to a cache. The store calls them with row data
beside them; :mod:`bandana_kv.simulate` calls them alone, so that simulated and live
hits are equal by construction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.lru import UNASKED, LruState, find, insert, touch
from bandana_kv.compiled import kernel, signed
from bandana_kv.layout import Layout, first_copy

__all__ = ["BLOCK_READS", "COUNTERS", "admit", "look_up", "missing", "new_counters"]

COUNTERS = (
    "lookups",
    "hits",
    "block_reads",
    "neighbours_admitted",
    "neighbours_hit",
    "copies_read",
)
LOOKUPS, HITS, BLOCK_READS, ADMITTED, NEIGHBOURS_HIT, COPIES_READ = range(len(COUNTERS))


def new_counters() -> NDArray[np.int64]:
    """Return counters at zero, int64, in the order of :data:`COUNTERS`."""
    return np.zeros(len(COUNTERS), np.int64)


@kernel
def look_up(state: LruState, positions: np.ndarray, slots: np.ndarray, counters: np.ndarray) -> int:
    """Find each position's slot (-1: missed), mark what is found as used.

    Parameters
    ----------
    state
        The cache.
    positions
        Integer (n,), what the request looks up.
    slots
        int64 (n,), written: the slot of each position or -1.
    counters
        int64, in the order of :data:`COUNTERS`; updated.

    Returns
    -------
    int
        How many lookups missed.
    """
    buckets, kept, ends = state
    missed = 0
    for i in range(positions.size):
        slot = find(buckets, ends, signed(positions[i]))
        slots[i] = slot
        if slot < 0:
            missed += 1
            continue
        touch(kept, ends, slot)
        if kept[slot, UNASKED]:
            kept[slot, UNASKED] = 0
            counters[NEIGHBOURS_HIT] += 1
    counters[LOOKUPS] += positions.size
    counters[HITS] += positions.size - missed
    return missed


@kernel
def missing(positions: np.ndarray, slots: np.ndarray, missed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the missed positions, in request order and sorted without repeats (both int64)."""
    asked = np.empty(missed, np.int64)
    at = 0
    for i in range(positions.size):
        if slots[i] < 0:
            asked[at] = positions[i]
            at += 1
    ordered = np.sort(asked)
    distinct = 0
    for i in range(missed):
        if i == 0 or ordered[i] != ordered[i - 1]:
            ordered[distinct] = ordered[i]
            distinct += 1
    return asked, ordered[:distinct]


@kernel
def _position_at(place: int, rows: int, original_of: np.ndarray, behind: int) -> int:
    """Return the position of the row at a place, or -1 where the place is empty."""
    if place < rows:
        return place
    if place < behind or place - behind >= original_of.size:
        return -1
    return signed(original_of[place - behind])


@kernel
def admit(
    state: LruState,
    layout: Layout,
    asked: np.ndarray,
    ordered: np.ndarray,
    places: np.ndarray,
    blocks: np.ndarray,
    least_heat: int,
    fills: np.ndarray,
    counters: np.ndarray,
) -> int:
    """Let the rows of freshly read blocks in: worthy neighbours first, asked rows on top.

    Parameters
    ----------
    state
        The cache.
    layout
        How the table's rows lie in blocks.
    asked, ordered
        The missed positions as :func:`missing` answers them.
    places
        int64, as :func:`bandana_kv.layout.cover` answers them: where each of `ordered` is read.
    blocks
        int64, sorted: the blocks that this request read. Their neighbours are considered.
    least_heat
        A neighbour enters if its heat is at least this (0: all enter, 256: none).
    fills
        int64 (k, 2), written: slot, and place, of every row that got a slot, in order; a slot
        may come twice, then the last one counts. k is at least
        ``len(blocks) * rows_per_block + len(asked)``.
    counters
        int64, in the order of :data:`COUNTERS`; updated.

    Returns
    -------
    int
        How many entries of `fills` were written.
    """
    buckets, kept, ends = state
    rows_per_block, heat, original_of, _ = layout
    behind = first_copy(heat.size, rows_per_block)
    filled = 0
    for i in range(ordered.size):
        counters[COPIES_READ] += places[i] != ordered[i]
    for block in blocks if least_heat < 256 else blocks[:0]:
        for place in range(block * rows_per_block, (block + 1) * rows_per_block):
            position = _position_at(place, heat.size, original_of, behind)
            if position < 0 or heat[position] < least_heat:
                continue
            if find(buckets, ends, position) >= 0 or _contains(ordered, position):
                continue
            slot = insert(buckets, kept, ends, position)
            if slot >= 0:
                kept[slot, UNASKED] = 1
                counters[ADMITTED] += 1
                fills[filled, 0] = slot
                fills[filled, 1] = place
                filled += 1
    for position in asked:
        slot = find(buckets, ends, position)
        if slot >= 0:
            touch(kept, ends, slot)
            continue
        slot = insert(buckets, kept, ends, position)
        if slot >= 0:
            fills[filled, 0] = slot
            fills[filled, 1] = places[np.searchsorted(ordered, position)]
            filled += 1
    return filled


@kernel
def _contains(ordered: np.ndarray, value: int) -> bool:
    at = np.searchsorted(ordered, value)
    return bool(at < ordered.size and ordered[at] == value)
