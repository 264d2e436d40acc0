"""Placement of a log that no machine holds: cut by all workers, arranged and refined by tasks."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.placement import Placement
from bandana_kv.errors import InputError
from bandana_kv.logs.options import LogOptions
from bandana_kv.placement.counts import positions_of_order
from bandana_kv.placement.distributed.across import refine_across
from bandana_kv.placement.distributed.cut import cut_rows
from bandana_kv.placement.distributed.fine import arrange_parts
from bandana_kv.placement.distributed.kernels import add_degrees
from bandana_kv.placement.distributed.memory import Room, room_of
from bandana_kv.placement.distributed.runner import InProcess, Moved, Runner, Sums
from bandana_kv.placement.distributed.shares import Share, files_of_log, share_of_file, shares_of
from bandana_kv.placement.registry import QUALITIES
from bandana_kv.placement.shp import SCHEDULES
from bandana_kv.progress import Progress

__all__ = ["Figures", "place", "work_directory"]


@dataclass
class Figures:
    """What a placement took; filled by :func:`place`.

    Attributes
    ----------
    requests, lookups, rows
        Of the log and of the table.
    shares, parts
        Into how many the log and the rows were cut.
    levels
        Of the cut.
    seconds
        By stage.
    moved
        Bytes, by the way they went.
    worker_memory_bytes
        What each worker was given.
    peak_bytes
        The most memory that each worker's process had, resident.
    lookups_of_id
        int64 (rows,): how often each row is looked up by all of the log: its heat.
    """

    requests: int = 0
    lookups: int = 0
    rows: int = 0
    shares: int = 0
    parts: int = 0
    levels: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    moved: Moved = field(default_factory=Moved)
    worker_memory_bytes: int = 0
    peak_bytes: list[int] = field(default_factory=list)
    lookups_of_id: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


@contextlib.contextmanager
def work_directory(path: str | os.PathLike[str] | None) -> Iterator[str]:
    """Make a directory of our own inside `path`, and remove it with all that is in it."""
    try:
        made = tempfile.mkdtemp(prefix="bandana-kv-place-", dir=path)
    except OSError as error:
        raise InputError(f"{path}: no work directory can be made there ({error})") from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def survey(files: Sequence[Share], count: int, worker_memory_bytes: int) -> Sums:
    """Return requests, lookups and rows of each file: int64 (count, 3), zeros for others."""
    found = np.zeros((count, 3), np.int64)
    for file in files:
        found[file.number] = share_of_file(file, worker_memory_bytes)
    return (found,)


def row_counts(shares: Sequence[Share]) -> Sums:
    """Return each row's lookups, and its requests among those to learn from, of two rows or more.

    The first is of all requests. int64 (rows,), int32 (rows,), and int64 (1,): lookups that are
    learned from.
    """
    rows = shares[0].rows
    lookups, degree = np.zeros(rows, np.int64), np.zeros(rows, np.int32)
    learned = np.zeros(1, np.int64)
    for share in shares:
        log = share.logged()
        learned += int(np.diff(log.offsets)[share.learned(log.requests)].sum())
        requests = share.requests()
        add_degrees(log.ids, requests.ids, lookups, degree)
    return lookups, degree, learned


def place(
    files: Sequence[str | os.PathLike[str]],
    rows: int | None = None,
    rows_per_block: int = 32,
    *,
    runner: Runner | None = None,
    parts: int | None = None,
    worker_memory_bytes: int = 4 << 30,
    work_dir: str | os.PathLike[str] | None = None,
    quality: str = "balanced",
    train: float = 1.0,
    seed: int = 0,
    options: LogOptions | None = None,
    progress: Progress | None = None,
    figures: Figures | None = None,
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
        needs. Sizes of parts and tasks follow from it.
    work_dir
        An existing directory that every worker reaches under the same name, with some 10 bytes
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
    figures
        Filled with what it took.

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
    if quality not in QUALITIES:
        raise InputError(f"unknown quality {quality!r}; choose one of {', '.join(QUALITIES)}")
    if not 1 <= rows_per_block < 2**15:
        raise InputError(f"rows_per_block must be between 1 and 32767, not {rows_per_block}")
    if rows is not None and not 1 <= rows < 2**31:
        raise InputError(f"rows must be between 1 and 2147483647, not {rows}")
    if parts is not None and (parts < 1 or parts & (parts - 1)):
        raise InputError(f"parts must be a power of two, not {parts}")
    if not 0.0 < train <= 1.0:
        raise InputError(f"train is a share of the requests above 0, up to 1, not {train}")
    runner = runner or InProcess()
    took = figures or Figures()
    took.moved, took.worker_memory_bytes = runner.moved, worker_memory_bytes
    with work_directory(work_dir) as directory:
        named = files_of_log(files, directory, options)
        with _timed(took, "read"):
            (found,) = runner.map_log(survey, named, len(named), worker_memory_bytes)
            took.requests, took.lookups = int(found[:, 0].sum()), int(found[:, 1].sum())
            took.rows = int(found[:, 2].max())
            if rows is not None and rows < took.rows:
                wrong = named[int(np.argmax(found[:, 2] > rows))]
                raise InputError(
                    f"{wrong.source}: looks up id {int(found[wrong.number, 2]) - 1}, but the table "
                    f"has only {rows} rows"
                )
            took.rows = rows or took.rows
            room = room_of(worker_memory_bytes, took.rows, took.lookups)
            shares = shares_of(named, found, took.rows, room.lookups, train, seed)
            took.shares = len(shares)
            took.lookups_of_id, degree, learned = runner.map_log(row_counts, shares)
        order = _order(
            runner, shares, degree, rows_per_block, parts, room, quality, seed, progress, took
        )
    took.peak_bytes = runner.peak_bytes()
    rest = np.argsort(-took.lookups_of_id, kind="stable")
    rest = rest[degree[rest] == 0]
    return Placement(
        positions_of_order(np.concatenate([order, rest])),
        rows_per_block,
        "shp",
        learned_from=int(learned[0]) / max(1, took.lookups),
    )


def _order(
    runner: Runner,
    shares: Sequence[Share],
    degree: NDArray[np.int32],
    rows_per_block: int,
    parts: int | None,
    room: Room,
    quality: str,
    seed: int,
    progress: Progress | None,
    took: Figures,
) -> NDArray[np.int32]:
    """Return the rows that share a request with another, by position."""
    told = progress or Progress()
    shuffled = np.random.default_rng(seed).permutation(degree.size).astype(np.int32)
    rows = shuffled[degree[shuffled] > 0]
    if not rows.size:
        return rows

    def fits(
        level: int, sizes: NDArray[np.int64], pins: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        if parts is not None:
            return np.full(sizes.size, level >= parts.bit_length() - 1)
        both = zip(sizes.tolist(), pins.tolist(), strict=True)
        return np.array([room.holds(size, count) for size, count in both])

    with _timed(took, "cut"):
        cut = cut_rows(
            runner, shares, rows, rows_per_block, int(degree.max()), fits, seed, told
        )
        took.parts, took.levels = cut.ends.size - 1, len(cut.cuts)
    schedule = SCHEDULES[quality]
    with _timed(took, "arrange"):
        within = schedule._replace(rounds=0)
        rows = arrange_parts(runner, shares, cut, rows_per_block, within, seed, told)
    with _timed(took, "refine"):
        return refine_across(
            runner, shares, rows, degree, rows_per_block, schedule, seed, room.pins, told
        )


@contextlib.contextmanager
def _timed(took: Figures, stage: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    took.seconds[stage] = round(time.perf_counter() - begun, 3)
