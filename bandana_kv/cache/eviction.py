"""Who leaves: LRU, CLOCK, S3-FIFO, SIEVE and TinyLFU, each in a few small functions.

`used` notes that a cached row was asked for; `victim` chooses the slot whose row would
leave, without removing it; `settle` gives a slot to a row that enters, after its former
row has left. The queues of S3-FIFO (Yang et al., SOSP 2023) and SIEVE (Zhang et al., NSDI
2024) follow their papers, and libcachesim to the miss. TinyLFU here keeps no queue: of
eight slots drawn at random the one with the least live heat is the victim, and a row
enters only if it is hotter than that.
"""

from __future__ import annotations

import numpy as np

from bandana_kv.cache.live_heat import random32
from bandana_kv.cache.queues import (
    COUNT,
    NEWER,
    NEWEST,
    NONE,
    OLDEST,
    link_middle,
    link_newest,
    unlink,
)
from bandana_kv.cache.state import (
    ASKED_BITS,
    ASKED_ONCE,
    CLOCK,
    DRAWS,
    FULL_ONCE,
    HAND,
    LOW,
    LRU,
    MAIN,
    S3_FIFO,
    SIEVE,
    TINYLFU,
)
from bandana_kv.kernels.compile import inlined, signed

__all__ = ["mark_used", "settle", "unsettle", "used", "victim"]

_SAMPLE = 8
# Codes of live heat that halve it, about: how much colder a row seems that entered low.
_LOW_CODES = 23
_TO_MAIN = 2 * ASKED_ONCE


@inlined
def mark_used(eviction: int, mark: int) -> int:
    """Return the mark of a row that was asked for once more."""
    if eviction == S3_FIFO:
        return mark if mark & ASKED_BITS == ASKED_BITS else mark + ASKED_ONCE
    if eviction in (CLOCK, SIEVE):
        return mark | ASKED_ONCE
    return mark


@inlined
def used(
    eviction: int,
    links: np.ndarray,
    older_half: np.ndarray,
    ends: np.ndarray,
    marks: np.ndarray,
    slot: int,
) -> None:
    """Note that the row in `slot` was asked for, where that may relink."""
    if eviction != LRU:
        marks[slot] = mark_used(eviction, marks[slot])
    elif ends[0, NEWEST] != slot:
        unlink(links, older_half, ends, 0, slot)
        link_newest(links, older_half, ends, 0, slot)


@inlined
def victim(
    eviction: int,
    held: np.ndarray,
    links: np.ndarray,
    older_half: np.ndarray,
    ends: np.ndarray,
    marks: np.ndarray,
    clock: np.ndarray,
    live: np.ndarray,
) -> int:
    """Choose the slot whose row would leave a full cache."""
    if eviction == TINYLFU:
        clock[DRAWS] += 1
        return _coldest(held, marks, live, clock[DRAWS])
    if eviction == CLOCK:
        return _first_unasked(links, older_half, ends, marks)
    if eviction == SIEVE:
        return _under_the_hand(links, ends, marks, clock)
    if eviction == S3_FIFO:
        return _of_two_queues(links, older_half, ends, marks, held.size)
    return int(ends[0, OLDEST])


@inlined
def _coldest(held: np.ndarray, marks: np.ndarray, live: np.ndarray, number: int) -> int:
    coldest, least = 0, 1 << 30
    for draw in range(_SAMPLE):
        slot = (random32(number * _SAMPLE + draw) * held.size) >> 32
        code = signed(live[held[slot]]) - (_LOW_CODES if marks[slot] & LOW else 0)
        if code < least:
            coldest, least = slot, code
    return coldest


@inlined
def _first_unasked(
    links: np.ndarray, older_half: np.ndarray, ends: np.ndarray, marks: np.ndarray
) -> int:
    slot = int(ends[0, OLDEST])
    while marks[slot] & ASKED_BITS:
        marks[slot] -= ASKED_ONCE
        unlink(links, older_half, ends, 0, slot)
        link_newest(links, older_half, ends, 0, slot)
        slot = int(ends[0, OLDEST])
    return slot


@inlined
def _under_the_hand(
    links: np.ndarray, ends: np.ndarray, marks: np.ndarray, clock: np.ndarray
) -> int:
    slot = int(clock[HAND])
    if slot == NONE:
        slot = int(ends[0, OLDEST])
    while marks[slot] & ASKED_BITS:
        marks[slot] -= ASKED_ONCE
        newer = int(links[slot, NEWER])
        slot = int(ends[0, OLDEST]) if newer == NONE else newer
    clock[HAND] = slot
    return slot


@inlined
def _small_size(capacity_rows: int) -> int:
    return capacity_rows // 10


@inlined
def _of_two_queues(
    links: np.ndarray,
    older_half: np.ndarray,
    ends: np.ndarray,
    marks: np.ndarray,
    capacity_rows: int,
) -> int:
    while True:
        main_size = capacity_rows - _small_size(capacity_rows)
        if ends[1, COUNT] > main_size or ends[0, COUNT] == 0:
            while True:
                slot = int(ends[1, OLDEST])
                if not marks[slot] & ASKED_BITS:
                    return slot
                marks[slot] -= ASKED_ONCE
                unlink(links, older_half, ends, 1, slot)
                link_newest(links, older_half, ends, 1, slot)
        while ends[0, COUNT]:
            slot = int(ends[0, OLDEST])
            if marks[slot] & ASKED_BITS < _TO_MAIN:
                return slot
            marks[slot] = (marks[slot] & ~ASKED_BITS) | MAIN
            unlink(links, older_half, ends, 0, slot)
            link_newest(links, older_half, ends, 1, slot)


@inlined
def unsettle(
    eviction: int,
    links: np.ndarray,
    older_half: np.ndarray,
    ends: np.ndarray,
    marks: np.ndarray,
    clock: np.ndarray,
    slot: int,
) -> None:
    """Take `slot`, whose row leaves, out of its queue."""
    clock[FULL_ONCE] = 1
    if eviction == TINYLFU:
        return
    if eviction == SIEVE and clock[HAND] == slot:
        clock[HAND] = links[slot, NEWER]
    unlink(links, older_half, ends, 1 if marks[slot] & MAIN else 0, slot)


@inlined
def settle(
    eviction: int,
    links: np.ndarray,
    older_half: np.ndarray,
    ends: np.ndarray,
    marks: np.ndarray,
    clock: np.ndarray,
    slot: int,
    mark: int,
    remembered: bool,
) -> None:
    """Give `slot` to a row that enters: low if `mark` says so, or into S3-FIFO's main queue."""
    queue = 0
    if eviction == S3_FIFO and not mark & LOW:
        early = not clock[FULL_ONCE] and ends[0, COUNT] >= _small_size(links.shape[0])
        if remembered or early:
            queue = 1
            mark |= MAIN
    marks[slot] = mark
    if eviction == TINYLFU:
        return
    if mark & LOW and older_half.size:
        link_middle(links, older_half, ends, queue, slot)
    else:
        link_newest(links, older_half, ends, queue, slot)
