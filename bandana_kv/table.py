"""One table as it is served: its cache in DRAM, and the blocks behind it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.arrays import let_go
from bandana_kv.blocks import HEADER_BYTES
from bandana_kv.cache.batch import BLOCK_READS, COUNTERS, missing, new_counters
from bandana_kv.cache.rows import (
    absent,
    admit_rows,
    answer_missed,
    look_up_rows,
    look_up_rows_together,
)
from bandana_kv.cache.state import EVICTION, USED, cache_bytes_of, check, hits_relink, make_state
from bandana_kv.cache.state import positions as cached_positions
from bandana_kv.errors import IdError
from bandana_kv.inflight import Claim, InFlight
from bandana_kv.layout import Layout, cover
from bandana_kv.packed import unpack
from bandana_kv.policy import Policy
from bandana_kv.reader import BlockReader, StoredTable
from bandana_kv.turns import Turns

__all__ = ["ServedTable"]


# Blocks read ahead that a table keeps until they are asked for: 4 MiB.
_MOST_AHEAD = 1024


def _first_of_each(
    payloads: NDArray[np.uint8], read: NDArray[np.int64], blocks: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Return one payload for each of `blocks`, of several that were `read` (both sorted)."""
    first: NDArray[np.uint8] = payloads[np.searchsorted(read, blocks)]
    return first


