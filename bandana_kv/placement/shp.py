"""The Social Hash Partitioner as a placement method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.placement.bisection import Recipe
from bandana_kv.placement.core import validated_log
from bandana_kv.placement.counting import lookups_of_id, positions_of_order
from bandana_kv.placement.hypergraph import Hypergraph, build_hypergraph
from bandana_kv.placement.parallel import Workers
from bandana_kv.placement.refine import Schedule, refine
from bandana_kv.placement.registry import Job, register
from bandana_kv.placement.tree import arrange_all

_PLAIN = Recipe(0.5, 8, np.uint64(2**32), True)
_SHP = Recipe(0.5, 20, np.uint64(0.8 * 2**32), False)


def _graph(job: Job, method: str) -> Hypergraph:
    """Return the log's hypergraph, its vertices in the order to begin with."""
    offsets, ids = validated_log(job.needed_log(method), job.rows)
    if job.start is not None:
        return build_hypergraph(offsets, ids, job.start.id_of_position(), job.rows)
    shuffled = np.random.default_rng(job.seed).permutation(job.rows)
    return build_hypergraph(offsets, ids, shuffled, job.rows)


def _positions(job: Job, method: str, placed: NDArray[np.int32]) -> NDArray[np.uint32]:
    """Place the ids that the hypergraph does not have after those it has, the popular first."""
    rest = np.argsort(-lookups_of_id(job.needed_log(method), job.rows), kind="stable")
    is_placed = np.zeros(job.rows, np.bool_)
    is_placed[placed] = True
    return positions_of_order(np.concatenate([placed, rest[~is_placed[rest]]]))


@register("shp-plain")
def _shp_plain(job: Job) -> NDArray[np.uint32]:
    graph = _graph(job, "shp-plain")
    with Workers(job.threads, job.progress) as workers:
        order = arrange_all(graph, job.rows_per_block, _PLAIN, job.seed, workers)
    return _positions(job, "shp-plain", graph.id_of_vertex[order])


_SCHEDULES = {
    "fast": Schedule(rounds=1, sweeps=4, group_rows=1024, rate=0.5, heat=0.0),
    "balanced": Schedule(rounds=8, sweeps=4, group_rows=2048, rate=0.5, heat=0.5),
    "best": Schedule(rounds=16, sweeps=8, group_rows=4096, rate=0.5, heat=1.0),
}


@register("shp")
def _shp(job: Job) -> NDArray[np.uint32]:
    graph = _graph(job, "shp")
    with Workers(job.threads, job.progress) as workers:
        order = arrange_all(graph, job.rows_per_block, _SHP, job.seed, workers)
        schedule = _SCHEDULES[job.quality]
        refine(graph, order, job.rows_per_block, schedule, job.seed, workers)
    return _positions(job, "shp", graph.id_of_vertex[order])
