"""One request against a cache: look up, find the blocks that are missing, admit rows.

These three kernels are all that happens to a cache. The store calls them with row data
beside them; :mod:`bandana_kv.simulate` calls them alone, so that simulated and live
hits are equal by construction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.eviction import mark_used, settle, unsettle, used, victim
from bandana_kv.cache.ghosts import DIRECT as REMEMBERED_DIRECT
from bandana_kv.cache.ghosts import Remembered, forget, remember
from bandana_kv.cache.index import NOWHERE, find, index, unindex
from bandana_kv.cache.live_heat import age, bump, credit
from bandana_kv.cache.state import (
    ADMISSION,
    AGED,
    AGED_AT,
    CARRY,
    DIRECT,
    EVICTION,
    HALF_LIFE,
    LEAST_HEAT,
    LOOKUPS_SEEN,
    LOW,
    LOWER,
    LRU,
    MAIN,
    NO_NEIGHBOUR,
    ONLINE,
    S3_FIFO,
    SHADOW,
    SHADOW_LOWER,
    THRESHOLD,
    TINYLFU,
    UNASKED,
    USED,
    CacheState,
)
from bandana_kv.kernels.compile import inlined, kernel, signed
from bandana_kv.kernels.layout import Layout, first_copy, position_of_place
from bandana_kv.kernels.search import index_in

__all__ = [
    "BLOCK_READS",
    "COUNTERS",
    "admit",
    "look_up",
    "look_up_together",
    "missing",
    "new_counters",
]

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
def look_up(
    state: CacheState, positions: np.ndarray, slots: np.ndarray, counters: np.ndarray
) -> int:
    """Find each position's slot (-1: missed), mark what is found as used.

    Parameters
    ----------
    state
        The cache. Where hits do not relink, several threads may look up in it at once, as
        long as none admits.
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
    rules, buckets, _, marks, links, older_half, ends, clock, live, _, shadow = state
    eviction = rules[EVICTION]
    missed = look_up_together(eviction, buckets, marks, live, clock, positions, slots, counters)
    if eviction == LRU:
        for i in range(positions.size):
            if slots[i] >= 0:
                used(eviction, links, older_half, ends, marks, slots[i])
    if shadow.held.size:
        for i in range(positions.size):
            remember(shadow, signed(positions[i]))
    return missed


@inlined
def look_up_together(
    eviction: int,
    buckets: np.ndarray,
    marks: np.ndarray,
    live: np.ndarray,
    clock: np.ndarray,
    positions: np.ndarray,
    slots: np.ndarray,
    counters: np.ndarray,
) -> int:
    """Do what :func:`look_up` does where hits do not relink: only single bytes change.

    Threads may do so at once. What they lose to each other is a mark or a count now and then.
    """
    direct, seen = clock[DIRECT], clock[LOOKUPS_SEEN]
    missed, neighbours = 0, 0
    for i in range(positions.size):
        slots[i] = find(buckets, direct, signed(positions[i]))
    for i in range(positions.size):
        slot = slots[i]
        if slot < 0:
            missed += 1
            continue
        mark = marks[slot]
        neighbours += mark & UNASKED
        used_mark = mark_used(eviction, mark & ~(UNASKED | LOW))
        if used_mark != mark:  # a line that is not written stays with all who read it
            marks[slot] = used_mark
    if live.size:  # apart from the loop before: in one they take half as long again
        for i in range(positions.size):
            if slots[i] >= 0:
                bump(live, positions[i], seen + i)
    clock[LOOKUPS_SEEN] = seen + positions.size
    counters[NEIGHBOURS_HIT] += neighbours
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


@inlined
def _contains(ordered: np.ndarray, value: int) -> bool:
    at = index_in(ordered, value)
    return bool(at < ordered.size and ordered[at] == value)


@inlined
def _room(
    eviction: int,
    held: np.ndarray,
    links: np.ndarray,
    older_half: np.ndarray,
    ends: np.ndarray,
    marks: np.ndarray,
    clock: np.ndarray,
    live: np.ndarray,
) -> int:
    """Return the slot that the next row would get: a free one, or the victim's."""
    if clock[USED] < held.size:
        return int(clock[USED])
    return victim(eviction, held, links, older_half, ends, marks, clock, live)


@inlined
def _enter(
    eviction: int,
    ghost: Remembered,
    buckets: np.ndarray,
    held: np.ndarray,
    links: np.ndarray,
    older_half: np.ndarray,
    ends: np.ndarray,
    marks: np.ndarray,
    clock: np.ndarray,
    slot: int,
    position: int,
    mark: int,
    remembered: bool,
) -> None:
    """Put `position`, which must not be cached, into the slot that :func:`_room` named."""
    if slot == clock[USED]:
        clock[USED] += 1
    else:
        if eviction == S3_FIFO and not marks[slot] & MAIN:
            remember(ghost, signed(held[slot]))
        unindex(buckets, clock[DIRECT], signed(held[slot]))
        unsettle(eviction, links, older_half, ends, marks, clock, slot)
    held[slot] = position
    index(buckets, clock[DIRECT], position, slot)
    settle(eviction, links, older_half, ends, marks, clock, slot, mark, remembered)


@inlined
def _mark_of(rule: int, worthy: bool) -> int:
    """Return the mark with which a neighbour enters, or 0: it may not."""
    if rule == LOWER or (rule == SHADOW_LOWER and not worthy):
        return UNASKED | LOW
    if not worthy and rule in (THRESHOLD, SHADOW):
        return 0
    return UNASKED


