"""A part on its own: today's bisection, in one task, over the requests that have two rows in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.placement.distributed.cut import Parts
from bandana_kv.placement.distributed.runner import Runner
from bandana_kv.placement.distributed.shares import Share
from bandana_kv.placement.distributed.shuffle import Bundle, forget, read_bundle, shuffle
from bandana_kv.placement.hypergraph import Hypergraph, build_hypergraph, count_requests
from bandana_kv.placement.parallel import Workers
from bandana_kv.placement.shp import SHP
from bandana_kv.placement.tree import arrange_all
from bandana_kv.progress import Progress

__all__ = ["arrange_parts", "local_graph"]

_NAME = "parts"


class PartTask(NamedTuple):
    """What the task of a part is given."""

    bundle: Bundle
    rows: NDArray[np.int32]  # (n,): of the part
    table_rows: int
    rows_per_block: int
    seed: int
    threads: int


def local_graph(bundle: Bundle, rows: NDArray[np.int32], table_rows: int) -> Hypergraph:
    """Return the hypergraph of a bundle's requests; `rows` are its vertices, in this order."""
    offsets, ids = read_bundle(bundle)
    number_of_row = np.full(table_rows, -1, np.int32)
    number_of_row[rows] = np.arange(rows.size, dtype=np.int32)
    ids = number_of_row[ids]
    del number_of_row
    counts = count_requests(offsets, ids, rows.size)
    # all vertices, so that they keep their numbers
    return build_hypergraph(offsets, ids, np.arange(rows.size), counts)


def arranged(task: PartTask) -> NDArray[np.int32]:
    """Return the rows of a part by position in it."""
    graph = local_graph(task.bundle, task.rows, task.table_rows)
    with Workers(task.threads, Progress()) as workers:
        order = arrange_all(graph, task.rows_per_block, SHP, task.seed, workers)
    return task.rows[order]


def arrange_parts(
    runner: Runner,
    shares: Sequence[Share],
    parts: Parts,
    rows_per_block: int,
    seed: int,
    progress: Progress,
) -> NDArray[np.int32]:
    """Return all rows by position: the parts behind one another, each arranged by itself."""
    count = parts.ends.size - 1
    place_of_row = np.full(shares[0].rows, -1, np.int32)
    place_of_row[parts.rows] = np.repeat(np.arange(count, dtype=np.int32), np.diff(parts.ends))
    written, pins = runner.map_log(
        shuffle,
        shares,
        _NAME,
        runner.broadcast(place_of_row),
        runner.broadcast(np.arange(count, dtype=np.int32)),
    )
    runner.moved.files_bytes += int(written[0])
    largest_first = np.argsort(-pins, kind="stable").tolist()
    tasks = [
        PartTask(
            Bundle(shares[0].directory, _NAME, len(shares), part),
            parts.rows[parts.ends[part] : parts.ends[part + 1]],
            shares[0].rows,
            rows_per_block,
            seed + part,
            runner.threads,
        )
        for part in largest_first
    ]
    rows = np.empty_like(parts.rows)
    progress.start("arrange", count, "parts")
    for number, found in runner.each(arranged, tasks):
        part = largest_first[number]
        rows[parts.ends[part] : parts.ends[part + 1]] = found
        progress.advance(1)
    progress.finish()
    forget(shares[0].directory, _NAME)
    return rows
