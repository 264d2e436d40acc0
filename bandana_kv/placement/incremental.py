"""Re-placement that rewrites few blocks: from what is served, and only what pays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.policy import Policy
from bandana_kv.disk.placement import Placement, layout_of
from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.logs.requests import validated_log
from bandana_kv.placement.registry import place
from bandana_kv.placement.rewrites import blocks_worth_writing
from bandana_kv.placement.subset import kept_lookups, without_rows
from bandana_kv.progress import Progress
from bandana_kv.simulate.replay import missed_lookups, stream_of

__all__ = ["Replacing", "blocks_changed", "place_incrementally"]

# The last quarter of the requests counts three times, the one before twice: what changes at all
# has changed by then, and the order does no harm where nothing does.
_COUNTED_AGAIN = (0.5, 0.75)
_METHOD = "incremental"


def blocks_changed(before: Placement, after: Placement) -> int:
    """Return how many blocks hold rows that no block held together before.

    Neither the order inside a block nor the numbers of blocks count. Blocks of second copies
    are not looked at.

    Raises
    ------
    InputError
        The placements are of tables or blocks of different sizes.
    """
    if (before.rows, before.rows_per_block) != (after.rows, after.rows_per_block):
        raise InputError(
            f"a placement of {after.rows} rows, {after.rows_per_block} in a block, cannot be "
            f"compared with one of {before.rows} rows, {before.rows_per_block} in a block"
        )
    if not before.rows:
        return 0
    came_from = _block_of_id(before)[after.id_of_position()]
    begins = np.arange(0, before.rows, before.rows_per_block)
    first = np.minimum.reduceat(came_from, begins)
    same = first == np.maximum.reduceat(came_from, begins)
    # The last block may be short; its rows were together in a longer one, or are it.
    sizes = np.diff(np.append(begins, before.rows))
    same &= sizes == sizes[first]
    return int(np.count_nonzero(~same))


@dataclass(frozen=True)
class Replacing:
    """What re-placements of one table under several budgets have in common.

    Attributes
    ----------
    serving : Placement
        As the table is served now.
    reads : AccessLog
        What has to be read from blocks, request by request: the lookups that a cache misses.
    target : Placement
        From scratch, for these reads.
    quality, seed, threads, progress
        As for :func:`place_incrementally`; the target is of the usual quality, whatever `quality`.
    """

    serving: Placement
    reads: AccessLog
    target: Placement
    quality: str
    seed: int
    threads: int | None
    progress: Progress

    @staticmethod
    def of(
        log: AccessLog,
        serving: Placement,
        *,
        capacity_rows: int = 0,
        policy: Policy | None = None,
        heat: NDArray[np.uint8] | None = None,
        quality: str = "best",
        seed: int = 0,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Replacing:
        """Replay the log, and place from scratch what it reads; :func:`place_incrementally`."""
        validated_log(log, serving.rows)
        if capacity_rows < 0:
            raise InputError(f"capacity_rows {capacity_rows} is negative")
        reads = _recent_again(_reads(log, serving, capacity_rows, policy or Policy(), heat))
        progress = progress or Progress()
        target = place(
            reads,
            serving.rows,
            serving.rows_per_block,
            "shp",
            seed=seed,
            threads=threads,
            progress=progress,
        )
        return Replacing(serving, reads, target, quality, seed, threads, progress)

    def within(self, max_blocks: int) -> Placement:
        """Return the serving placement with at most `max_blocks` blocks changed."""
        if max_blocks < 0:
            raise InputError(f"max_blocks {max_blocks} is negative")
        serving, rows_per_block = self.serving, self.serving.rows_per_block
        blocks = blocks_worth_writing(
            *validated_log(self.reads, serving.rows),
            _block_of_id(serving),
            _block_of_id(self.target),
            max_blocks,
        )
        if blocks.size < 2:
            return serving
        positions = (blocks[:, None] * rows_per_block + np.arange(rows_per_block)).ravel()
        positions = positions[positions < serving.rows]
        ids = np.sort(serving.id_of_position()[positions])
        chosen = np.zeros(serving.rows, np.bool_)
        chosen[ids] = True
        among = without_rows(self.reads, chosen)
        placed = place(
            among,
            ids.size,
            rows_per_block,
            "shp",
            quality=self.quality,
            seed=self.seed,
            threads=self.threads,
            progress=self.progress,
        )
        # The table's last block, which may be short, is the last of these, too.
        position_of_id = serving.position_of_id.copy()
        position_of_id[ids] = positions[placed.position_of_id]
        return replace(serving, position_of_id=position_of_id, method=_METHOD)


def place_incrementally(
    log: AccessLog,
    serving: Placement,
    max_blocks: int,
    *,
    capacity_rows: int = 0,
    policy: Policy | None = None,
    heat: NDArray[np.uint8] | None = None,
    quality: str = "best",
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Placement:
    """Change the placement that is served where it pays most, within a budget of blocks.

    Parameters
    ----------
    log
        What was asked lately, in order of time: the end of it counts most.
    serving
        The placement that is served.
    max_blocks
        Blocks that may be rewritten at most. With as many as the table has, every block that
        some request reads is placed anew.
    capacity_rows, policy
        Rows that DRAM holds, and how: lookups that hit cost nothing wherever a row lies, and are
        not learnt from. By default nothing is held.
    heat
        uint8 (rows,), by position in `serving`, as :func:`bandana_kv.simulate.replay` takes it.
    quality, seed, threads, progress
        As for :func:`bandana_kv.placement.place`. Few blocks are placed, so that more care costs
        little: ``"best"`` by default.

    Returns
    -------
    Placement
        Differs from `serving` inside at most `max_blocks` blocks; second copies stay as they
        are. The same for the same seed, whatever the number of threads.

    Raises
    ------
    InputError
        A log with an id beyond the table, or a number out of range.

    Notes
    -----
    A replay says which lookups are read from blocks; these are placed from scratch, which
    costs no writes, to see what each block could save; then the blocks whose rows together save
    most (:mod:`bandana_kv.placement.rewrites`) are placed anew among themselves. Whether it is
    worth writing is for :func:`bandana_kv.care.drift.advise` to say, on requests that were not
    learnt from. Cost: a replay, a placement of the missed lookups, and one of the chosen blocks.
    """
    return Replacing.of(
        log,
        serving,
        capacity_rows=capacity_rows,
        policy=policy,
        heat=heat,
        quality=quality,
        seed=seed,
        threads=threads,
        progress=progress,
    ).within(max_blocks)


def _block_of_id(placement: Placement) -> NDArray[np.int32]:
    return (placement.position_of_id // np.uint32(placement.rows_per_block)).astype(np.int32)


def _reads(
    log: AccessLog,
    serving: Placement,
    capacity_rows: int,
    policy: Policy,
    heat: NDArray[np.uint8] | None,
) -> AccessLog:
    if heat is None:
        heat = np.zeros(serving.rows, np.uint8)
    stream = stream_of(log, serving)
    missed = missed_lookups(stream, layout_of(serving, heat), policy, capacity_rows)
    kept = kept_lookups(log.offsets, log.ids, missed)
    return AccessLog(kept.offsets, kept.ids)


def _recent_again(log: AccessLog) -> AccessLog:
    requests = np.arange(log.requests)
    again = [requests[int(share * log.requests) :] for share in _COUNTED_AGAIN]
    return log.select(np.concatenate([requests, *again]))
