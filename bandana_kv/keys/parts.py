"""The kernels that an index is built by; :mod:`bandana_kv.keys.build` says in which order."""

from __future__ import annotations

import numpy as np

from bandana_kv.kernels.compile import inlined, kernel
from bandana_kv.keys.slots import EMPTY, first_of, home, rank

__all__ = [
    "CROWDED",
    "count_parts",
    "first_repeated",
    "key_at_home",
    "lay_out",
    "put_in_order",
    "scatter",
]

CROWDED = -2
"""Keys of more than a few dozen are at home in one slot."""

_MOST_AT_HOME = 64
_EMPTY_HALF = np.uint32(EMPTY)
_LOW_HALF, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@inlined
def _rank_of(words: np.ndarray, i: int, width: int, seed: np.uint64) -> np.uint64:
    if width == 2:
        return rank(words[2 * i], words[2 * i + 1], True, seed)
    return rank(words[i], words[i], False, seed)


@kernel
def count_parts(
    words: np.ndarray, width: int, seed: np.uint64, bits: int, counts: np.ndarray
) -> None:
    """Add up in ``counts[p + 1]`` how many keys have ranks whose first `bits` are p.

    Parameters
    ----------
    words
        uint64 (n * width,), read-only.
    width, seed
        As in :mod:`bandana_kv.keys.slots`.
    bits
        1 to 32.
    counts
        int64 (2**bits + 1,).
    """
    shift = np.uint64(64 - bits)
    for i in range(words.size // width):
        counts[np.int64(_rank_of(words, i, width, seed) >> shift) + 1] += 1


@kernel
def scatter(
    words: np.ndarray,
    width: int,
    seed: np.uint64,
    bits: int,
    free: np.ndarray,
    ranks: np.ndarray,
    seconds: np.ndarray,
    ids: np.ndarray,
) -> None:
    """Put rank, second word (if `width` is 2) and id of each key into its part.

    ``free[p]`` int64 is where the part begins, and is moved on. In a part ids rise.
    """
    shift = np.uint64(64 - bits)
    for i in range(words.size // width):
        found = _rank_of(words, i, width, seed)
        part = np.int64(found >> shift)
        at = free[part]
        free[part] = at + 1
        ranks[at] = found
        ids[at] = i
        if width == 2:
            seconds[at] = words[2 * i + 1]


@inlined
def _is_less(ranks: np.ndarray, seconds: np.ndarray, a: int, b: int) -> bool:
    if ranks[a] != ranks[b] or seconds.size == 0:
        return bool(ranks[a] < ranks[b])
    return bool(seconds[a] < seconds[b])


@kernel
def put_in_order(
    ranks: np.ndarray, seconds: np.ndarray, homes: int, low: int, high: int, order: np.ndarray
) -> int:
    """Sort a part, whose homes are `low` to `high`, both included.

    Parameters
    ----------
    ranks, seconds
        uint64 (n,); `seconds` may be (0,).
    order
        int64 (n,), filled with the indices in the order of ranks.

    Returns
    -------
    int
        -1; or :data:`CROWDED`, and `order` says nothing; or where in `order` two follow that are
        the same key.
    """
    at_home = np.zeros(high - low + 2, np.int64)
    for i in range(ranks.size):
        at_home[home(ranks[i], homes) - low + 1] += 1
    if at_home.max() > _MOST_AT_HOME:
        return CROWDED
    for i in range(1, at_home.size):
        at_home[i] += at_home[i - 1]
    for i in range(ranks.size):
        here = home(ranks[i], homes) - low
        order[at_home[here]] = i
        at_home[here] += 1
    # What is left to do is among those of one home.
    for i in range(1, order.size):
        moved, at = order[i], i
        while at > 0 and _is_less(ranks, seconds, moved, order[at - 1]):
            order[at] = order[at - 1]
            at -= 1
        order[at] = moved
    return first_repeated(ranks, seconds, order)


@kernel
def first_repeated(ranks: np.ndarray, seconds: np.ndarray, order: np.ndarray) -> int:
    """Return where in a sorted `order`, int64 (n,), two follow that are the same key, or -1."""
    for i in range(1, order.size):
        a, b = order[i - 1], order[i]
        if ranks[a] == ranks[b] and (seconds.size == 0 or seconds[a] == seconds[b]):
            return i - 1
    return -1


@kernel
def lay_out(
    ranks: np.ndarray,
    seconds: np.ndarray,
    ids: np.ndarray,
    order: np.ndarray,
    homes: int,
    first_slot: int,
    high: int,
    halves: int,
    room: np.ndarray,
) -> tuple[int, int, int]:
    """Write the slots of a part from `first_slot` on, up to `high` at least.

    Parameters
    ----------
    ranks, seconds, ids, order
        As above; `ids` uint32 (n,).
    high
        Where a key of the next part can be at home.
    halves
        Words of 32 bits that a slot takes.
    room
        uint32, for all slots that come about.

    Returns
    -------
    tuple of int
        How many slots were written; how far from home the furthest lies; a slot below `homes` that
        is empty, or -1.
    """
    slot, furthest, vacant = first_slot, 0, -1
    to = 0
    for j in range(order.size):
        i = order[j]
        at_home = home(ranks[i], homes)
        if slot < at_home:
            vacant = slot
        while slot < at_home:
            to = _write_empty(room, to, halves)
            slot += 1
        furthest = max(furthest, slot - at_home)
        room[to] = np.uint32(ranks[i] & _LOW_HALF)
        room[to + 1] = np.uint32(ranks[i] >> _HALF)
        if halves == 5:
            room[to + 2] = np.uint32(seconds[i] & _LOW_HALF)
            room[to + 3] = np.uint32(seconds[i] >> _HALF)
        room[to + halves - 1] = ids[i]
        to += halves
        slot += 1
    if slot < high:
        vacant = slot
    while slot < high:
        to = _write_empty(room, to, halves)
        slot += 1
    return slot - first_slot, furthest, vacant


@inlined
def _write_empty(room: np.ndarray, to: int, halves: int) -> int:
    for k in range(halves):
        room[to + k] = _EMPTY_HALF
    return to + halves


@kernel
def key_at_home(vacant: int, homes: int, seed: np.uint64) -> np.uint64:
    """Return an integer that would be at home in a slot: none is there if the slot is empty."""
    upper = ((np.uint64(vacant) << _HALF) + np.uint64(homes - 1)) // np.uint64(homes)
    return first_of(upper << _HALF, upper, False, seed)
