"""Replay an access log through the live cache's kernels, without any row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.batch import (
    BLOCK_READS,
    COUNTERS,
    admit,
    look_up,
    missing,
    new_counters,
)
from bandana_kv.cache.lru import LruState, make_state
from bandana_kv.compiled import kernel
from bandana_kv.heat import NONE
from bandana_kv.layout import Layout, cover
from bandana_kv.placement.measure import layout_of

if TYPE_CHECKING:
    from bandana_kv.access_log import AccessLog
    from bandana_kv.placement import Placement

__all__ = ["Replayed", "replay"]

_MOST_BUCKETS = 1 << 20


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
def _replay(
    state: LruState,
    offsets: np.ndarray,
    ids: np.ndarray,
    first: int,
    last: int,
    position_of_id: np.ndarray,
    layout: Layout,
    least_heat: int,
    coalesce: bool,
    counters: np.ndarray,
) -> None:
    longest = 0
    for request in range(first, last):
        longest = max(longest, offsets[request + 1] - offsets[request])
    positions = np.empty(longest, np.int64)
    slots = np.empty(longest, np.int64)
    places = np.empty(longest, np.int64)
    fills = np.empty((1024, 2), np.int64)
    rows_per_block = layout.rows_per_block
    for request in range(first, last):
        start = offsets[request]
        size = offsets[request + 1] - start
        for i in range(size):
            positions[i] = position_of_id[ids[start + i]]
        missed = look_up(state, positions[:size], slots, counters)
        if missed == 0:
            continue
        asked, ordered = missing(positions[:size], slots, missed)
        blocks = cover(ordered, layout, places)
        counters[BLOCK_READS] += blocks.size if coalesce else ordered.size
        most_fills = blocks.size * rows_per_block + asked.size
        if fills.shape[0] < most_fills:
            fills = np.empty((2 * most_fills, 2), np.int64)
        admit(state, layout, asked, ordered, places, blocks, least_heat, fills, counters)


def replay(
    log: AccessLog,
    placement: Placement,
    capacity_rows: int,
    *,
    heat: NDArray[np.uint8] | None = None,
    least_heat: int = NONE,
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
    heat
        uint8 (rows,), by position; needed unless all or no neighbours enter.
    least_heat
        Least heat of a neighbour that enters the cache; :data:`bandana_kv.heat.NONE`
        admits none, :data:`bandana_kv.heat.ALL` all.
    coalesce
        Read a block once for a request, as the store does. False reads one block per
        distinct missed row, as a store that knows no blocks would.
    warm_requests
        Requests at the start that fill the cache and are not counted.

    Returns
    -------
    Replayed

    Notes
    -----
    Equal, hit by hit, to a store that serves the same requests from one thread: both run
    :mod:`bandana_kv.cache.batch`. Cost: some 50 ns a lookup, without the GIL; DRAM for
    the bookkeeping of `capacity_rows` rows.
    """
    if heat is None:
        heat = np.zeros(placement.rows, np.uint8)
    # One bucket for each row is faster while it is small; several replays run at once.
    frugal = placement.rows > _MOST_BUCKETS
    state = make_state(capacity_rows, placement.rows, frugal=frugal)
    layout = layout_of(placement, heat)
    counters = new_counters()
    for first, last in ((0, warm_requests), (warm_requests, log.requests)):
        counters[:] = 0
        _replay(
            state,
            log.offsets,
            log.ids,
            first,
            last,
            placement.position_of_id,
            layout,
            least_heat,
            coalesce,
            counters,
        )
    return Replayed(**dict(zip(COUNTERS, counters.tolist(), strict=True)))
