"""Which neighbours to admit, found by replaying a validation part of the training log."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from bandana_kv.heat import count_lookups, heat_of_counts
from bandana_kv.placement import Placement
from bandana_kv.plan import Admission, PlannedPoint, TablePlan
from bandana_kv.progress import Progress
from bandana_kv.simulate.replay import Replayed, replay
from bandana_kv.simulate.sample import sample_blocks

if TYPE_CHECKING:
    from bandana_kv.access_log import AccessLog

__all__ = ["CACHE_FRACTIONS", "sweep", "tune"]

CACHE_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LEARN_SHARE = 0.8
_THRESHOLDS = (0, 1, 2, 3, 5, 8, 13, 25, 50, 100)
_MOST_LOOKUPS = 1_000_000
_LEAST_REQUESTS = 20
_LEAST_SAMPLED_ROWS = 300


def candidates() -> tuple[Admission, ...]:
    """Return every admission that is tried, the plainest first."""
    thresholds = (Admission("threshold", threshold) for threshold in _THRESHOLDS)
    return (Admission("none"), Admission("all"), *thresholds)


def sweep(
    log: AccessLog,
    placement: Placement,
    heat_counts: np.ndarray,
    capacity_rows: int,
    warm_requests: int,
) -> list[tuple[Admission, Replayed]]:
    """Replay `log` once for every candidate admission.

    Parameters
    ----------
    log, placement, capacity_rows, warm_requests
        As in :func:`bandana_kv.simulate.replay`.
    heat_counts
        int64 (rows,), by id: lookups in the log that the placement was learnt on.

    Returns
    -------
    list of (Admission, Replayed)
        In the order of :func:`candidates`. Cost: one replay each, on all cores.
    """
    heat = np.empty(placement.rows, np.uint8)
    heat[placement.position_of_id] = heat_of_counts(heat_counts)

    def cost(admission: Admission) -> tuple[Admission, Replayed]:
        return admission, replay(
            log,
            placement,
            capacity_rows,
            heat=heat,
            least_heat=admission.least_heat,
            warm_requests=warm_requests,
        )

    # Replays run without the GIL, so threads are all it takes to use every core.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(cost, candidates()))


def tune(
    learn: AccessLog,
    validate: AccessLog,
    placement: Placement,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> TablePlan:
    """Choose the admission at each of :data:`CACHE_FRACTIONS`.

    Parameters
    ----------
    learn
        The requests that `placement` was made from; they are also what thresholds count.
    validate
        Requests that `placement` has not seen. The end of `learn` warms the cache for them.
    placement
        Made from `learn` alone.
    seed
        Of the sample of blocks that a long log is cut down to.
    progress
        Told of each cache size.

    Returns
    -------
    TablePlan
        Empty where the log is too short to tell. Thresholds are scaled up to the whole log.
    """
    progress = progress or Progress()
    if validate.requests < _LEAST_REQUESTS:
        return TablePlan()
    counts = count_lookups(learn.ids, placement.rows)
    warm = min(learn.requests, validate.requests)
    log = _joined(learn, validate, warm)
    rate = min(1.0, _MOST_LOOKUPS / max(1, log.lookups))
    if rate < 1.0:
        log = sample_blocks(log, placement, rate, seed)
    progress.start("choose admission", len(CACHE_FRACTIONS), "cache sizes")
    points = []
    for fraction in CACHE_FRACTIONS:
        capacity_rows = round(fraction * placement.rows * rate)
        if rate == 1.0 or capacity_rows >= _LEAST_SAMPLED_ROWS:
            results = sweep(log, placement, counts, capacity_rows, warm)
            # On a tie the plainest wins: candidates come in that order and min is stable.
            best, result = min(results, key=lambda pair: pair[1].block_reads)
            points.append(PlannedPoint(fraction, _scaled(best), result.reads_per_lookup))
        progress.advance(1)
    progress.finish()
    return TablePlan(tuple(points))


def _joined(learn: AccessLog, validate: AccessLog, warm: int) -> AccessLog:
    """Return the last `warm` requests of `learn` followed by all of `validate`."""
    from bandana_kv.access_log import AccessLog

    first = int(learn.offsets[learn.requests - warm])
    ids = np.concatenate([learn.ids[first:], validate.ids])
    offsets = np.concatenate(
        [
            learn.offsets[learn.requests - warm : -1] - first,
            validate.offsets + (learn.lookups - first),
        ]
    )
    return AccessLog(offsets, ids)


def _scaled(admission: Admission) -> Admission:
    """Scale a threshold from the learning part's counts to the whole log's."""
    if admission.threshold is None:
        return admission
    return Admission("threshold", round(admission.threshold / LEARN_SHARE))
