"""Measure what serving costs on this machine: a small store is asked in ways that differ."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.assess.performance.callers import Asked, ask
from bandana_kv.assess.performance.costs import Costs
from bandana_kv.assess.performance.fit import Seen, fit_parts, fit_serial, read_us_of
from bandana_kv.cache.policy import Policy
from bandana_kv.device.page_cache import drop_page_cache
from bandana_kv.device.priority import preferred
from bandana_kv.disk import manifest
from bandana_kv.errors import InputError
from bandana_kv.load.loader import load
from bandana_kv.progress import Progress
from bandana_kv.serve.opening import open as open_store
from bandana_kv.serve.store import EmbeddingStore

__all__ = ["calibrate"]

_TABLE = "t"
_TABLE_BYTES, _LEAST_ROWS = 64 << 20, 1 << 9
_HOT_ROWS, _CACHED_SHARE = 1024, 0.05
# More than are answered in the time.
_MOST_REQUESTS, _MOST_MISSED = 10_000, 1000
_LONGEST = 8  # times the mean
_SECONDS, _ROUNDS = 0.08, 5
# Of a call that reaches the device's depth by itself.
_READS_OF_CALL = 128


class _Shape(NamedTuple):
    """Requests of one kind, on average: `hits`, and a share of them `missed` rows in `blocks`.

    Of `pool` blocks, where that is given, in which callers meet; and nothing is cached.
    """

    hits: int
    missed: int = 0
    blocks: int = 0
    share: float = 1.0
    pool: int = 0


_SHAPES = (
    _Shape(2),
    _Shape(32),
    _Shape(256),
    _Shape(2, 1, 1, 0.1),
    _Shape(2, 1, 1, 0.3),
    _Shape(16, 2, 2, 0.5),
    _Shape(2, 1, 1),
    _Shape(32, 4, 4),
    _Shape(8, 32, 4),
    _Shape(8, 32, 16),
    _Shape(128, 64, 32),
    _Shape(0, 8, 8, pool=16),
    _Shape(0, 8, 8, pool=64),
)


def calibrate(
    row_bytes: int,
    *,
    threads: int = 8,
    adapter: str = "memory",
    directory: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Costs:
    """Measure what serving costs here, by asking a small store in some dozen ways.

    Parameters
    ----------
    row_bytes
        Of a row.
    threads
        Callers; costs are measured with one alone and with so many.
    adapter
        The engine. ``"memory"`` needs no device, and leaves out what an engine costs.
    directory
        Where the small store is made, and removed again; needed by engines with files. Its
        device need not be the one that is planned for: times that requests spend waiting
        for it are left out of the costs.
    seed
        Of the requests.
    progress
        Told of the ways that were measured.

    Returns
    -------
    Costs

    Raises
    ------
    InputError
        A number is out of range, or an engine with files has no directory.
    MissingExtraError, DiskFullError, AdapterError
        The engine is not installed, has no room, or fails.

    Notes
    -----
    *Processor time* is what the system charges to the process. *Serial* time cannot be
    asked for: it is what is left of the time of a request with many callers, once processors
    and the wait for the device are taken off. Each of them is fitted by nonnegative least
    squares on the relative error. Cost: some ten seconds; 64 MiB in memory and on the device.
    """
    if row_bytes < 1 or threads < 1:
        raise InputError(f"row_bytes {row_bytes} and threads {threads} are to be at least 1")
    if directory is None and adapter != "memory":
        raise InputError(f"adapter {adapter!r} keeps files: name a directory for them")
    if directory is not None and not directory.is_dir():
        raise InputError(f"{directory}: is not a directory")
    progress = progress or Progress()
    root = Path(tempfile.mkdtemp(prefix=".bandana-calibrate-", dir=directory))
    try:
        small = _Small.made(root, row_bytes, adapter, np.random.default_rng(seed))
        alone: list[list[Asked]] = [[] for _ in _SHAPES]
        crowded: list[list[Asked]] = [[] for _ in _SHAPES]
        progress.start("calibrate", _ROUNDS * len(_SHAPES), "ways to ask")
        with preferred():
            for at, shape in [*enumerate(_SHAPES)] * _ROUNDS:
                alone[at].append(small.ask(shape, 1))
                crowded[at].append(small.ask(shape, threads))
                progress.advance(1)
        progress.finish()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    one, many = _seen(alone), _seen(crowded)
    processors = len(os.sched_getaffinity(0))
    by_one = fit_parts(one.did, one.processor_us)
    return Costs(
        adapter,
        row_bytes,
        small.block_bytes,
        processors,
        threads,
        small.reads_at_once,
        alone=by_one,
        crowded=fit_parts(many.did, many.processor_us),
        serial=fit_serial(
            by_one, many, read_us_of(one), (processors, threads, small.reads_at_once)
        ),
        load_average=os.getloadavg()[0],
    )


class _Small:
    """The store that is asked: rows that DRAM will hold, and rows that it will not."""

    def __init__(self, root: Path, rows: int, rng: np.random.Generator) -> None:
        self._root = root
        self._rng = rng
        entry = manifest.read_current(root).tables[_TABLE]
        self._per_block = entry.rows_per_block
        self._row_bytes = entry.dim
        self._cache_bytes = int(_CACHED_SHARE * rows * entry.dim)
        self._hot = np.arange(min(_HOT_ROWS, rows // 64))
        first = -(-self._hot.size // self._per_block)
        self._blocks = rng.permutation(np.arange(first, rows // self._per_block))
        self._next = 0
        self.reads_at_once = 1
        self.block_bytes = 0

    @staticmethod
    def made(root: Path, row_bytes: int, adapter: str, rng: np.random.Generator) -> _Small:
        rows = max(_LEAST_ROWS, _TABLE_BYTES // row_bytes)
        table = np.zeros((rows, row_bytes), np.uint8)
        policy = Policy("tinylfu")
        load(root, {_TABLE: table}, adapter=adapter, placement="identity", policy=policy)
        return _Small(root, rows, rng)

    def ask(self, shape: _Shape, threads: int) -> Asked:
        """Open the store, cold, and ask."""
        drop_page_cache(self._root)
        with open_store(self._root, 0 if shape.pool else self._cache_bytes) as store:
            self._look_at(store)
            for _ in range(4):  # hot enough to stay
                store.multi_get(_TABLE, self._hot)
            most = _LONGEST * (shape.hits + shape.missed)
            out = np.empty((threads, most, self._row_bytes), np.uint8)
            ask(store, _TABLE, self._requests(shape, 4 * threads), out, _SECONDS)
            count = _MOST_MISSED if shape.missed and shape.share == 1.0 else _MOST_REQUESTS
            return ask(store, _TABLE, self._requests(shape, count), out, _SECONDS)

    def _look_at(self, store: EmbeddingStore) -> None:
        engine = store._tables[_TABLE].stored.adapter
        self.block_bytes = engine.payload_bytes
        if engine.capabilities.queue_depth == "call":
            self.reads_at_once = _READS_OF_CALL

    def _requests(self, shape: _Shape, count: int) -> list[NDArray[np.int64]]:
        # Spread evenly, so that every part of the requests has the share.
        turns = np.floor(np.arange(1, count + 1) * shape.share)
        missing = np.diff(turns, prepend=0) > 0
        hits, blocks = self._sizes(shape.hits, count), self._sizes(shape.blocks, count) * missing
        return [
            np.concatenate([self._rng.choice(self._hot, some), self._cold(shape, many)])
            for some, many in zip(hits.tolist(), blocks.tolist(), strict=True)
        ]

    def _sizes(self, mean: int, count: int) -> NDArray[np.int64]:
        """Return sizes as uneven as those of most logs: short requests wait for long ones."""
        if mean == 0:
            return np.zeros(count, np.int64)
        return np.minimum(self._rng.geometric(1 / mean, count), _LONGEST * mean)

    def _cold(self, shape: _Shape, count: int) -> NDArray[np.int64]:
        """Return ids in `count` blocks that were not asked for in a long time."""
        if count == 0:
            return np.zeros(0, np.int64)
        if shape.pool:
            blocks = self._blocks[self._rng.permutation(shape.pool)[:count]]
        else:
            first, self._next = self._next, self._next + count
            blocks = self._blocks[np.arange(first, self._next) % self._blocks.size]
        each = shape.missed // shape.blocks
        within = self._rng.permuted(np.tile(np.arange(self._per_block), (blocks.size, 1)), axis=1)
        ids: NDArray[np.int64] = (blocks[:, None] * self._per_block + within[:, :each]).ravel()
        return ids


def _seen(asked: list[list[Asked]]) -> Seen:
    """Return what was seen of each kind of request in the median round."""
    middle = np.array([np.median(rounds, axis=0)[1:] for rounds in asked])
    shares = np.array([shape.share if shape.missed else 0.0 for shape in _SHAPES])
    # A row a block where callers meet: what was not read was joined.
    meet = np.array([shape.pool > 0 for shape in _SHAPES])
    joined = np.where(meet, middle[:, 3] - middle[:, 4], 0.0)
    did = np.column_stack([np.ones(len(_SHAPES)), shares, middle[:, 2:], joined])
    return Seen(middle[:, 0], middle[:, 1], did)
