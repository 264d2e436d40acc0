"""Placement of a log that no machine holds: cut by all workers, arranged and refined by tasks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.placement import Placement
from bandana_kv.errors import InputError
from bandana_kv.logs.options import LogOptions
from bandana_kv.placement.counts import positions_of_order
from bandana_kv.placement.distributed.across import refine_across
from bandana_kv.placement.distributed.cut import cut_rows
from bandana_kv.placement.distributed.fine import arrange_parts
from bandana_kv.placement.distributed.log import (
    WORKER_MEMORY_BYTES,
    LogInFiles,
    count_rows,
    open_log,
)
from bandana_kv.placement.distributed.runner import InProcess, Runner
from bandana_kv.placement.registry import QUALITIES
from bandana_kv.placement.shp import SCHEDULES
from bandana_kv.progress import Progress

__all__ = ["Figures", "place", "place_log"]


@dataclass
class Figures:
    """What a placement took.

    Attributes
    ----------
    parts
        Into how many the rows were cut.
    levels
        Of the cut.
    seconds
        By stage.
    """

    parts: int = 0
    levels: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def place(
    files: Sequence[str | os.PathLike[str]],
    rows: int | None = None,
    rows_per_block: int = 32,
    *,
    runner: Runner | None = None,
    parts: int | None = None,
    worker_memory_bytes: int = WORKER_MEMORY_BYTES,
    work_dir: str | os.PathLike[str] | None = None,
    quality: str = "balanced",
    train: float = 1.0,
    seed: int = 0,
    options: LogOptions | None = None,
    progress: Progress | None = None,
) -> Placement:
    """Decide which rows of a table share a block, from a log in files that no machine holds.

    Parameters
    ----------
    files
        Of the log, each with some of its requests, or directories of such files: npz, Parquet,
        recordings, or what else :meth:`bandana_kv.AccessLog.read` reads.
    rows
        Rows of the table; by default the largest id in the files and 1.
    rows_per_block
        Rows that fill a block, at most 32767.
    runner
        Who does the work: by default this process, one share of the log at a time;
        :class:`~bandana_kv.placement.distributed.OnRay` spreads it. Does not change the result.
    parts
        Into how many parts the rows are cut, a power of two, before each is arranged by itself;
        by default as many as make each fit a worker.
    worker_memory_bytes
        What a worker may take beside the 200 to 300 MiB of a process that has loaded what it
        needs. Sizes of shares, parts and tasks follow from it.
    work_dir
        An existing directory that every worker reaches under the same name, with some 16 bytes
        for each lookup; by default where temporary files go. What is written there is removed.
    quality
        As of :func:`bandana_kv.placement.place`.
    train
        Share of the requests to learn from, drawn by `seed`.
    seed
        Decides everything random.
    options
        How files are read.
    progress
        Receives progress; by default nobody does.

    Returns
    -------
    Placement
        As of method ``shp``: the same bytes for the same files and arguments, whatever the
        number of workers, and whichever failed meanwhile.

    Raises
    ------
    InputError
        A file is malformed, and named; a size is out of range; a worker has too little memory.

    Notes
    -----
    Cost: at most 20 passes over the log for each level of the cut, 5 to 10 ns a lookup; then what
    ``shp`` costs, and for each of its rounds the log's requests go through the work directory
    once. Of this process some 40 bytes a row, and what a worker may take for a sample of the log.
    """
    runner = runner or InProcess()
    with open_log(
        files,
        runner,
        rows,
        worker_memory_bytes=worker_memory_bytes,
        work_dir=work_dir,
        train=train,
        seed=seed,
        options=options,
    ) as log:
        return place_log(
            log,
            rows_per_block,
            runner=runner,
            parts=parts,
            quality=quality,
            seed=seed,
            progress=progress,
        )


def place_log(
    log: LogInFiles,
    rows_per_block: int,
    *,
    runner: Runner,
    parts: int | None = None,
    quality: str = "balanced",
    seed: int = 0,
    progress: Progress | None = None,
    figures: Figures | None = None,
) -> Placement:
    """Do what :func:`place` does, with a log that is open; `figures` get what it took."""
    if quality not in QUALITIES:
        raise InputError(f"unknown quality {quality!r}; choose one of {', '.join(QUALITIES)}")
    if not 1 <= rows_per_block < 2**15:
        raise InputError(f"rows_per_block must be between 1 and 32767, not {rows_per_block}")
    if parts is not None and (parts < 1 or parts & (parts - 1)):
        raise InputError(f"parts must be a power of two, not {parts}")
    took = figures or Figures()
    told = progress or Progress()
    with _timed(took, "count"):
        lookups, degree, learned = count_rows(runner, log)
    order = _order(runner, log, degree, rows_per_block, parts, quality, seed, told, took)
    rest = np.argsort(-lookups, kind="stable")
    rest = rest[degree[rest] == 0]
    return Placement(
        positions_of_order(np.concatenate([order, rest])),
        rows_per_block,
        "shp",
        learned_from=learned / log.lookups,
    )


def _order(
    runner: Runner,
    log: LogInFiles,
    degree: NDArray[np.int32],
    rows_per_block: int,
    parts: int | None,
    quality: str,
    seed: int,
    progress: Progress,
    took: Figures,
) -> NDArray[np.int32]:
    """Return the rows that share a request with another, by position."""
    shuffled = np.random.default_rng(seed).permutation(log.rows).astype(np.int32)
    rows = shuffled[degree[shuffled] > 0]
    if not rows.size:
        return rows

    def fits(level: int, sizes: NDArray[np.int64], pins: NDArray[np.int64]) -> NDArray[np.bool_]:
        if parts is not None:
            return np.full(sizes.size, level >= parts.bit_length() - 1)
        both = zip(sizes.tolist(), pins.tolist(), strict=True)
        return np.array([log.room.holds(size, count) for size, count in both])

    schedule = SCHEDULES[quality]
    with _timed(took, "cut"):
        longest = int(degree.max())
        cut = cut_rows(runner, log.shares, rows, rows_per_block, longest, fits, seed, progress)
        took.parts, took.levels = cut.ends.size - 1, len(cut.cuts)
    with _timed(took, "arrange"):
        rows = arrange_parts(runner, log.shares, cut, rows_per_block, seed, progress)
    with _timed(took, "refine"):
        return refine_across(
            runner,
            log.shares,
            rows,
            degree,
            rows_per_block,
            schedule,
            seed,
            log.room,
            progress,
        )


@contextlib.contextmanager
def _timed(took: Figures, stage: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    took.seconds[stage] = round(time.perf_counter() - begun, 3)
