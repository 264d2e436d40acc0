"""Rows that are likely to be asked for, read into the caches of a version before it serves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.serve.reader import BlockReader
from bandana_kv.serve.table import ServedTable
from bandana_kv.system.interrupts import safe_point

__all__ = ["carry_over", "warm_up"]

# Requests are served meanwhile: a batch is small, and after each one the device, the GIL and
# the cores are theirs for as long as it took, times this.
_IDS_AT_ONCE = 64
_REST = 2.0
_CHUNK_ROWS = 1 << 16
_CARRIED_AT_ONCE = 512


def warm_up(
    new: Mapping[str, ServedTable],
    old: Mapping[str, ServedTable],
    reader: BlockReader,
    asked: Mapping[str, NDArray[np.integer[Any]]],
    seconds: float,
    stopped: Event,
) -> None:
    """Fill the caches of `new` tables with the rows of `asked`, or those in the `old` caches.

    Tables take turns, the hottest blocks of each first, until its cache is full, nothing is
    left, `seconds` are over, or `stopped`. Tables that are `new` and `old` are warm.

    Raises
    ------
    BandanaError
        As a lookup of the same rows.
    """
    if not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise InputError(f"warm_seconds {seconds!r} is not a number of seconds from 0 up")
    until = time.monotonic() + seconds
    if not seconds:
        return
    batches = {
        name: _batches(table, old.get(name), asked.get(name))
        for name, table in new.items()
        if name in asked or old.get(name) is not table
    }
    while batches:
        for name in list(batches):
            ids = next(batches[name], None)
            if ids is None or new[name].is_full():
                del batches[name]
                continue
            begun = time.monotonic()
            if begun > until:
                return
            rows = np.empty((ids.size, new[name].stored.row_bytes), np.uint8)
            new[name].multi_get(reader, ids.astype(np.int64, copy=False), rows, warming=True)
            if stopped.wait(_REST * (time.monotonic() - begun)):
                return


def carry_over(
    new: ServedTable, old: ServedTable, moved: NDArray[np.uint32], stopped: Event
) -> None:
    """Fill a table's cache with what the cache of its former placement holds.

    From memory: no block is read. Ends when the new cache is full.

    Parameters
    ----------
    new, old
        Of the same rows; updates since are brought to the new one afterwards.
    moved
        uint32 (rows,): the new position of what lies at each old one.
    stopped
        Set to end early.
    """
    first = 0
    while not (new.is_full() or stopped.is_set()):
        safe_point()
        positions, rows = old.cached_part(first, _CARRIED_AT_ONCE)
        if not positions.size:
            return
        new.take_in(moved[positions].astype(np.int64), rows)
        first += positions.size


def _batches(
    table: ServedTable, old: ServedTable | None, asked: NDArray[np.integer[Any]] | None
) -> Iterator[NDArray[np.integer[Any]]]:
    """Cut the ids to warm, in the order of their blocks, into pieces."""
    if asked is not None:
        ids, heat = asked, np.zeros(asked.size, np.uint8)
    elif old is not None:
        ids, heat = _cached_ids(old)
        known = ids < table.stored.rows
        ids, heat = ids[known], heat[known]
        hottest = np.argsort(heat, kind="stable")[-table.capacity_rows :]
        ids, heat = (ids[hottest], heat[hottest]) if table.capacity_rows else (ids[:0], heat[:0])
    else:
        return
    ids = _by_block(table, ids, heat)
    for first in range(0, ids.size, _IDS_AT_ONCE):
        yield ids[first : first + _IDS_AT_ONCE]


def _cached_ids(table: ServedTable) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the ids of the rows that a cache holds, and the live heat of each.

    The cache knows positions only, so that all ids are looked through, a piece at a time:
    each lets other threads have the GIL.
    """
    positions, heat = table.cached()
    heat_at = np.zeros(table.stored.rows, np.uint16)
    heat_at[positions] = heat.astype(np.uint16) + 1  # 0: not cached
    ids, heats = [], []
    for first in range(0, table.stored.rows, _CHUNK_ROWS):
        found = np.take(heat_at, _positions(table, first))
        cached = np.flatnonzero(found)
        ids.append(cached + first)
        heats.append((found[cached] - 1).astype(np.uint8))
    return np.concatenate(ids), np.concatenate(heats)


def _positions(table: ServedTable, first: int) -> NDArray[np.uint32]:
    """Return the positions of a piece of the ids, from `first` on."""
    return table.positions_of(first, min(_CHUNK_ROWS, table.stored.rows - first))


def _by_block(
    table: ServedTable, ids: NDArray[np.integer[Any]], heat: NDArray[np.uint8]
) -> NDArray[np.integer[Any]]:
    """Sort ids so that those of a block follow each other, blocks with most heat first."""
    if not ids.size or ids.min() < 0 or ids.max() >= table.stored.rows:
        return ids  # the lookup says which id is wrong
    order = np.argsort(ids)
    ids, heat = ids[order], heat[order]
    positions = np.empty(ids.size, np.int64)
    for first in range(0, table.stored.rows, _CHUNK_ROWS):
        low, high = np.searchsorted(ids, (first, first + _CHUNK_ROWS))
        if low < high:
            positions[low:high] = _positions(table, first)[ids[low:high] - first]
    _, numbers = np.unique(positions // table.stored.rows_per_block, return_inverse=True)
    of_block = np.bincount(numbers, heat + 1.0)
    return ids[np.lexsort((numbers, -of_block[numbers]))]
