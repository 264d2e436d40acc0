"""Lookups with rows: what a cache decides about slots, done to the rows in them."""

from __future__ import annotations

import numpy as np

from bandana_kv.blocks import HEADER_BYTES
from bandana_kv.cache.batch import admit, look_up, look_up_together
from bandana_kv.cache.index import find
from bandana_kv.cache.state import DIRECT, CacheState
from bandana_kv.compiled import copy_bytes, inlined, kernel, signed
from bandana_kv.layout import Layout
from bandana_kv.packed import bits_for, position_at

__all__ = ["absent", "admit_rows", "answer_missed", "look_up_rows", "look_up_rows_together"]


@inlined
def _to_positions(ids: np.ndarray, index: np.ndarray, rows: int, positions: np.ndarray) -> int:
    """Translate ids; return the index of the first that is out of range, or -1."""
    bits = bits_for(rows)
    for i in range(ids.size):
        if ids[i] < 0 or ids[i] >= rows:
            return i
        positions[i] = position_at(index, bits, signed(ids[i]))
    return -1


@inlined
def _copy_rows(data: np.ndarray, slots: np.ndarray, out: np.ndarray) -> None:
    for i in range(slots.size):
        slot = slots[i]
        if slot >= 0:
            copy_bytes(data, slot * data.shape[1], out, i * data.shape[1], data.shape[1])


@kernel
def look_up_rows(
    state: CacheState,
    data: np.ndarray,
    ids: np.ndarray,
    index: np.ndarray,
    rows: int,
    positions: np.ndarray,
    slots: np.ndarray,
    out: np.ndarray,
    counters: np.ndarray,
) -> int:
    """Answer what DRAM holds; return how many missed, or -1 - i where the i-th id is wrong."""
    wrong = _to_positions(ids, index, rows, positions)
    if wrong >= 0:
        return -1 - wrong
    missed = look_up(state, positions, slots, counters)
    _copy_rows(data, slots, out)
    return missed


@kernel
def look_up_rows_together(
    eviction: int,
    buckets: np.ndarray,
    marks: np.ndarray,
    live: np.ndarray,
    clock: np.ndarray,
    data: np.ndarray,
    ids: np.ndarray,
    index: np.ndarray,
    rows: int,
    positions: np.ndarray,
    slots: np.ndarray,
    out: np.ndarray,
    counters: np.ndarray,
) -> int:
    """Do the same where hits do not relink, beside other threads.

    Handing over the few arrays that this needs is much of what a small request costs.
    """
    wrong = _to_positions(ids, index, rows, positions)
    if wrong >= 0:
        return -1 - wrong
    missed = look_up_together(eviction, buckets, marks, live, clock, positions, slots, counters)
    _copy_rows(data, slots, out)
    return missed


@kernel
def absent(
    buckets: np.ndarray,
    clock: np.ndarray,
    ids: np.ndarray,
    index: np.ndarray,
    rows: int,
    positions: np.ndarray,
) -> int:
    """Put the positions that DRAM does not hold first, and return how many; or -1 - i."""
    wrong = _to_positions(ids, index, rows, positions)
    if wrong >= 0:
        return -1 - wrong
    count = 0
    for i in range(positions.size):
        if find(buckets, clock[DIRECT], positions[i]) < 0:
            positions[count] = positions[i]
            count += 1
    return count


@kernel
def answer_missed(
    payloads: np.ndarray,
    blocks: np.ndarray,
    rows_per_block: int,
    positions: np.ndarray,
    slots: np.ndarray,
    ordered: np.ndarray,
    places: np.ndarray,
    out: np.ndarray,
) -> None:
    """Copy the rows that DRAM did not hold out of the blocks that were read."""
    row_bytes = out.shape[1]
    for i in range(positions.size):
        if slots[i] < 0:
            place = places[np.searchsorted(ordered, positions[i])]
            block = place // rows_per_block
            index = np.searchsorted(blocks, block)
            start = HEADER_BYTES + (place - block * rows_per_block) * row_bytes
            copy_bytes(payloads, index * payloads.shape[1] + start, out, i * row_bytes, row_bytes)


@kernel
def admit_rows(
    state: CacheState,
    data: np.ndarray,
    layout: Layout,
    asked: np.ndarray,
    ordered: np.ndarray,
    places: np.ndarray,
    read: np.ndarray,
    blocks: np.ndarray,
    payloads: np.ndarray,
    counters: np.ndarray,
) -> None:
    """Let rows of the blocks that were read into the cache."""
    rows_per_block = layout.rows_per_block
    fills = np.empty((read.size * rows_per_block + asked.size, 2), np.int64)
    filled = admit(state, layout, asked, ordered, places, read, fills, counters)
    row_bytes = data.shape[1]
    for i in range(filled):
        slot, place = fills[i, 0], fills[i, 1]
        block = place // rows_per_block
        index = np.searchsorted(blocks, block)
        start = HEADER_BYTES + (place - block * rows_per_block) * row_bytes
        copy_bytes(payloads, index * payloads.shape[1] + start, data, slot * row_bytes, row_bytes)
