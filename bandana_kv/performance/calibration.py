"""Measure what serving costs on this machine: a small store is asked in ways that differ."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.performance.costs import Costs, Parts
from bandana_kv.performance.curve import DeviceCurve
from bandana_kv.performance.model import Demand, Machine
from bandana_kv.policy import Policy
from bandana_kv.progress import Progress

if TYPE_CHECKING:
    from bandana_kv.performance.callers import Asked
    from bandana_kv.store import EmbeddingStore

__all__ = ["calibrate"]

_TABLE = "t"
_TABLE_BYTES, _LEAST_ROWS = 64 << 20, 1 << 12
_HOT_ROWS, _CACHED_SHARE = 1024, 0.05
_MOST_REQUESTS = 4000
_SECONDS, _ROUNDS = 0.12, 3
# Of a call that reaches the device's depth by itself.
_READS_OF_CALL = 128
# A request with more reads says more of the device than of the GIL.
_FEW_READS = 4.0
_STEPS = 40


class _Shape(NamedTuple):
    """Requests of one kind: every one has `hits`; a share of them `missed` rows in `blocks`."""

    hits: int
    missed: int = 0
    blocks: int = 0
    share: float = 1.0


_SINGLE = _Shape(2, 1, 1)
_SHAPES = (
    _Shape(2),
    _Shape(32),
    _Shape(256),
    _Shape(2, 1, 1, 0.1),
    _Shape(2, 1, 1, 0.3),
    _Shape(16, 2, 2, 0.5),
    _SINGLE,
    _Shape(32, 4, 4),
    _Shape(4, 16, 4),
    _Shape(32, 16, 16),
    _Shape(128, 64, 64),
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
    """Measure what serving costs here, by asking a small store in some ten ways.

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
    progress = progress or Progress()
    root = Path(tempfile.mkdtemp(prefix=".bandana-calibrate-", dir=directory))
    try:
        small = _Small.made(root, row_bytes, adapter, np.random.default_rng(seed))
        alone: list[list[Asked]] = [[] for _ in _SHAPES]
        crowded: list[list[Asked]] = [[] for _ in _SHAPES]
        progress.start("calibrate", _ROUNDS * len(_SHAPES), "ways to ask")
        for _ in range(_ROUNDS):
            for at, shape in enumerate(_SHAPES):
                alone[at].append(small.ask(shape, 1))
                crowded[at].append(small.ask(shape, threads))
                progress.advance(1)
        progress.finish()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return small.costs(adapter, threads, _medians(alone), _medians(crowded))


