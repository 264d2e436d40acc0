"""Miniature caches: the same kernels on a sample of the blocks, with DRAM to scale."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.policy import Policy
from bandana_kv.disk.placement import layout_of
from bandana_kv.errors import InputError
from bandana_kv.kernels.layout import Layout
from bandana_kv.kernels.views import readable
from bandana_kv.simulate.replay import Replayed, Stream, run, stream_of

if TYPE_CHECKING:
    from bandana_kv.disk.placement import Placement
    from bandana_kv.logs.access_log import AccessLog

__all__ = [
    "Curve",
    "Miniature",
    "Sampled",
    "curve",
    "curve_of",
    "in_threads",
    "miniature",
    "points_of",
    "rate_for",
    "sampled_blocks",
    "sampled_lookups",
    "sampled_miniature",
    "whole",
]

_LEAST_SAMPLED_ROWS = 300
_NO_COPIES = np.zeros(0, np.uint32)
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Miniature:
    """A stream over a sample of the blocks, which are numbered anew.

    Attributes
    ----------
    stream : Stream
    layout : Layout
    rate : float
        Share of the table's rows that lie in the sample.
    lookups_rate : float
        Share of the counted lookups that do.
    """

    stream: Stream
    layout: Layout
    rate: float
    lookups_rate: float

    def capacity(self, capacity_rows: int) -> int:
        """Return the rows of DRAM that stand for `capacity_rows` of the whole table."""
        return round(capacity_rows * self.rate) if capacity_rows else 0

    def reads_per_lookup(self, replayed: Replayed) -> float:
        """Return what a replay of the sample says of the whole.

        Reads are scaled by the blocks sampled, for it is blocks that cause them: a busy row
        more or less in the sample changes its lookups, and hardly its reads.
        """
        if not replayed.lookups:
            return 0.0
        whole = replayed.lookups / self.lookups_rate
        return replayed.block_reads / self.rate / whole


def rate_for(capacities: Sequence[int], least_rows: int = _LEAST_SAMPLED_ROWS) -> float:
    """Return the least sampling rate that leaves each cache of `capacities` rows `least_rows`."""
    smallest = min((rows for rows in capacities if rows), default=1)
    return min(1.0, least_rows / smallest)


def miniature(stream: Stream, layout: Layout, rate: float, seed: int) -> Miniature:
    """Return the part of `stream` that looks up rows in a share `rate` of the blocks.

    Blocks are sampled, not rows: sampling rows would destroy what neighbours are worth. They
    are sampled by hash within groups of equally busy blocks, so that no sample lacks the
    busiest or is full of them.

    Parameters
    ----------
    stream
        Requests; those that the sample does not touch are dropped.
    layout
        Of the table. Second copies are left out: a copy's block may not be in the sample.
    rate
        Share of the blocks, above 0, up to 1.
    seed
        Of the choice.

    Notes
    -----
    Cost: one pass over the stream, about 10 ns a lookup. Source: miniature simulation
    (Waldspurger et al., ATC 2017) on a spatial sample (SHARDS, FAST 2015), here by block.
    """
    rows_per_block, heat = layout.rows_per_block, layout.heat
    blocks = -(-heat.size // rows_per_block)
    of_lookup = stream.positions // np.uint32(rows_per_block)
    chosen = sampled_blocks(np.bincount(of_lookup, minlength=blocks), rate, seed)
    found = sampled_lookups(stream.offsets, stream.positions, chosen, blocks, rows_per_block)
    warm = int(np.searchsorted(found.requests, stream.warm_requests))
    counted = int(stream.offsets[-1] - stream.offsets[stream.warm_requests])
    return sampled_miniature(found, warm, layout, chosen, counted)


def sampled_miniature(
    found: Sampled, warm: int, layout: Layout, chosen: NDArray[np.int64], counted: int
) -> Miniature:
    """Return a miniature of lookups in `chosen` blocks; the first `warm` requests only warm it.

    `counted` is how many lookups the log has after those that only warm.
    """
    rows_per_block, heat = layout.rows_per_block, layout.heat
    rows = chosen.astype(np.int64)[:, None] * rows_per_block + np.arange(rows_per_block)
    # The table's last block may be short; its numbers then stay the last, too.
    rows = rows.ravel()[rows.ravel() < heat.size]
    return Miniature(
        Stream(readable(found.ends), found.positions, warm),
        Layout(rows_per_block, heat[rows], _NO_COPIES, _NO_COPIES),
        rows.size / max(1, heat.size),
        int(found.ends[-1] - found.ends[warm]) / max(1, counted),
    )


class Sampled(NamedTuple):
    """What requests look up in a sample of the blocks, which are numbered anew.

    Attributes
    ----------
    requests : int64 (n,)
        The numbers of those that look up anything there.
    ends : int64 (n + 1,)
    positions : uint32 (lookups,)
    """

    requests: NDArray[np.int64]
    ends: NDArray[np.int64]
    positions: NDArray[np.uint32]


def sampled_lookups(
    offsets: NDArray[np.int64],
    positions: NDArray[np.uint32],
    chosen: NDArray[np.int64],
    blocks: int,
    rows_per_block: int,
) -> Sampled:
    """Return what requests look up in the `chosen` ones, sorted, of the table's `blocks`."""
    of_lookup = positions // np.uint32(rows_per_block)
    number_of = np.full(blocks, -1, np.int32)
    number_of[chosen] = np.arange(chosen.size, dtype=np.int32)
    kept = number_of[of_lookup] >= 0
    before = np.zeros(kept.size + 1, np.int64)
    np.cumsum(kept, out=before[1:])
    ends = before[offsets]
    alive = np.flatnonzero(np.diff(ends))
    sampled = positions[kept]
    block = sampled // np.uint32(rows_per_block)
    renumbered = number_of[block].astype(np.uint32) * np.uint32(rows_per_block)
    renumbered += sampled - block * np.uint32(rows_per_block)
    return Sampled(alive, np.append(ends[alive], ends[-1]), renumbered)


