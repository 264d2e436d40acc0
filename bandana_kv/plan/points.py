"""The best policy of one table for several amounts of DRAM, judged on later requests."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Policy
from bandana_kv.disk.placement import layout_of
from bandana_kv.disk.plan import PlannedPoint
from bandana_kv.kernels.layout import Layout
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement import Placement
from bandana_kv.progress import Progress
from bandana_kv.simulate.race import candidates, race
from bandana_kv.simulate.replay import Stream, stream_of

__all__ = [
    "CACHE_FRACTIONS",
    "LEARN_SHARE",
    "LEAST_REQUESTS",
    "best_points",
    "capacities_of",
    "joined",
    "judged",
    "scaled",
    "split",
]

CACHE_FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LEARN_SHARE = 0.8
LEAST_REQUESTS = 100


def split(log: AccessLog) -> tuple[AccessLog, AccessLog] | None:
    """Return the earlier requests, to learn from, and the later, to judge by.

    None where there are too few to judge by. The later part, so that traffic which drifts is
    seen to drift.
    """
    return None if log.requests < LEAST_REQUESTS else log.split(train=LEARN_SHARE, ordered=True)


def judged(learn: AccessLog, judge: AccessLog, placement: Placement) -> tuple[Stream, Layout]:
    """Return what policies are judged on: the end of `learn`, which warms, then `judge`."""
    warm = min(learn.requests, judge.requests)
    log = joined(learn, judge, warm)
    heat = heat_by_position(learn.ids, placement.position_of_id)
    return stream_of(log, placement, warm), layout_of(placement, heat)


def joined(learn: AccessLog, judge: AccessLog, warm: int) -> AccessLog:
    """Return the last `warm` requests of `learn` followed by all of `judge`."""
    first = int(learn.offsets[learn.requests - warm])
    ids = np.concatenate([learn.ids[first:], judge.ids])
    before = learn.offsets[learn.requests - warm : -1] - first
    return AccessLog(np.concatenate([before, judge.offsets + (learn.lookups - first)]), ids)


def best_points(
    stream: Stream,
    layout: Layout,
    capacities: Sequence[int],
    seed: int,
    progress: Progress,
    name: str,
) -> tuple[PlannedPoint, ...]:
    """Return the best policy for each of `capacities`, which are rows in DRAM, rising."""
    policies = candidates()
    progress.start(f"simulate {name}", len(capacities), "cache sizes")
    points = []
    for capacity_rows in capacities:
        ranked = race(stream, layout, policies, dict.fromkeys(policies, capacity_rows), seed)
        best = ranked[0]
        points.append(PlannedPoint(capacity_rows, scaled(best.policy), best.reads_per_lookup))
        progress.advance(1)
    progress.finish()
    return tuple(points)


def capacities_of(rows: int) -> list[int]:
    """Return the numbers of rows in DRAM that are tried for a table; the last is all of them."""
    return sorted({max(1, round(fraction * rows)) for fraction in CACHE_FRACTIONS})


def scaled(policy: Policy, by: float = 1 / LEARN_SHARE) -> Policy:
    """Scale a threshold from the learning part's counts to the whole log's, or otherwise."""
    threshold = policy.admission.threshold
    if threshold is None:
        return policy
    admission = msgspec.structs.replace(policy.admission, threshold=round(threshold * by))
    return msgspec.structs.replace(policy, admission=admission)