@inlined
def _grow_old(live: np.ndarray, clock: np.ndarray, half_life: int) -> None:
    """Halve as many rows' heat as the lookups since the last time call for."""
    work = (clock[LOOKUPS_SEEN] - clock[AGED_AT]) * live.size + clock[CARRY]
    first = clock[AGED]
    clock[AGED_AT] = clock[LOOKUPS_SEEN]
    clock[AGED] = first + work // half_life
    clock[CARRY] = work % half_life
    age(live, first, clock[AGED])


@kernel
def _share_reads(
    live: np.ndarray,
    ordered: np.ndarray,
    places: np.ndarray,
    rows_per_block: int,
    blocks: np.ndarray,
    number: int,
) -> None:
    """Credit each missed row with its part of the read that brought it."""
    asked_of = np.zeros(blocks.size, np.int64)
    at = np.empty(ordered.size, np.int64)
    for i in range(ordered.size):
        at[i] = index_in(blocks, places[i] // rows_per_block)
        # Another request may have read the block; then the row shares with nobody here.
        if at[i] < blocks.size and blocks[at[i]] == places[i] // rows_per_block:
            asked_of[at[i]] += 1
        else:
            at[i] = -1
    for i in range(ordered.size):
        credit(live, ordered[i], 1 if at[i] < 0 else asked_of[at[i]], number - i)


@kernel
def admit(
    state: CacheState,
    layout: Layout,
    asked: np.ndarray,
    ordered: np.ndarray,
    places: np.ndarray,
    blocks: np.ndarray,
    fills: np.ndarray,
    counters: np.ndarray,
) -> int:
    """Let the rows of freshly read blocks in: worthy neighbours first, asked rows on top.

    Parameters
    ----------
    state
        The cache; nobody else may use it meanwhile.
    layout
        How the table's rows lie in blocks.
    asked, ordered
        The missed positions as :func:`missing` answers them.
    places
        int64, as :func:`bandana_kv.kernels.layout.cover` answers them: where each of `ordered` is
        read.
    blocks
        int64, sorted: the blocks that this request read. Their neighbours are considered.
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
    rules, buckets, held, marks, links, older_half, ends, clock, live, _, _ = state
    eviction = rules[EVICTION]
    if live.size:
        _grow_old(live, clock, rules[HALF_LIFE])
        rows_per_block = layout.rows_per_block
        _share_reads(live, ordered, places, rows_per_block, blocks, clock[LOOKUPS_SEEN])
    for i in range(ordered.size):
        counters[COPIES_READ] += places[i] != ordered[i]
    if held.size == 0:
        return 0
    filled = 0
    if rules[ADMISSION] != NO_NEIGHBOUR:
        filled = _admit_neighbours(state, layout, ordered, blocks, fills)
        counters[ADMITTED] += filled
    for position in asked:
        slot = find(buckets, clock[DIRECT], position)
        if slot >= 0:
            used(eviction, links, older_half, ends, marks, slot)
            continue
        # What S3-FIFO's ghost remembers must be asked before a victim enters it.
        remembered = eviction == S3_FIFO and forget(state.ghost, position)
        slot = _room(eviction, held, links, older_half, ends, marks, clock, live)
        full = slot < clock[USED]
        if full and eviction == TINYLFU and live[position] <= live[held[slot]]:
            continue
        _enter(
            eviction,
            state.ghost,
            buckets,
            held,
            links,
            older_half,
            ends,
            marks,
            clock,
            slot,
            position,
            0,
            remembered,
        )
        fills[filled, 0] = slot
        fills[filled, 1] = places[index_in(ordered, position)]
        filled += 1
    return filled


@kernel
def _admit_neighbours(
    state: CacheState, layout: Layout, ordered: np.ndarray, blocks: np.ndarray, fills: np.ndarray
) -> int:
    rules, buckets, held, marks, links, older_half, ends, clock, live, _, shadow = state
    rows_per_block, heat, original_of, _ = layout
    shadow_buckets, shadow_direct = shadow.buckets, shadow.counts[REMEMBERED_DIRECT]
    eviction, rule, least_heat = rules[EVICTION], rules[ADMISSION], rules[LEAST_HEAT]
    behind = first_copy(heat.size, rows_per_block)
    filled = 0
    slot = NOWHERE
    for block in blocks:
        for place in range(block * rows_per_block, (block + 1) * rows_per_block):
            position = position_of_place(place, heat.size, original_of, behind)
            if position < 0:
                continue
            if rule == ONLINE and 0 <= slot < clock[USED] and live[position] <= live[held[slot]]:
                continue
            if rule in (SHADOW, SHADOW_LOWER):
                worthy = find(shadow_buckets, shadow_direct, position) >= 0
            else:
                worthy = rule != THRESHOLD or heat[position] >= least_heat
            mark = _mark_of(rule, worthy)
            if not mark or _contains(ordered, position):
                continue
            if find(buckets, clock[DIRECT], position) >= 0:
                continue
            if slot < 0:
                slot = _room(eviction, held, links, older_half, ends, marks, clock, live)
            full = slot < clock[USED]
            # The victim stays chosen until some neighbour is hotter.
            if rule == ONLINE and full and live[position] <= live[held[slot]]:
                continue
            _enter(
                eviction,
                state.ghost,
                buckets,
                held,
                links,
                older_half,
                ends,
                marks,
                clock,
                slot,
                position,
                mark,
                False,
            )
            fills[filled, 0] = slot
            fills[filled, 1] = place
            filled += 1
            slot = NOWHERE
    return filled
