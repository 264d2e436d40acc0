"""The Social Hash Partitioner as a placement method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.placement import Placement
from bandana_kv.logs.requests import RequestLog, validated_log
from bandana_kv.placement.bisection import Recipe
from bandana_kv.placement.counts import lookups_of_id, positions_of_order
from bandana_kv.placement.hypergraph import build_hypergraph, count_requests
from bandana_kv.placement.parallel import Workers
from bandana_kv.placement.refine import Schedule, refine
from bandana_kv.placement.registry import Job, register
from bandana_kv.placement.tree import arrange_all

__all__ = ["SCHEDULES", "SHP"]

_PLAIN = Recipe(0.5, 8, np.uint64(2**32), True)
SHP = Recipe(0.5, 20, np.uint64(0.8 * 2**32), False)
SCHEDULES = {
    "fast": Schedule(rounds=1, sweeps=4, group_rows=1024, rate=0.5, heat=0.0),
    "balanced": Schedule(rounds=8, sweeps=4, group_rows=2048, rate=0.5, heat=0.5),
    "best": Schedule(rounds=16, sweeps=8, group_rows=4096, rate=0.5, heat=1.0),
}


def _bisected(
    job: Job, log: RequestLog, recipe: Recipe, schedule: Schedule, workers: Workers
) -> NDArray[np.uint32]:
    """Place from scratch: bisect from a random order, then refine.

    Ids that no request looks up together with another come last, the popular first.
    """
    offsets, ids = validated_log(log, job.rows)
    counts = count_requests(offsets, ids, job.rows)
    shuffled = np.random.default_rng(job.seed).permutation(job.rows)
    graph = build_hypergraph(offsets, ids, shuffled[counts.degree[shuffled] > 0], counts)
    order = arrange_all(graph, job.rows_per_block, recipe, job.seed, workers)
    refine(graph, order, job.rows_per_block, schedule, job.seed, workers)
    rest = np.argsort(-lookups_of_id(log, job.rows), kind="stable")
    rest = rest[counts.degree[rest] == 0]
    return positions_of_order(np.concatenate([graph.id_of_vertex[order], rest]))


def _refined(
    job: Job, log: RequestLog, start: Placement, schedule: Schedule, workers: Workers
) -> NDArray[np.uint32]:
    """Refine an earlier placement, so that rows stay where they are unless moving them gains."""
    offsets, ids = validated_log(log, job.rows)
    counts = count_requests(offsets, ids, job.rows)
    graph = build_hypergraph(offsets, ids, start.id_of_position(), counts)
    order = np.arange(job.rows, dtype=np.int32)
    # no temperature: it would move rows for nothing
    refine(graph, order, job.rows_per_block, schedule._replace(heat=0.0), job.seed, workers)
    return positions_of_order(graph.id_of_vertex[order])


@register("shp-plain")
def _shp_plain(job: Job) -> NDArray[np.uint32]:
    """SHP as published with MaxEmbed: the yardstick. Ignores `start` and `quality`."""
    nothing = Schedule(rounds=0, sweeps=0, group_rows=0, rate=0.5, heat=0.0)
    with Workers(job.threads, job.progress) as workers:
        return _bisected(job, job.needed_log("shp-plain"), _PLAIN, nothing, workers)


@register("shp")
def _shp(job: Job) -> NDArray[np.uint32]:
    """Bisection and refinement, or refinement of `start` alone."""
    log = job.needed_log("shp")
    schedule = SCHEDULES[job.quality]
    with Workers(job.threads, job.progress) as workers:
        if job.start is not None:
            return _refined(job, log, job.start, schedule, workers)
        return _bisected(job, log, SHP, schedule, workers)