def sampled_blocks(
    lookups_of_block: NDArray[np.int64], rate: float, seed: int
) -> NDArray[np.int64]:
    """Return blocks, sorted: of each run of 1 / rate equally busy ones, one.

    Two runs share a block where one ends within it; drawn from both, it counts once.
    """
    blocks = lookups_of_block.size
    rng = np.random.default_rng(seed)
    wanted = max(1, round(blocks * rate))
    # Equally busy blocks come in random order.
    order = rng.permutation(blocks)
    order = order[np.argsort(-lookups_of_block[order], kind="stable")]
    edges = np.linspace(0, blocks, wanted + 1)
    at = (edges[:-1] + rng.random(wanted) * np.diff(edges)).astype(np.int64)
    return np.unique(order[at])


def in_threads(work: Callable[[_Job], _Result], jobs: Sequence[_Job]) -> list[_Result]:
    """Return `work` of each job, on all cores: replays run without the GIL."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(work, jobs))


@dataclass(frozen=True)
class Curve:
    """Block reads and misses against DRAM.

    Attributes
    ----------
    capacity_rows : int64 (k,)
    reads_per_lookup, miss_ratio : float64 (k,)
        Means over the samples.
    low, high : float64 (k,)
        Least and most reads per lookup over the samples.
    rate : float
        Share of the blocks in a sample.
    """

    capacity_rows: NDArray[np.int64]
    reads_per_lookup: NDArray[np.float64]
    miss_ratio: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    rate: float


def curve(
    log: AccessLog,
    placement: Placement,
    capacities_rows: Sequence[int],
    *,
    policy: Policy | None = None,
    heat: NDArray[np.uint8] | None = None,
    rate: float | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    warm_requests: int = 0,
) -> Curve:
    """Return block reads and misses against DRAM, from miniature caches.

    Parameters
    ----------
    log, placement, policy, heat, warm_requests
        As in :func:`bandana_kv.simulate.replay`.
    capacities_rows
        Rows in DRAM, one point each.
    rate
        Share of the blocks in a sample; by default as small as leaves the smallest cache
        a few hundred rows. 1: the whole log, once.
    seeds
        One sample for each; their spread is the curve's.

    Raises
    ------
    InputError
        As :func:`~bandana_kv.simulate.replay`; or `rate` is not above 0 and up to 1.

    Notes
    -----
    Cost: for each seed one pass over the log, and a replay of the sample for each point.
    """
    if any(rows < 0 for rows in capacities_rows):
        raise InputError(f"capacities_rows {list(capacities_rows)} has a negative number")
    if rate is None:
        rate = rate_for(capacities_rows)
    if not 0.0 < rate <= 1.0:
        raise InputError(f"rate {rate} is not above 0 and up to 1")
    if not seeds:
        raise InputError("seeds is empty; name at least one")
    if heat is None:
        heat = np.zeros(placement.rows, np.uint8)
    stream = stream_of(log, placement, warm_requests)
    layout = layout_of(placement, heat)
    found = []
    for seed in seeds if rate < 1.0 else seeds[:1]:
        small = whole(stream, layout) if rate == 1.0 else miniature(stream, layout, rate, seed)
        found.append(points_of(small, policy or Policy(), capacities_rows))
    return curve_of(found, capacities_rows, rate)


def points_of(
    small: Miniature, policy: Policy, capacities_rows: Sequence[int]
) -> NDArray[np.float64]:
    """Return block reads per lookup and the miss ratio of each amount of DRAM: (2, k)."""
    points = in_threads(partial(_run_small, small, policy), capacities_rows)
    reads = [small.reads_per_lookup(point) for point in points]
    return np.array([reads, [1.0 - point.hit_rate for point in points]])


def curve_of(
    found: Sequence[NDArray[np.float64]], capacities_rows: Sequence[int], rate: float
) -> Curve:
    """Return the curve of several samples, from what :func:`points_of` says of each."""
    reads, misses = np.array(found).transpose(1, 0, 2)
    return Curve(
        np.array(capacities_rows, np.int64),
        np.mean(reads, axis=0),
        np.mean(misses, axis=0),
        np.min(reads, axis=0),
        np.max(reads, axis=0),
        rate,
    )


def _run_small(small: Miniature, policy: Policy, capacity_rows: int) -> Replayed:
    return run(small.stream, small.layout, policy, small.capacity(capacity_rows))


def whole(stream: Stream, layout: Layout) -> Miniature:
    """Return all of a stream as its own sample, copies included."""
    return Miniature(stream, layout, 1.0, 1.0)
