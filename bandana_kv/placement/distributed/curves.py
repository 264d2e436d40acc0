"""Block reads and misses against DRAM, of a log in files: miniature caches, one task a sample.

Which blocks are sampled follows from how busy they are, which is a sum over the shares; what is
looked up in them is gathered from the shares through the work directory. So the curve is that of
:func:`bandana_kv.simulate.curve`, which holds the log, number by number.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.policy import Policy
from bandana_kv.disk.placement import Placement, layout_of
from bandana_kv.errors import InputError
from bandana_kv.placement.distributed.log import LogInFiles, count_rows
from bandana_kv.placement.distributed.pieces import offsets_of, read_pieces, write_pieces
from bandana_kv.placement.distributed.runner import Runner, Sums
from bandana_kv.placement.distributed.shares import Share
from bandana_kv.placement.distributed.shuffle import forget
from bandana_kv.simulate.miniature import (
    Curve,
    Sampled,
    curve_of,
    points_of,
    rate_for,
    sampled_blocks,
    sampled_lookups,
    sampled_miniature,
)
from bandana_kv.units import size_text

__all__ = ["curve"]

_TYPES: tuple[type[np.generic], ...] = (
    np.int64,
    np.int64,
    np.uint32,
)  # requests, lengths, positions
_LOOKUP_BYTES = 32  # of a sample, while it is replayed for several amounts of DRAM at once


class _Sample(NamedTuple):
    """What the task of a sample is given."""

    directory: str
    name: str
    seed: int
    shares: int
    chosen: NDArray[np.int64]
    rows_per_block: int
    rows: int
    warm_requests: int
    counted: int  # lookups after those that only warm
    policy: Policy
    capacities_rows: tuple[int, ...]


def curve(
    runner: Runner,
    log: LogInFiles,
    placement: Placement,
    capacities_rows: Sequence[int],
    *,
    policy: Policy | None = None,
    rate: float | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    warm_requests: int = 0,
    worker_memory_bytes: int | None = None,
) -> Curve:
    """Return block reads and misses against DRAM, from miniature caches.

    Parameters
    ----------
    runner, log
        Who does the work, and the requests, those held out included, in the order of the files.
    placement
        Of the table; without second copies.
    capacities_rows
        Rows in DRAM, one point each.
    policy, rate, seeds, warm_requests
        As in :func:`bandana_kv.simulate.curve`; which rows are hot nobody is told.
    worker_memory_bytes
        What a worker may take: a sample that needs more is refused. By default any is taken.

    Raises
    ------
    InputError
        Numbers are out of range, the placement is of another table or has copies, or a sample
        does not fit a worker; the message says which rate would.

    Notes
    -----
    Cost: two passes over the log, and a task a sample; of the log the share `rate` goes through
    the work directory for each.
    """
    if placement.rows != log.rows:
        raise InputError(f"the placement has {placement.rows} rows, the log's table {log.rows}")
    if placement.replicas is not None:
        raise InputError("the placement has second copies, of which samples know nothing")
    if any(rows < 0 for rows in capacities_rows):
        raise InputError(f"capacities_rows {list(capacities_rows)} has a negative number")
    if not 0 <= warm_requests <= log.requests:
        raise InputError(f"warm_requests {warm_requests} is not between 0 and {log.requests}")
    if not seeds:
        raise InputError("seeds is empty; name at least one")
    rate = rate_for(capacities_rows) if rate is None else rate
    if not 0.0 < rate <= 1.0:
        raise InputError(f"rate {rate} is not above 0 and up to 1")
    seeds = seeds if rate < 1.0 else seeds[:1]
    lookups, _, _ = count_rows(runner, log)
    of_block = np.zeros(placement.blocks, np.int64)
    np.add.at(of_block, placement.position_of_id // placement.rows_per_block, lookups)
    chosen = [sampled_blocks(of_block, rate, seed) for seed in seeds]
    most = max(int(of_block[blocks].sum()) for blocks in chosen)
    if worker_memory_bytes is not None and most * _LOOKUP_BYTES > worker_memory_bytes:
        fits = rate * worker_memory_bytes / (most * _LOOKUP_BYTES)
        raise InputError(
            f"a sample of {rate:.2g} of the blocks has {most} lookups, more than a worker of "
            f"{size_text(worker_memory_bytes)} replays; pass rate={fits:.2g}, or larger caches"
        )
    name = f"curve-{uuid.uuid4().hex}"
    begins = np.cumsum([0, *(share.last - share.first for share in log.shares)])
    positions = runner.broadcast(np.asarray(placement.position_of_id))
    written, warming = runner.map_log(
        _gather,
        log.shares,
        name,
        placement.rows_per_block,
        tuple(seeds),
        warm_requests,
        runner.broadcast(begins),
        positions,
        *map(runner.broadcast, chosen),
    )
    runner.moved.files_bytes += int(written[0])
    samples = [
        _Sample(
            log.directory,
            name,
            seed,
            len(log.shares),
            blocks,
            placement.rows_per_block,
            placement.rows,
            warm_requests,
            log.lookups - int(warming[0]),
            policy or Policy(),
            tuple(capacities_rows),
        )
        for seed, blocks in zip(seeds, chosen, strict=True)
    ]
    found = dict(runner.each(_replayed, samples))
    forget(log.directory, name)
    return curve_of([found[at] for at in range(len(samples))], capacities_rows, rate)


def _gather(
    shares: Sequence[Share],
    name: str,
    rows_per_block: int,
    seeds: tuple[int, ...],
    warm_requests: int,
    begins: NDArray[np.int64],
    position_of_id: NDArray[np.uint32],
    *chosen: NDArray[np.int64],
) -> Sums:
    """Write down what each sample has of the shares; return bytes written, and warming lookups."""
    written, warming = np.zeros(1, np.int64), np.zeros(1, np.int64)
    blocks = -(-position_of_id.size // rows_per_block)
    for share in shares:
        logged = share.logged()
        begin = int(begins[share.number])
        warm = min(max(warm_requests - begin, 0), logged.requests)
        warming += int(logged.offsets[warm])
        positions = position_of_id[logged.ids]
        for seed, sample in zip(seeds, chosen, strict=True):
            found = sampled_lookups(logged.offsets, positions, sample, blocks, rows_per_block)
            arrays = (found.requests + begin, np.diff(found.ends), found.positions)
            written += write_pieces(share.directory, f"{name}.{seed}", share.number, arrays)
    return written, warming


def _replayed(sample: _Sample) -> NDArray[np.float64]:
    """Return the sample's points of the curve."""
    requests, lengths, positions = read_pieces(
        sample.directory, f"{sample.name}.{sample.seed}", sample.shares, _TYPES
    )
    ends = offsets_of(lengths)
    warm = int(np.searchsorted(requests, sample.warm_requests))
    nothing = Placement(np.zeros(sample.rows, np.uint32), sample.rows_per_block, "")
    small = sampled_miniature(
        Sampled(requests, ends, positions),
        warm,
        layout_of(nothing, np.zeros(sample.rows, np.uint8)),
        sample.chosen,
        sample.counted,
    )
    return points_of(small, sample.policy, sample.capacities_rows)
