"""Advice for the tables of a store directory, which is only read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bandana_kv.adapters.contract import PAGE_BYTES
from bandana_kv.cache.state import capacity_for
from bandana_kv.care.drift.advice import advise
from bandana_kv.care.drift.data import Advice, Served
from bandana_kv.disk import manifest
from bandana_kv.disk.arrays import map_array
from bandana_kv.disk.budget import write_budget
from bandana_kv.disk.retention import hold_current
from bandana_kv.errors import InputError
from bandana_kv.kernels.bitpack import unpack, words_for
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.logs.recording.playback import read_recording
from bandana_kv.placement import Placement
from bandana_kv.progress import Progress

__all__ = ["advise_store", "served_table"]

Recorded = AccessLog | str | os.PathLike[str]
"""Requests of a table: a log, a file that holds one, or what ``store.record`` wrote."""


def served_table(
    path: str | os.PathLike[str], table: str, cache_bytes: int | None = None
) -> Served:
    """Return how a store's current version serves a table.

    Parameters
    ----------
    path
        The store's directory; a process may serve from it.
    table
        The name.
    cache_bytes
        DRAM that the table has, where it was not planned, or `open` was told otherwise.

    Raises
    ------
    StoreNotFoundError, FormatError
        There is no store, or it is damaged.
    InputError
        There is no such table, or nothing says how much DRAM it has.

    Notes
    -----
    Cost: reads the table's positions and heat; no block.
    """
    root = Path(path)
    with contextlib.ExitStack() as stack:
        # A re-placement meanwhile would take the files of the version before away.
        return _served(root, hold_current(root, stack), table, cache_bytes)
    raise AssertionError  # an ExitStack does not swallow errors


def _served(root: Path, current: manifest.Manifest, table: str, cache_bytes: int | None) -> Served:
    if table not in current.tables:
        raise InputError(
            f"{root}: no table {table!r}; there are {', '.join(map(repr, current.tables))}"
        )
    entry = current.tables[table]
    plan, row_bytes = entry.plan, entry.row_bytes
    if cache_bytes is None:
        if plan.choice is None:
            raise InputError(
                f"{root}: table {table!r} was loaded without a DRAM budget; say how much it is "
                f"served with (--cache-bytes {table}=64MiB, or cache_bytes=)"
            )
        cache_bytes = plan.choice.cache_bytes
    policy = plan.policy_for(cache_bytes, row_bytes, entry.rows)

    def mapped(kind: str, dtype: Any, items: int, below: int | None = None) -> Any:
        if not items:
            return np.zeros(0, dtype)
        file = manifest.table_file(root, entry.files, entry.space, kind)
        return map_array(file, kind, dtype, items, below)

    words = mapped("positions", np.uint64, words_for(entry.rows))
    placement = Placement(unpack(words, entry.rows), entry.rows_per_block, entry.placement)
    if entry.copies:
        original_of = mapped("original-of", np.uint32, entry.copies, entry.rows)
        placement = Placement(
            placement.position_of_id,
            entry.rows_per_block,
            entry.placement,
            placement.id_of_position()[original_of],
        )
    return Served(
        placement,
        capacity_for(policy, cache_bytes, row_bytes, entry.rows),
        policy,
        plan,
        mapped("heat", np.uint8, entry.rows),
        entry.pages * PAGE_BYTES,
    )


def advise_store(
    path: str | os.PathLike[str],
    recordings: Mapping[str, Recorded],
    *,
    cache_bytes: Mapping[str, int] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Advice]:
    """Advise on tables of a store; what it reads it leaves as it is.

    Parameters
    ----------
    path
        The store's directory.
    recordings
        For each table requests in order of time: an AccessLog, a file of one, or the directory
        that ``store.record`` writes.
    cache_bytes
        By table: as for :func:`served_table`.
    seed, threads, progress
        As for :func:`advise`.

    Returns
    -------
    dict of str to Advice
        By table, held against what the store counted live where the recording knows it, and
        with the store's write budget.

    Raises
    ------
    BandanaError
        As :func:`served_table`, :func:`advise`, and whatever reads the recordings.
    """
    budget = write_budget(Path(path))
    advices = {}
    for table, recorded in recordings.items():
        served = served_table(path, table, (cache_bytes or {}).get(table))
        log, live = _requests_of(table, recorded)
        advices[table] = advise(
            log,
            served,
            table=table,
            live_reads_per_lookup=live,
            write_budget_bytes=budget,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    return advices


def _requests_of(table: str, recorded: Recorded) -> tuple[AccessLog, float | None]:
    """Return the recorded requests, and the block reads a lookup that were counted live."""
    if isinstance(recorded, AccessLog):
        return recorded, None
    path = Path(recorded)
    if not path.is_dir():
        return AccessLog.read(path), None
    recording = read_recording(path)
    live = recording.live(table)
    return recording.log(table), live.reads_per_lookup if live.lookups else None
