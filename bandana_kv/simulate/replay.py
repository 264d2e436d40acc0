"""Replay an access log through the live cache's kernels, without any row."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.policy import Policy
from bandana_kv.cache.request import (
    BLOCK_READS,
    COUNTERS,
    admit,
    look_up,
    missing,
    new_counters,
)
from bandana_kv.cache.state import CacheState, make_state
from bandana_kv.disk.placement import layout_of
from bandana_kv.errors import InputError
from bandana_kv.kernels.compile import kernel
from bandana_kv.kernels.layout import Layout, cover
from bandana_kv.kernels.views import readable
from bandana_kv.simulate.crowd import ALONE, Crowd, reads_left

if TYPE_CHECKING:
    from bandana_kv.disk.placement import Placement
    from bandana_kv.logs.access_log import AccessLog

__all__ = [
    "NOT_NOTED",
    "Replayed",
    "Stream",
    "cold",
    "missed_lookups",
    "replay",
    "replay_requests",
    "run",
    "run_parts",
    "stream_of",
]

_MOST_BUCKETS = 1 << 20

NOT_NOTED = np.zeros(0, np.bool_)
"""Room for which lookups missed, where nobody asks."""


class Stream(NamedTuple):
    """Requests as positions, which is how the kernels see them.

    Attributes
    ----------
    offsets : int64 (requests + 1,), read-only
    positions : uint32 (lookups,)
    warm_requests : int
        Requests at the start that fill the cache and are not counted.
    """

    offsets: NDArray[np.int64]
    positions: NDArray[np.uint32]
    warm_requests: int


@dataclass(frozen=True)
class Replayed:
    """What a replay counted, after the requests that only warmed the cache.

    Attributes
    ----------
    lookups, hits, block_reads, neighbours_admitted, neighbours_hit, copies_read : int
        As in the store's ``stats()``.
    """

    lookups: int
    hits: int
    block_reads: int
    neighbours_admitted: int
    neighbours_hit: int
    copies_read: int

    @property
    def reads_per_lookup(self) -> float:
        """Block reads per lookup; 0 without lookups."""
        return self.block_reads / self.lookups if self.lookups else 0.0

    @property
    def hit_rate(self) -> float:
        """Share of lookups answered from DRAM; 0 without lookups."""
        return self.hits / self.lookups if self.lookups else 0.0


@kernel
def replay_requests(
    state: CacheState,
    offsets: np.ndarray,
    positions: np.ndarray,
    first: int,
    last: int,
    layout: Layout,
    coalesce: bool,
    counters: np.ndarray,
    each: np.ndarray,
    missed_at: np.ndarray,
    crowd: Crowd,
) -> None:
    """Serve requests `first` to `last`.

    `each`, (requests, 3), gets their missed rows, their block reads, and the blocks that they
    wait for while another caller of the `crowd` reads them. `missed_at`, (lookups,), says which
    lookups missed, if it has room.
    """
    alone = crowd.ends.size == 1
    longest = 0
    for request in range(first, last):
        longest = max(longest, offsets[request + 1] - offsets[request])
    slots = np.empty(longest, np.int64)
    places = np.empty(longest, np.int64)
    fills = np.empty((1024, 2), np.int64)
    rows_per_block = layout.rows_per_block
    for request in range(first, last):
        wanted = positions[offsets[request] : offsets[request + 1]]
        missed = look_up(state, wanted, slots, counters)
        each[request - first] = missed, 0, 0
        if missed == 0:
            if not alone:
                reads_left(crowd, wanted.size, places[:0])
            continue
        if missed_at.size:
            for i in range(wanted.size):
                missed_at[offsets[request] + i] = slots[i] < 0
        asked, ordered = missing(wanted, slots, missed)
        blocks = cover(ordered, layout, places)
        if alone:
            reads = blocks.size if coalesce else ordered.size
        else:
            reads = reads_left(crowd, wanted.size, blocks)
            each[request - first, 2] = blocks.size - reads
        counters[BLOCK_READS] += reads
        each[request - first, 1] = reads
        most_fills = blocks.size * rows_per_block + asked.size
        if fills.shape[0] < most_fills:
            fills = np.empty((2 * most_fills, 2), np.int64)
        admit(state, layout, asked, ordered, places, blocks, fills, counters)


def stream_of(log: AccessLog, placement: Placement, warm_requests: int = 0) -> Stream:
    """Return `log` as positions.

    Raises
    ------
    InputError
        The log has an id that the placement has not, or fewer requests than are to warm.
    """
    if not 0 <= warm_requests <= log.requests:
        raise InputError(f"warm_requests {warm_requests} is not between 0 and {log.requests}")
    if log.lookups and not (log.ids.min() >= 0 and log.ids.max() < placement.rows):
        raise InputError(
            f"the log looks up ids from {log.ids.min()} to {log.ids.max()}; "
            f"the placement has {placement.rows} rows"
        )
    offsets = readable(np.asarray(log.offsets, np.int64))
    return Stream(offsets, placement.position_of_id[log.ids], warm_requests)


def run(
    stream: Stream,
    layout: Layout,
    policy: Policy,
    capacity_rows: int,
    *,
    coalesce: bool = True,
) -> Replayed:
    """Count what `stream` costs; :func:`replay` says the rest."""
    return run_parts(stream, layout, policy, capacity_rows, 1, coalesce=coalesce)[0]


def cold(policy: Policy, capacity_rows: int, layout: Layout) -> CacheState:
    """Return an empty cache."""
    # One bucket for each row is faster while it is small; several replays run at once.
    frugal = layout.heat.size > _MOST_BUCKETS
    return make_state(policy, capacity_rows, layout.heat, frugal=frugal)


def missed_lookups(
    stream: Stream, layout: Layout, policy: Policy, capacity_rows: int
) -> NDArray[np.bool_]:
    """Return which lookups of `stream` miss, bool (lookups,); its cache begins empty."""
    missed_at = np.zeros(stream.positions.size, np.bool_)
    requests = stream.offsets.size - 1
    replay_requests(
        cold(policy, capacity_rows, layout),
        stream.offsets,
        stream.positions,
        0,
        requests,
        layout,
        True,
        new_counters(),
        np.empty((requests, 3), np.int32),
        missed_at,
        ALONE,
    )
    return missed_at


def run_parts(
    stream: Stream,
    layout: Layout,
    policy: Policy,
    capacity_rows: int,
    parts: int,
    *,
    coalesce: bool = True,
) -> list[Replayed]:
    """Count what consecutive parts of `stream` cost, of about as many requests each."""
    state = cold(policy, capacity_rows, layout)
    requests = stream.offsets.size - 1
    edges = [0, *np.linspace(stream.warm_requests, requests, parts + 1).astype(int).tolist()]
    counted = []
    for first, last in pairwise(edges):
        counters, each = new_counters(), np.empty((last - first, 3), np.int32)
        replay_requests(
            state,
            stream.offsets,
            stream.positions,
            first,
            last,
            layout,
            coalesce,
            counters,
            each,
            NOT_NOTED,
            ALONE,
        )
        counted.append(Replayed(**dict(zip(COUNTERS, counters.tolist(), strict=True))))
    return counted[1:]


def replay(
    log: AccessLog,
    placement: Placement,
    capacity_rows: int,
    *,
    policy: Policy | None = None,
    heat: NDArray[np.uint8] | None = None,
    coalesce: bool = True,
    warm_requests: int = 0,
) -> Replayed:
    """Count what `log` would cost a store with `placement` and a cache of `capacity_rows`.

    Parameters
    ----------
    log
        Requests, in the order in which they would arrive.
    placement
        Where each id lies.
    capacity_rows
        Rows that DRAM holds.
    policy
        What the cache evicts and admits; LRU without neighbours by default.
    heat
        uint8 (rows,), by position, :func:`bandana_kv.cache.heat.heat_by_position` of the training
        log: what thresholds compare and live heat begins with. By default no row has any.
    coalesce
        Read a block once for a request, as the store does. False reads one block per
        distinct missed row, as a store that knows no blocks would.
    warm_requests
        Requests at the start that fill the cache and are not counted.

    Returns
    -------
    Replayed

    Raises
    ------
    InputError
        The log has an id that the placement has not, or a number is out of range.

    Notes
    -----
    Equal, hit by hit, to a store that serves the same requests from one thread: both run
    :mod:`bandana_kv.cache.request`. Cost: 50 to 200 ns a lookup, without the GIL; 4 bytes a
    lookup, and the bookkeeping of `capacity_rows` rows.
    """
    if capacity_rows < 0:
        raise InputError(f"capacity_rows {capacity_rows} is negative")
    if heat is None:
        heat = np.zeros(placement.rows, np.uint8)
    return run(
        stream_of(log, placement, warm_requests),
        layout_of(placement, heat),
        policy or Policy(),
        capacity_rows,
        coalesce=coalesce,
    )
