"""Placement by the rows themselves: rows with similar values share a block. No log is needed.

``kmeans``
    One k-means (mini-batch; Sculley, "Web-scale k-means clustering", WWW 2010) over the
    table. Option ``clusters``: how many, by default one for each block but at most 1,024,
    for its cost is rows * clusters * dim.
``kmeans-2stage``
    As the Bandana paper compares: a coarse k-means, then one inside each coarse cluster, so
    that there can be about as many clusters as blocks at a cost of rows * sqrt(blocks) * dim.
    Option ``clusters``: how many coarse ones, by default the square root of the blocks.

Clusters follow each other along a chain from centre to nearest centre, and the rows in that
order are cut into full blocks. Both take ``place(..., values=rows)`` and need the extra
``kmeans``. Rows with similar values need not be looked up together: where there is a log,
``shp`` does better.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.placement import Placement
from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.logs.requests import RequestLog, validated_log
from bandana_kv.placement.counts import lookups_of_id, positions_of_order
from bandana_kv.placement.registry import Job, Values, opened_values, register
from bandana_kv.placement.values import Floats
from bandana_kv.progress import Progress
from bandana_kv.rows.files import RowSource

__all__ = ["arrange_unseen"]

_MOST_CLUSTERS = 1024
_SAMPLE_PER_CLUSTER = 64
_SAMPLE_ROWS = 4096
_SAMPLE_BYTES = 256 << 20
_BATCH_ROWS = 4096
_EPOCHS = 5


@dataclass(frozen=True)
class _Clusters:
    """What one k-means found; `of_row` is int32 (n,), `centres` float32 (clusters, dim)."""

    of_row: NDArray[np.int32]
    centres: NDArray[np.float32]


def _fitted(sample: NDArray[np.float32], clusters: int, seed: int) -> Any:
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(
        clusters, random_state=seed % 2**32, n_init=1, batch_size=_BATCH_ROWS, max_iter=_EPOCHS
    )
    return model.fit(sample)


def _cluster(
    floats: Floats, ids: NDArray[np.int64], clusters: int, seed: int, told: Callable[[int], None]
) -> _Clusters:
    """Fit on a sample of the rows, then find the cluster of each, a chunk at a time."""
    few = max(_SAMPLE_ROWS, _SAMPLE_PER_CLUSTER * clusters)
    few = max(clusters, min(few, _SAMPLE_BYTES // floats.row_bytes))
    sample = ids
    if ids.size > few:
        sample = np.sort(np.random.default_rng(seed).choice(ids, few, replace=False))
    model = _fitted(floats.read(sample), clusters, seed)
    of_row = np.empty(ids.size, np.int32)
    begin = 0
    for part in floats.chunks(ids):
        of_row[begin : begin + len(part)] = model.predict(part)
        begin += len(part)
        told(len(part))
    return _Clusters(of_row, model.cluster_centers_)


def _chain(centres: NDArray[np.float32], near: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the clusters in an order in which neighbours are close, the first close to `near`."""
    chain = np.empty(len(centres), np.int64)
    left = np.arange(len(centres))
    for step in range(len(centres)):
        differences = centres[left] - near
        nearest = int(np.argmin(np.einsum("ij,ij->i", differences, differences)))
        chain[step] = left[nearest]
        near = centres[left[nearest]]
        left = np.delete(left, nearest)
    return chain


def _in_chain(
    found: _Clusters, ids: NDArray[np.int64], near: NDArray[np.float32]
) -> tuple[list[NDArray[np.int64]], NDArray[np.float32]]:
    """Return the ids of each cluster along the chain, and the centre at its end."""
    chain = _chain(found.centres, near)
    by_cluster = ids[np.argsort(found.of_row, kind="stable")]
    ends = np.cumsum(np.bincount(found.of_row, minlength=len(chain)))
    parts = np.split(by_cluster, ends[:-1])
    return [parts[cluster] for cluster in chain], found.centres[chain[-1]]


