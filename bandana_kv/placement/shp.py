"""The Social Hash Partitioner as a placement method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.placement.bisection import arrange
from bandana_kv.placement.core import validated_log
from bandana_kv.placement.hypergraph import build_hypergraph
from bandana_kv.placement.orders import lookups_of_id, positions_of_order
from bandana_kv.placement.registry import Job, register


@register("shp")
def _shp(job: Job) -> NDArray[np.uint32]:
    log = job.needed_log("shp")
    offsets, ids = validated_log(log, job.rows)
    begin_with = np.random.default_rng(job.seed).permutation(job.rows)
    graph = build_hypergraph(offsets, ids, begin_with, job.rows)
    sizes = np.bincount(graph.pins, minlength=graph.requests).astype(np.int32)
    placed = np.empty(graph.vertices, np.int32)
    arrange(
        graph.offsets,
        graph.pins,
        sizes,
        graph.id_of_vertex,
        job.rows_per_block,
        0.5,
        True,
        20,
        np.uint64(0.8 * 2**32),
        np.uint64(job.seed),
        placed,
        np.zeros(1, np.uint8),
        np.zeros(1, np.int64),
    )
    lookups = lookups_of_id(log, job.rows)
    rest = np.argsort(-lookups, kind="stable")
    is_placed = np.zeros(job.rows, np.bool_)
    is_placed[placed] = True
    return positions_of_order(np.concatenate([placed, rest[~is_placed[rest]]]))