class _Small:
    """The store that is asked: rows that DRAM will hold, and rows that it will not."""

    def __init__(self, root: Path, rows: int, rng: np.random.Generator) -> None:
        from bandana_kv import manifest

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
        from bandana_kv.loader import load

        rows = max(_LEAST_ROWS, _TABLE_BYTES // row_bytes)
        table = np.zeros((rows, row_bytes), np.uint8)
        policy = Policy("tinylfu")
        load(root, {_TABLE: table}, adapter=adapter, placement="identity", policy=policy)
        return _Small(root, rows, rng)

    def ask(self, shape: _Shape, threads: int) -> Asked:
        """Open the store, cold, and ask."""
        from bandana_kv.performance.callers import ask
        from bandana_kv.store import open as open_store
        from bandana_kv.tools.cold import drop_page_cache

        drop_page_cache(self._root)
        with open_store(self._root, self._cache_bytes) as store:
            self._look_at(store)
            for _ in range(4):  # hot enough to stay
                store.multi_get(_TABLE, self._hot)
            out = np.empty((threads, shape.hits + shape.missed, self._row_bytes), np.uint8)
            ask(store, _TABLE, self._requests(shape, 4 * threads), out, _SECONDS)
            return ask(store, _TABLE, self._requests(shape, _MOST_REQUESTS), out, _SECONDS)

    def _look_at(self, store: EmbeddingStore) -> None:
        engine = store._tables[_TABLE].stored.adapter
        self.block_bytes = engine.payload_bytes
        if engine.capabilities.queue_depth == "call":
            self.reads_at_once = _READS_OF_CALL

    def costs(
        self,
        adapter: str,
        threads: int,
        alone: NDArray[np.float64],
        crowded: NDArray[np.float64],
    ) -> Costs:
        """Return what explains the times that were seen."""
        processors = len(os.sched_getaffinity(0))
        even = np.ones(len(_SHAPES))
        one, many = _features(alone), _features(crowded)
        costs = Costs(
            adapter,
            self._row_bytes,
            self.block_bytes,
            processors,
            threads,
            self.reads_at_once,
            alone=_fit(one, alone[:, 1], even),
            crowded=_fit(many, crowded[:, 1], even),
            serial=Parts(),
            load_average=os.getloadavg()[0],
        )
        # A single read, alone: what it takes beyond the processor is the device's.
        single = alone[_SHAPES.index(_SINGLE)]
        read_us = max(1e-3, float(single[0] - single[1])) / max(1.0, float(single[4]))
        depths = np.array([1.0, 1e9])
        device = DeviceCurve(depths, 1e6 * depths / read_us, self.reads_at_once)
        machine = Machine(processors, device, threads)
        serial, weights = np.zeros(len(_SHAPES)), np.zeros(len(_SHAPES))
        for at, (seen, parts) in enumerate(zip(crowded, many, strict=True)):
            alone_us = float(one[at] @ np.array(msgspec.structs.astuple(costs.alone)))
            demand = Demand(
                *(np.array([x]) for x in (alone_us, max(alone_us, seen[1]), 0.0, parts[1], seen[4]))
            )
            serial[at] = _serial_us(machine, demand, float(seen[0]))
            weights[at] = serial[at] / seen[0] * (seen[4] <= _FEW_READS)
        return msgspec.structs.replace(costs, serial=_fit(many, serial, weights))

    def _requests(self, shape: _Shape, count: int) -> list[NDArray[np.int64]]:
        hot = self._rng.choice(self._hot, (count, shape.hits))
        # Spread evenly, so that every part of the requests has the share.
        turns = np.floor(np.arange(1, count + 1) * shape.share)
        missing = np.diff(turns, prepend=0) > 0
        return [
            np.concatenate([ids, self._cold(shape)]) if misses and shape.blocks else ids
            for ids, misses in zip(hot, missing, strict=True)
        ]

    def _cold(self, shape: _Shape) -> NDArray[np.int64]:
        """Return ids in blocks that were not asked for in a long time."""
        first, self._next = self._next, self._next + shape.blocks
        blocks = self._blocks[np.arange(first, self._next) % self._blocks.size]
        each = shape.missed // shape.blocks
        within = self._rng.permuted(np.tile(np.arange(self._per_block), (shape.blocks, 1)), axis=1)
        ids: NDArray[np.int64] = (blocks[:, None] * self._per_block + within[:, :each]).ravel()
        return ids


def _medians(asked: list[list[Asked]]) -> NDArray[np.float64]:
    """Return of each way to ask the median round: wall and processor time, and what it did."""
    return np.array([np.median(rounds, axis=0)[1:] for rounds in asked])


def _features(asked: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what requests did, in the order of :class:`Parts`."""
    shares = [shape.share if shape.missed else 0.0 for shape in _SHAPES]
    return np.column_stack([np.ones(len(asked)), shares, asked[:, 2:]])


def _serial_us(machine: Machine, demand: Demand, wall_us: float) -> float:
    """Return the serial time with which requests take `wall_us` each, as they were seen to."""
    rate, low, high = 1e6 / wall_us, 0.0, wall_us
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried = replace(demand, serial=np.array([middle]))
        sharing = machine.sharing(tried, rate)
        fits = sharing is not None and (
            machine.mean_us(tried, sharing) <= machine.callers * wall_us
        )
        low, high = (middle, high) if fits else (low, middle)
    return low


def _fit(
    features: NDArray[np.float64], us: NDArray[np.float64], weights: NDArray[np.float64]
) -> Parts:
    """Return the parts, none negative, that explain `us` with the least relative error."""
    scale = weights / np.maximum(us, 1e-9)
    matrix, wanted = features * scale[:, None], us * scale
    columns = range(features.shape[1])
    best, least = np.zeros(features.shape[1]), np.inf
    # The best one is the unbounded best of some of the parts; there are few enough to try all.
    for count in range(1, len(columns) + 1):
        for chosen in combinations(columns, count):
            found = np.linalg.lstsq(matrix[:, chosen], wanted, rcond=None)[0]
            error = float(np.sum((matrix[:, chosen] @ found - wanted) ** 2))
            if found.min() >= 0.0 and error < least:
                least, best = error, np.zeros(features.shape[1])
                best[list(chosen)] = found
    return Parts(*best.tolist())
