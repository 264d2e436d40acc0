"""A log in files, opened: what is in it, and where its shares are worked on."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.placement import Placement
from bandana_kv.errors import InputError
from bandana_kv.kernels.views import readable
from bandana_kv.logs.options import LogOptions
from bandana_kv.placement.distributed.kernels import add_degrees, count_blocks
from bandana_kv.placement.distributed.memory import Room, room_of
from bandana_kv.placement.distributed.runner import Runner, Sums
from bandana_kv.placement.distributed.shares import Share, files_of_log, share_of_file, shares_of

__all__ = ["WORKER_MEMORY_BYTES", "LogInFiles", "count_rows", "fanout", "open_log"]

WORKER_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class LogInFiles:
    """A log that no process reads as a whole.

    Attributes
    ----------
    shares
        Of its requests, for workers.
    requests, lookups
        How many there are.
    rows
        Of the table.
    room
        What fits into a worker.
    directory
        The work directory.
    """

    shares: tuple[Share, ...]
    requests: int
    lookups: int
    rows: int
    room: Room
    directory: str


@contextlib.contextmanager
def open_log(
    files: Sequence[str | os.PathLike[str]],
    runner: Runner,
    rows: int | None = None,
    *,
    worker_memory_bytes: int = WORKER_MEMORY_BYTES,
    work_dir: str | os.PathLike[str] | None = None,
    train: float = 1.0,
    seed: int = 0,
    options: LogOptions | None = None,
) -> Iterator[LogInFiles]:
    """Look through the files of a log; what is written into the work directory goes at the end.

    Parameters
    ----------
    files, rows, runner, worker_memory_bytes, work_dir, train, seed, options
        As :func:`bandana_kv.placement.distributed.place` takes them.

    Raises
    ------
    InputError
        A file is malformed, and named, or looks up a row that the table has not; a worker has too
        little memory.

    Notes
    -----
    Cost: each file is read once; those that cannot be mapped are written into the work directory
    so that they can, 4 bytes a lookup and 8 a request.
    """
    if rows is not None and not 1 <= rows < 2**31:
        raise InputError(f"rows must be between 1 and 2147483647, not {rows}")
    if not 0.0 < train <= 1.0:
        raise InputError(f"train is a share of the requests above 0, up to 1, not {train}")
    with _directory(work_dir) as directory:
        named = files_of_log(files, directory, options)
        (found,) = runner.map_log(_survey, named, len(named), worker_memory_bytes)
        most = int(found[:, 2].max())
        if rows is not None and rows < most:
            wrong = named[int(np.argmax(found[:, 2] > rows))]
            raise InputError(
                f"{wrong.source}: looks up id {int(found[wrong.number, 2]) - 1}, but the table has "
                f"{rows} rows"
            )
        lookups = int(found[:, 1].sum())
        if not lookups:
            raise InputError(f"{named[0].source}: holds no requests that look anything up")
        room = room_of(worker_memory_bytes, rows or most, lookups)
        shares = shares_of(named, found, rows or most, room.lookups, train, seed)
        yield LogInFiles(shares, int(found[:, 0].sum()), lookups, rows or most, room, directory)


@contextlib.contextmanager
def _directory(path: str | os.PathLike[str] | None) -> Iterator[str]:
    """Make a directory of our own inside `path`, and remove it with all that is in it."""
    try:
        made = tempfile.mkdtemp(prefix="bandana-kv-place-", dir=path)
    except OSError as error:
        raise InputError(f"{path}: no work directory can be made there ({error})") from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _survey(files: Sequence[Share], count: int, worker_memory_bytes: int) -> Sums:
    """Return requests, lookups and rows of each file: int64 (count, 3), zeros for others."""
    found = np.zeros((count, 3), np.int64)
    for file in files:
        found[file.number] = share_of_file(file, worker_memory_bytes)
    return (found,)


def count_rows(runner: Runner, log: LogInFiles) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """Return how often each row is looked up, and what is learned from.

    Returns
    -------
    tuple
        int64 (rows,): lookups of each row, which is its heat, over all requests. int32 (rows,): the
        requests of two rows or more, of those to learn from, that each row is in. And the lookups
        that are learned from.

    Notes
    -----
    Cost: one pass over the log; 12 bytes a row from each worker.
    """
    lookups, degree, learned = runner.map_log(_row_counts, log.shares)
    return lookups, degree, int(learned[0])


def _row_counts(shares: Sequence[Share]) -> Sums:
    rows = shares[0].rows
    lookups, degree = np.zeros(rows, np.int64), np.zeros(rows, np.int32)
    learned = np.zeros(1, np.int64)
    for share in shares:
        logged = share.logged()
        learned += int(np.diff(logged.offsets)[share.learned(logged.requests)].sum())
        add_degrees(logged.ids, share.requests().ids, lookups, degree)
    return lookups, degree, learned


def fanout(
    runner: Runner, log: LogInFiles, placement: Placement
) -> tuple[float | None, float | None]:
    """Return the mean number of blocks that a request touches: of those learned from, and others.

    None where there are none.

    Raises
    ------
    InputError
        The placement is of another table.
    """
    if placement.rows != log.rows:
        raise InputError(f"the placement has {placement.rows} rows, the log's table {log.rows}")
    positions = runner.broadcast(np.asarray(placement.position_of_id))
    (found,) = runner.map_log(_blocks, log.shares, positions, placement.rows_per_block)
    learned, others = (
        float(blocks) / float(requests) if requests else None for requests, blocks in found
    )
    return learned, others


def _blocks(shares: Sequence[Share], position_of_id: NDArray[Any], rows_per_block: int) -> Sums:
    found = np.zeros((2, 2), np.int64)
    positions = readable(position_of_id)
    for share in shares:
        logged = share.logged()
        held_out = ~share.learned(logged.requests)
        found += count_blocks(logged.offsets, logged.ids, held_out, positions, rows_per_block)
    return (found,)