class ServedTable:
    """Answers lookups of one table; safe to call from many threads.

    Parameters
    ----------
    stored
        Where the blocks lie.
    dtype, dim
        Of the rows.
    index
        The position of each id, packed (:mod:`bandana_kv.packed`); read-only.
    layout
        Where rows and their copies lie, and how hot they are.
    capacity_rows
        Rows that DRAM holds.
    policy
        What the cache evicts and admits.
    coalesce
        Read a block once for a request; False reads one block per distinct missed row.

    Attributes
    ----------
    stored, dtype, dim, capacity_rows, policy
        As given.
    """

    def __init__(
        self,
        stored: StoredTable,
        dtype: np.dtype[Any],
        dim: int,
        index: NDArray[np.uint64],
        layout: Layout,
        capacity_rows: int,
        policy: Policy,
        *,
        coalesce: bool,
    ) -> None:
        self.stored = stored
        self.dtype = dtype
        self.dim = dim
        self.capacity_rows = capacity_rows
        self.policy = policy
        self._coalesce = coalesce
        self._index = index
        self._layout = layout
        self._state = make_state(policy, capacity_rows, layout.heat)
        # Only thresholds read training heat from here on; live heat is a copy.
        let_go(layout.heat)
        self._eviction = int(self._state.rules[EVICTION])
        self._data = np.empty((capacity_rows, stored.row_bytes), np.uint8)
        self._counters = new_counters()
        self._in_flight = InFlight(_MOST_AHEAD)
        # Lookups share the state and the data unless a hit relinks; admission is alone with
        # them. Held for a kernel call, never during a read.
        self._turns = Turns()
        # Not bound to this object: that cycle would keep a retired cache until it is found.
        self._look = ServedTable._alone if hits_relink(policy) else ServedTable._together
        self._lock = threading.Lock()  # guards counters and in-flight reads; taken last
        with _tables_lock:
            _tables.add(self)

    @property
    def cache_bytes(self) -> int:
        """DRAM that the cache takes when full: rows and bookkeeping."""
        stored = self.stored
        return cache_bytes_of(self.policy, self.capacity_rows, stored.row_bytes, stored.rows)

    def multi_get(
        self,
        reader: BlockReader,
        ids: NDArray[np.integer[Any]],
        out: NDArray[np.uint8],
        *,
        warming: bool = False,
    ) -> None:
        """Put the rows of `ids` (n,) into `out`, uint8 (n, row_bytes); checked by the store.

        While `warming` none but these rows enter the cache, and nothing is counted.
        """
        positions = np.empty(ids.size, np.int64)
        slots = np.empty(ids.size, np.int64)
        counters = new_counters()
        missed = self._look(self, ids, positions, slots, out, counters)
        if missed < 0:
            raise self._out_of_range(ids, -1 - missed)
        try:
            if missed:
                self._answer_from_blocks(reader, positions, slots, missed, out, counters, warming)
        finally:
            if not warming:
                with self._lock:
                    self._counters += counters

    def _alone(self, *arrays: NDArray[Any]) -> int:
        """Look up with nobody else in the cache."""
        ids, positions, slots, out, counters = arrays
        self._turns.take()
        try:
            return look_up_rows(
                self._state,
                self._data,
                ids,
                self._index,
                self.stored.rows,
                positions,
                slots,
                out,
                counters,
            )
        finally:
            self._turns.give_back()

    def _together(self, *arrays: NDArray[Any]) -> int:
        """Look up beside other threads that do."""
        ids, positions, slots, out, counters = arrays
        state = self._state
        self._turns.enter()
        try:
            return look_up_rows_together(
                self._eviction,
                state.buckets,
                state.marks,
                state.live,
                state.clock,
                self._data,
                ids,
                self._index,
                self.stored.rows,
                positions,
                slots,
                out,
                counters,
            )
        finally:
            self._turns.leave()

    def _answer_from_blocks(
        self,
        reader: BlockReader,
        positions: NDArray[np.int64],
        slots: NDArray[np.int64],
        missed: int,
        out: NDArray[np.uint8],
        counters: NDArray[np.int64],
        warming: bool,
    ) -> None:
        """Read the blocks of missed rows, answer them, and let rows into the cache."""
        per_block = self.stored.rows_per_block
        asked, ordered = missing(positions, slots, missed)
        places = np.empty(ordered.size, np.int64)
        blocks = cover(ordered, self._layout, places)
        with self._lock:
            claim = self._in_flight.claim(blocks)
        try:
            payloads = self._fetch(reader, claim, blocks, places, counters)
            answer_missed(payloads, blocks, per_block, positions, slots, ordered, places, out)
            self._turns.take()
            try:
                admit_rows(
                    self._state,
                    self._data,
                    self._layout,
                    asked,
                    ordered,
                    places,
                    blocks[:0] if warming else claim.fresh_blocks(),
                    blocks,
                    payloads,
                    counters,
                )
            finally:
                self._turns.give_back()
        finally:
            # After admission: whoever misses these rows from now on finds them either in
            # the cache or in nobody's hands, never read twice at once.
            with self._lock:
                self._in_flight.release(claim)

    def prefetch(
        self, reader: BlockReader, ids: NDArray[np.integer[Any]], ended: Callable[[], None]
    ) -> bool:
        """Begin to read the blocks of those of `ids` that DRAM does not hold.

        Returns whether there was something to read; then `ended` is called when it is over.
        """
        positions = np.empty(ids.size, np.int64)
        state = self._state
        self._turns.enter()
        try:
            rows = self.stored.rows
            count = absent(state.buckets, state.clock, ids, self._index, rows, positions)
        finally:
            self._turns.leave()
        if count < 0:
            raise self._out_of_range(ids, -1 - count)
        ordered = np.unique(positions[:count])
        blocks = cover(ordered, self._layout, np.empty(ordered.size, np.int64))
        with self._lock:
            reading = self._in_flight.claim_ahead(blocks)
        if reading is None:
            return False

        def arrived(payloads: NDArray[np.uint8] | None) -> None:
            reading.payloads = payloads
            reading.done.set()
            with self._lock:
                if payloads is None:
                    self._in_flight.drop_ahead(reading)
                else:
                    self._counters[BLOCK_READS] += reading.blocks.size

        def over(payloads: NDArray[np.uint8] | None) -> None:
            arrived(payloads)
            ended()

        try:
            reader.start(self.stored, reading.blocks, over)
        except BaseException:
            arrived(None)
            raise
        return True

    def _out_of_range(self, ids: NDArray[np.integer[Any]], at: int) -> IdError:
        return IdError(
            f"table {self.stored.name!r}: id {int(ids[at])} is out of range; "
            f"it has rows 0 to {self.stored.rows - 1}"
        )

    def before_fork(self) -> None:
        """Keep the cache still while the process is copied."""
        self._turns.take()
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()
        self._turns.give_back()

    def after_fork_in_child(self) -> None:
        """Go on, without the reads of threads that do not exist here."""
        self._in_flight = InFlight(_MOST_AHEAD)
        self._lock.release()
        self._turns.give_back()

    def _fetch(
        self,
        reader: BlockReader,
        claim: Claim,
        blocks: NDArray[np.int64],
        places: NDArray[np.int64],
        counters: NDArray[np.int64],
    ) -> NDArray[np.uint8]:
        """Read what this request claimed, then take what others read: one payload a block."""
        mine = claim.mine
        reads = 0
        try:
            if mine.blocks.size:
                each = self._to_read(mine.blocks, places)
                read = reader.read(self.stored, each)
                mine.payloads = read if self._coalesce else _first_of_each(read, each, mine.blocks)
                reads = each.size
        finally:
            # Waiters must never hang: after a failure they find no payloads, and read on
            # their own. Own reads come before waiting, so that no two wait for each other.
            mine.done.set()
        payloads = mine.payloads
        if claim.others or payloads is None:
            payloads = np.empty((blocks.size, self.stored.adapter.payload_bytes), np.uint8)
            if mine.payloads is not None:
                payloads[np.searchsorted(blocks, mine.blocks)] = mine.payloads
            for block, reading in claim.others:
                at = np.searchsorted(blocks, block)
                reading.done.wait()
                if reading.payloads is None:
                    payloads[at] = reader.read(self.stored, blocks[at : at + 1])[0]
                    reads += 1
                else:
                    payloads[at] = reading.payloads[np.searchsorted(reading.blocks, block)]
        counters[BLOCK_READS] += reads
        return payloads

    def _to_read(self, blocks: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return `blocks`; or without coalescing, the block of each missed row in them."""
        if self._coalesce:
            return blocks
        each = np.sort(places // self.stored.rows_per_block)
        return each[np.isin(each, blocks)]

    def cached(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return the positions that DRAM holds now, and the live heat of each; 0: not known."""
        self._turns.take()
        try:
            positions = cached_positions(self._state)
            live = self._state.live
            heat = live[positions] if live.size else np.zeros(positions.size, np.uint8)
        finally:
            self._turns.give_back()
        return positions, heat

    def positions_of(self, first: int, count: int) -> NDArray[np.uint32]:
        """Return the positions of `count` ids from `first` on. Cost: without the GIL."""
        return unpack(self._index, self.stored.rows, first, count)

    def is_full(self) -> bool:
        """Return whether one more row would have to drive another one out."""
        return int(self._state.clock[USED]) >= self.capacity_rows

    def stats(self) -> dict[str, int]:
        """Return the counters, with `bytes_read` from the engine, as plain numbers."""
        with self._lock:
            counts = dict(zip(COUNTERS, self._counters.tolist(), strict=True))
        counts["bytes_read"] = counts["block_reads"] * self.stored.adapter.payload_bytes
        return counts

    def check(self, reader: BlockReader) -> None:
        """Assert that the cache is sound and that every cached row equals its block's.

        Raises
        ------
        AssertionError
            Says what is broken.
        """
        self._turns.take()
        try:
            check(self._state, self.stored.rows)
            positions = cached_positions(self._state)
            cached = self._data[: positions.size].copy()
        finally:
            self._turns.give_back()
        per_block, row_bytes = self.stored.rows_per_block, self.stored.row_bytes
        blocks = np.unique(positions // per_block)
        if not blocks.size:
            return
        payloads = reader.read(self.stored, blocks)
        rows = payloads[:, HEADER_BYTES : HEADER_BYTES + per_block * row_bytes]
        rows = rows.reshape(blocks.size, per_block, row_bytes)
        there = rows[np.searchsorted(blocks, positions // per_block), positions % per_block]
        assert np.array_equal(there, cached), "a cached row differs from its block's"


_tables: weakref.WeakSet[ServedTable] = weakref.WeakSet()
_tables_lock = threading.Lock()  # held across a fork, so that one happens at a time
_frozen: list[ServedTable] = []


def _before_fork() -> None:
    _tables_lock.acquire()
    _frozen.extend(_tables)
    for table in _frozen:
        table.before_fork()


def _after_fork_in_parent() -> None:
    for table in _frozen:
        table.after_fork_in_parent()
    _frozen.clear()
    _tables_lock.release()


def _after_fork_in_child() -> None:
    for table in _frozen:
        table.after_fork_in_child()
    _frozen.clear()
    _tables_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
