"""The state of one table's cache: flat arrays that the kernels share, and what they mean.

The state knows positions and slots, never row data; the live cache copies rows by the
slots the kernels answer, and the simulator runs the same kernels without any data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.ghosts import (
    Remembered,
    check_remembered,
    make_remembered,
    remembered_bytes,
)
from bandana_kv.cache.index import bucket_count, find, make_buckets
from bandana_kv.cache.live_heat import seeded
from bandana_kv.cache.policy import Policy
from bandana_kv.cache.queues import empty_queues, slots_of

__all__ = [
    "CacheState",
    "bookkeeping_bytes",
    "cache_bytes_of",
    "capacity_for",
    "check",
    "hits_relink",
    "make_state",
    "positions",
]

# Constants of kernels.
LRU, CLOCK, S3_FIFO, SIEVE, TINYLFU = range(5)
EVICTIONS = {"lru": LRU, "clock": CLOCK, "s3-fifo": S3_FIFO, "sieve": SIEVE, "tinylfu": TINYLFU}
NO_NEIGHBOUR, ALL, LOWER, SHADOW, SHADOW_LOWER, THRESHOLD, ONLINE = range(7)
ADMISSIONS = {
    "none": NO_NEIGHBOUR,
    "all": ALL,
    "lower": LOWER,
    "shadow": SHADOW,
    "shadow-lower": SHADOW_LOWER,
    "threshold": THRESHOLD,
    "online": ONLINE,
}

# Bits of a slot's mark.
UNASKED, LOW, MAIN = 1, 2, 4
ASKED_ONCE, ASKED_SHIFT, ASKED_MOST = 8, 3, 3
ASKED_BITS = ASKED_MOST << ASKED_SHIFT

# Entries of `rules` and of `clock`.
EVICTION, ADMISSION, LEAST_HEAT, HALF_LIFE = range(4)
USED, DIRECT, HAND, LOOKUPS_SEEN, FULL_ONCE, DRAWS, AGED_AT, AGED, CARRY = range(9)

_SMALL_SHARE, _GHOST_SHARE = 0.1, 0.9


class CacheState(NamedTuple):
    """Arrays of one table's cache.

    Kernels unpack it once and hand the arrays on: reference counts of a tuple's members
    cost more than the work, when they are taken for every row.

    Attributes
    ----------
    rules : int64 (4,)
        Eviction, admission, least heat of an admitted neighbour, half-life of live heat.
    buckets : uint64
        Position to slot; see :mod:`bandana_kv.cache.index`.
    held : uint32 (capacity,)
        Position of each slot.
    marks : uint8 (capacity,)
        Of each slot: came along and has not been asked for; entered low; in the main queue;
        and how often it was asked for, up to three.
    links : int32 (capacity, 2), or (0, 2) where nothing queues
    older_half : uint8 (capacity,), or (0,) where no queue's middle matters
    ends : int64 (2, 6)
        See :mod:`bandana_kv.cache.queues`. S3-FIFO's small queue, or the only one; its main.
    clock : int64 (9,)
        Slots in use; 1 if every position has its own bucket; SIEVE's hand; lookups seen; 1 once
        a row was evicted; victims drawn; and of ageing: lookups seen when it was last
        done, steps done, and what was left over of a step.
    live : uint8 (rows,), or (0,) where no rule looks at it
        Live heat by position; see :mod:`bandana_kv.cache.live_heat`.
    ghost, shadow : Remembered
        Positions that S3-FIFO's small queue let go; positions asked for lately.
    """

    rules: NDArray[np.int64]
    buckets: NDArray[np.uint64]
    held: NDArray[np.uint32]
    marks: NDArray[np.uint8]
    links: NDArray[np.int32]
    older_half: NDArray[np.uint8]
    ends: NDArray[np.int64]
    clock: NDArray[np.int64]
    live: NDArray[np.uint8]
    ghost: Remembered
    shadow: Remembered


class _Sizes(NamedTuple):
    linked: int
    halved: int
    ghost: int
    shadow: int


def _sizes(policy: Policy, capacity_rows: int) -> _Sizes:
    rule = policy.admission.rule
    return _Sizes(
        0 if policy.eviction == "tinylfu" else capacity_rows,
        capacity_rows if "lower" in rule and policy.eviction != "tinylfu" else 0,
        int(_GHOST_SHARE * capacity_rows) if policy.eviction == "s3-fifo" else 0,
        capacity_rows if "shadow" in rule else 0,
    )


def bookkeeping_bytes(policy: Policy, capacity_rows: int, rows: int) -> int:
    """Return the bytes of a frugal :func:`make_state`, but for live heat, a byte a row."""
    sizes = _sizes(policy, capacity_rows)
    fixed = 8 * (4 + 2 * 6 + 9)
    return (
        fixed
        + 8 * bucket_count(capacity_rows, rows)
        + 5 * capacity_rows
        + 8 * sizes.linked
        + sizes.halved
        + remembered_bytes(sizes.ghost, rows)
        + remembered_bytes(sizes.shadow, rows)
    )


def cache_bytes_of(policy: Policy, capacity_rows: int, row_bytes: int, rows: int) -> int:
    """Return the DRAM that a cache of `capacity_rows` rows takes, bookkeeping included."""
    return capacity_rows * row_bytes + bookkeeping_bytes(policy, capacity_rows, rows)


def capacity_for(policy: Policy, cache_bytes: int, row_bytes: int, rows: int) -> int:
    """Return how many of `rows` rows, with all bookkeeping, fit `cache_bytes`."""
    low, high = 0, rows
    while low < high:
        middle = (low + high + 1) // 2
        if cache_bytes_of(policy, middle, row_bytes, rows) <= cache_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def make_state(
    policy: Policy, capacity_rows: int, heat: NDArray[np.uint8], *, frugal: bool = True
) -> CacheState:
    """Return the state of an empty cache.

    Parameters
    ----------
    policy
        What it evicts and admits.
    capacity_rows
        Rows it holds when full; 0: it never holds any.
    heat
        uint8 (rows,), by position: how often the training log looked a row up.
    frugal
        Spend index memory by the capacity. False spends it by the table's rows, for speed;
        the cache decides the same.
    """
    rows = heat.size
    sizes = _sizes(policy, capacity_rows)
    buckets = make_buckets(capacity_rows, rows, frugal=frugal)
    clock = np.array([0, buckets.size == rows, -1, 0, 0, 0, 0, 0, 0], np.int64)
    live = np.zeros(0, np.uint8)
    half_life = max(1, round(policy.half_life * capacity_rows))
    # Without a cache nothing is decided by heat, and its half-life would be no time at all.
    if policy.watches_heat and capacity_rows:
        live = seeded(heat, half_life, policy.seed_weight)
    ends = empty_queues(2, halved=sizes.halved > 0)
    rules = np.array(
        [
            EVICTIONS[policy.eviction],
            ADMISSIONS[policy.admission.rule],
            policy.admission.least_heat,
            half_life,
        ],
        np.int64,
    )
    return CacheState(
        rules,
        buckets,
        np.zeros(capacity_rows, np.uint32),
        np.zeros(capacity_rows, np.uint8),
        np.zeros((sizes.linked, 2), np.int32),
        np.zeros(sizes.halved, np.uint8),
        ends,
        clock,
        live,
        make_remembered(sizes.ghost, rows, frugal=frugal),
        make_remembered(sizes.shadow, rows, frugal=frugal),
    )


def hits_relink(policy: Policy) -> bool:
    """Return whether a hit changes more than single bytes, so that lookups must take turns."""
    return policy.eviction == "lru" or "shadow" in policy.admission.rule


def positions(state: CacheState) -> NDArray[np.int64]:
    """Return the position that each slot in use holds: int64 (used,)."""
    return state.held[: int(state.clock[USED])].astype(np.int64)


def check(state: CacheState, rows: int) -> None:
    """Assert every invariant of `state`.

    Raises
    ------
    AssertionError
        Says which invariant is broken.
    """
    used = int(state.clock[USED])
    assert 0 <= used <= state.held.size, "more slots in use than there are"
    held = positions(state)
    assert np.unique(held).size == used, "a position is cached twice"
    assert np.count_nonzero(state.buckets) == used, "index and slots disagree in number"
    direct = int(state.clock[DIRECT])
    for slot, position in enumerate(held.tolist()):
        assert find(state.buckets, direct, position) == slot, "the index misses a cached position"
    if state.links.size:
        queues = [slots_of(state.links, state.older_half, state.ends, queue) for queue in (0, 1)]
        assert sorted(queues[0] + queues[1]) == list(range(used)), "the queues miss slots"
        main = np.flatnonzero(state.marks[:used] & MAIN).tolist()
        assert sorted(queues[1]) == main, "a slot's mark names another queue than it is in"
        hand = int(state.clock[HAND])
        assert hand == -1 or hand in queues[0], "the hand is on no slot"
    check_remembered(state.ghost)
    check_remembered(state.shadow)
    assert state.live.size in (0, rows), "live heat is of another table"
