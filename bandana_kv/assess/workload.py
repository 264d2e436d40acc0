"""What a log is like: reuse, skew, lengths of requests, and rows never seen before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.assess.table_data import Workload
from bandana_kv.cache.heat import count_lookups
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement import Placement, fanout
from bandana_kv.placement.measure import blocks_per_request

__all__ = ["describe", "seen_rows", "unseen_share"]


def describe(
    log: AccessLog,
    learned: AccessLog,
    judged: AccessLog,
    placements: dict[str, Placement],
    unseen_in_file_order_share: float,
    parts_a_request: float,
    lengths: NDArray[np.int64],
) -> Workload:
    """Describe a log.

    Parameters
    ----------
    log
        All of it.
    learned, judged
        Its earlier and later requests.
    placements
        Learnt from `learned`: ``shuffled``, ``popularity`` and ``placed``.
    unseen_in_file_order_share
        See :class:`~bandana_kv.assess.data.Workload`.
    parts_a_request
        Where the log is of parts of requests: how many a request is in. Else 1.
    lengths
        What requests look up, int64 (requests,).

    Notes
    -----
    Cost: some passes over the log; 16 bytes a row.
    """
    rows = placements["placed"].rows
    counts = np.sort(count_lookups(log.ids, rows))[::-1]
    used = int(np.count_nonzero(counts))
    running = np.cumsum(counts)
    distinct = _distinct(log, rows)
    shuffled, placed, popularity = (
        fanout(judged, placements[name]) * parts_a_request
        for name in ("shuffled", "placed", "popularity")
    )
    return Workload(
        requests=lengths.size,
        lookups=log.lookups,
        distinct_rows=used,
        distinct_share=used / rows,
        once_share=int(np.count_nonzero(counts == 1)) / max(1, used),
        top_1_share=_share_of_busiest(running, 0.01),
        top_10_share=_share_of_busiest(running, 0.1),
        rows_for_90_share=(int(np.searchsorted(running, 0.9 * log.lookups)) + 1) / rows,
        mean_length=float(lengths.mean()) if lengths.size else 0.0,
        median_length=float(np.median(lengths)),
        p99_length=float(np.percentile(lengths, 99)),
        longest=int(lengths.max()),
        short_share=float(np.mean(lengths <= 2)),
        repeats_share=1.0 - float(distinct.sum()) / max(1, log.lookups),
        fanout_popularity=popularity,
        fanout_least=_least_fanout(judged, placements["placed"], parts_a_request),
        co_access=shuffled / placed if placed else 1.0,
        unseen_share=unseen_share(learned, judged, rows),
        unseen_in_file_order_share=unseen_in_file_order_share,
    )


def seen_rows(log: AccessLog, rows: int) -> NDArray[np.bool_]:
    """Return which of `rows` ids the log looks up: bool (rows,)."""
    seen = np.zeros(rows, bool)
    seen[log.ids] = True
    return seen


def unseen_share(learned: AccessLog, judged: AccessLog, rows: int) -> float:
    """Return the share of lookups of `judged` that go to ids which `learned` has not."""
    if not judged.lookups:
        return 0.0
    return 1.0 - float(np.mean(seen_rows(learned, rows)[judged.ids]))


def _share_of_busiest(running: NDArray[np.int64], share: float) -> float:
    rows = max(1, round(share * running.size))
    return int(running[rows - 1]) / max(1, int(running[-1]))


def _distinct(log: AccessLog, rows: int) -> NDArray[np.int64]:
    """Return how many different ids each request looks up."""
    by_id = np.arange(rows, dtype=np.uint32)
    counts: NDArray[Any] = blocks_per_request(log, Placement(by_id, 1, "identity"))
    return counts


def _least_fanout(log: AccessLog, placement: Placement, parts_a_request: float) -> float:
    distinct = _distinct(log, placement.rows) * parts_a_request
    return float(np.mean(np.ceil(distinct / placement.rows_per_block))) if distinct.size else 0.0