@dataclass(frozen=True)
class _Task:
    """Which rows to order, and how."""

    source: RowSource
    ids: NDArray[np.int64]  # ascending
    rows_per_block: int
    clusters: int | None
    seed: int
    threads: int
    progress: Progress

    @property
    def blocks(self) -> int:
        return -(-self.ids.size // self.rows_per_block)


def _ordered(task: _Task, two_stages: bool) -> NDArray[np.int64]:
    """Return the ids in an order in which similar rows are close."""
    if task.blocks < 2:
        return task.ids
    step = max(1, task.ids.size // _SAMPLE_ROWS)
    floats = Floats(task.source, task.ids[::step])
    limits: Any = importlib.import_module("threadpoolctl").threadpool_limits
    # BLAS adds up in another order on more threads, which would decide near ties
    with limits({"blas": 1, "openmp": task.threads}):
        return _two_stages(task, floats) if two_stages else _one_stage(task, floats)


def _one_stage(task: _Task, floats: Floats) -> NDArray[np.int64]:
    clusters = min(task.clusters or min(task.blocks, _MOST_CLUSTERS), task.ids.size)
    task.progress.start("cluster rows", task.ids.size, "rows")
    found = _cluster(floats, task.ids, clusters, task.seed, task.progress.advance)
    task.progress.finish()
    parts, _ = _in_chain(found, task.ids, found.centres[0])
    return np.concatenate(parts)


def _two_stages(task: _Task, floats: Floats) -> NDArray[np.int64]:
    clusters = min(task.clusters or min(math.isqrt(task.blocks) + 1, _MOST_CLUSTERS), task.ids.size)
    task.progress.start("cluster rows", 2 * task.ids.size, "rows")
    found = _cluster(floats, task.ids, clusters, task.seed, task.progress.advance)
    coarse, _ = _in_chain(found, task.ids, found.centres[0])
    near = found.centres[0]
    ordered: list[NDArray[np.int64]] = []
    for number, ids in enumerate(coarse):
        fine = min(-(-ids.size // task.rows_per_block), _MOST_CLUSTERS)
        if fine < 2:
            ordered.append(ids)
            task.progress.advance(ids.size)
            continue
        inner = _cluster(floats, ids, fine, task.seed + 1 + number, task.progress.advance)
        parts, near = _in_chain(inner, ids, near)
        ordered += parts
    task.progress.finish()
    return np.concatenate(ordered)


def _task(job: Job, method: str) -> _Task:
    _need(method)
    source = job.needed_values(method)
    clusters = job.options.get("clusters")
    if clusters is not None and (not isinstance(clusters, int) or clusters < 1):
        raise InputError(f"clusters must be a whole number from 1 up, not {clusters!r}")
    ids = np.arange(job.rows, dtype=np.int64)
    return _Task(source, ids, job.rows_per_block, clusters, job.seed, job.threads, job.progress)


def _need(what: str) -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError(f"{what!r} needs scikit-learn: pip install 'bandana-kv[kmeans]'")


@register("kmeans", options=("clusters",), by_values=True)
def _kmeans(job: Job) -> NDArray[np.uint32]:
    return positions_of_order(_ordered(_task(job, "kmeans"), two_stages=False))


@register("kmeans-2stage", options=("clusters",), by_values=True)
def _kmeans_2stage(job: Job) -> NDArray[np.uint32]:
    return positions_of_order(_ordered(_task(job, "kmeans-2stage"), two_stages=True))


def arrange_unseen(
    placement: Placement,
    log: RequestLog,
    values: Values,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Placement:
    """Return a placement in which the rows that `log` never looks up lie by their values.

    A log says nothing about rows that it does not have, so that a method that learns from it
    leaves them as they come. They are ordered by two-stage k-means instead, among the
    positions that they have; all other rows stay where they are.

    Parameters
    ----------
    placement
        As made from `log`, by any method; ``shp`` puts those rows last.
    log
        The access log.
    values
        All rows of the table: an array (rows, dim), the path of a ``.npy`` file, or an open
        source.
    seed, threads
        As for :func:`bandana_kv.placement.place`.
    progress
        Told of the rows as they are clustered, twice each.

    Returns
    -------
    Placement
        Its method is ``<method>+kmeans-2stage``.

    Raises
    ------
    InputError
        The log or the values do not fit the placement.
    MissingExtraError
        scikit-learn is not installed.

    Notes
    -----
    Cost: rows * sqrt(blocks) * dim multiplications, of the unseen rows only; some 24 bytes
    a row.
    """
    _need("arrange_unseen")
    validated_log(log, placement.rows)
    unseen = np.flatnonzero(lookups_of_id(log, placement.rows) == 0)
    with opened_values(values, placement.rows) as source:
        if source is None:
            raise InputError("arrange_unseen looks at the rows themselves: pass values")
        told = progress or Progress()
        task = _Task(source, unseen, placement.rows_per_block, None, seed, threads, told)
        ordered = _ordered(task, two_stages=True)
    position_of_id = np.array(placement.position_of_id)
    position_of_id[ordered] = np.sort(placement.position_of_id[unseen])
    method = f"{placement.method}+kmeans-2stage"
    return replace(placement, position_of_id=position_of_id, method=method)
