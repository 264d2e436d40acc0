"""One table as it is served: its cache in DRAM, and the blocks behind it."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.arrays import let_go
from bandana_kv.blocks import HEADER_BYTES
from bandana_kv.cache.batch import BLOCK_READS, HITS, missing, new_counters
from bandana_kv.cache.rows import (
    absent,
    admit_rows,
    answer_missed,
    look_up_rows,
    look_up_rows_together,
)
from bandana_kv.cache.state import EVICTION, USED, cache_bytes_of, check, hits_relink, make_state
from bandana_kv.cache.state import positions as cached_positions
from bandana_kv.counts import Counts, one_request
from bandana_kv.errors import IdError
from bandana_kv.failsafe import Deadline, FailSafe
from bandana_kv.inflight import Claim, InFlight, Reading
from bandana_kv.layout import Layout, cover
from bandana_kv.overlay import Overlay, blocks_with, positions_of_ids
from bandana_kv.packed import unpack
from bandana_kv.placement.core import Placement
from bandana_kv.policy import Policy
from bandana_kv.reader import BlockRead, BlockReader, Errors, StoredTable
from bandana_kv.turns import Turns

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["ServedTable"]


# Blocks that a flush writes with one commit: 4 MiB.
_FLUSHED_AT_ONCE = 1024

# Blocks read ahead that a table keeps until they are asked for: 4 MiB.
_MOST_AHEAD = 1024

Positions = NDArray[np.int64]


def _first_of_each(
    payloads: NDArray[np.uint8], read: NDArray[np.int64], blocks: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Return one payload for each of `blocks`, of several that were `read` (both sorted)."""
    first: NDArray[np.uint8] = payloads[np.searchsorted(read, blocks)]
    return first


def _share(reading: Reading, read: BlockRead) -> None:
    """Let whoever joins `reading` see what `read` brings."""
    reading.errors, reading.arrived, reading.payloads = read.errors, read.arrived, read.payloads


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
    fail_safe
        What to do about blocks that do not come.
    coalesce
        Read a block once for a request; False reads one block per distinct missed row.

    Attributes
    ----------
    stored, dtype, dim, capacity_rows, policy
        As given.
    counts : Counts
        What it has counted.
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
        fail_safe: FailSafe,
        coalesce: bool,
    ) -> None:
        self.stored = stored
        self.dtype = dtype
        self.dim = dim
        self.capacity_rows = capacity_rows
        self.policy = policy
        self._fail_safe = fail_safe
        self._coalesce = coalesce
        self._index = index
        self._layout = layout
        self._state = make_state(policy, capacity_rows, layout.heat)
        # Only thresholds read training heat from here on; live heat is a copy.
        let_go(layout.heat)
        self._eviction = int(self._state.rules[EVICTION])
        self._data = np.empty((capacity_rows, stored.row_bytes), np.uint8)
        self.counts = Counts(stored.adapter.payload_bytes, fail_safe)
        self._counters = self.counts.counters
        self._in_flight = InFlight(_MOST_AHEAD)
        self._overlay = Overlay(stored.row_bytes)
        # Rises with each flush: what was read before may be older than what is there now.
        self._epoch = 0
        self._heir: ServedTable | None = None
        # Lookups share the state and the data unless a hit relinks; admission is alone with
        # them. Held for a kernel call, never during a read.
        self._turns = Turns()
        # Not bound to this object: that cycle would keep a retired cache until it is found.
        self._look = ServedTable._alone if hits_relink(policy) else ServedTable._together
        self._lock = self.counts.lock  # guards in-flight reads, too; taken last
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
        deadline: Deadline | None = None,
        *,
        warming: bool = False,
    ) -> None:
        """Put the rows of `ids` (n,) into `out`, uint8 (n, row_bytes); checked by the store.

        While `warming` none but these rows enter the cache, and nothing is counted.
        """
        positions = np.empty(ids.size, np.int64)
        slots = np.empty(ids.size, np.int64)
        counters = one_request()
        missed = self._look(self, ids, positions, slots, out, counters)
        if missed < 0:
            raise self._out_of_range(ids, -1 - missed)
        # Only misses are timed: reading the clock twice is over 1 % of a request without one.
        begun = None
        try:
            if missed and self._overlay.count:
                found = self._answer_updated(positions, slots, out)
                counters[HITS] += found
                missed -= found
            if missed:
                begun = time.perf_counter()
                self._answer_from_blocks(
                    reader, ids, positions, slots, missed, out, counters, deadline, warming
                )
        finally:
            if not warming:
                with self._lock:
                    self._counters += counters
                    if begun is not None:
                        self.counts.add_wait(time.perf_counter() - begun)

    def _answer_updated(
        self, positions: NDArray[np.int64], slots: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> int:
        """Answer missed rows that were updated and are not in their blocks yet."""
        self._turns.enter()
        try:
            return self._overlay.answer(positions, slots, out)
        finally:
            self._turns.leave()

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
        ids: NDArray[np.integer[Any]],
        positions: NDArray[np.int64],
        slots: NDArray[np.int64],
        missed: int,
        out: NDArray[np.uint8],
        counters: NDArray[np.int64],
        deadline: Deadline | None,
        warming: bool,
    ) -> None:
        """Read the blocks of missed rows, answer them, and let rows into the cache."""
        asked, ordered = missing(positions, slots, missed)
        places = np.empty(ordered.size, np.int64)
        blocks = cover(ordered, self._layout, places)
        wanted = blocks[: self._fail_safe.allowed(blocks.size)]
        lost = None
        late = None
        with self._lock:
            claim, epoch = self._in_flight.claim(wanted), self._epoch
        try:
            if deadline is None:
                payloads, errors = self._fetch(reader, claim, wanted, places, counters)
            else:
                payloads, errors = self._fetch_until(deadline, reader, claim, wanted)
                late = partial(self._admit_late, claim, epoch, asked, ordered, places, set(errors))
            if errors:
                self._fail_safe.went_wrong(errors)
            elif wanted.size:
                self._fail_safe.went_well()
            fresh = wanted[:0] if warming else claim.fresh_blocks()
            if errors or wanted.size < blocks.size:
                sound = ~np.isin(wanted, list(errors))
                wanted, payloads = wanted[sound], payloads[sound]
                asked, ordered, places, gone = self._within(wanted, asked, ordered, places)
                lost = (slots < 0) & np.isin(positions, gone)
                slots[lost] = 0  # they are answered below
                fresh = np.intersect1d(fresh, wanted)
            if wanted.size:
                answer_missed(
                    payloads,
                    wanted,
                    self.stored.rows_per_block,
                    positions,
                    slots,
                    ordered,
                    places,
                    out,
                )
                self._admit(epoch, asked, ordered, places, fresh, wanted, payloads, counters)
        finally:
            # After admission: whoever misses these rows from now on finds them either in
            # the cache or in nobody's hands, never read twice at once.
            with self._lock:
                self._in_flight.release(claim, late)
        if lost is not None:
            rows = out.view(self.dtype)
            rows[lost] = self._fail_safe.answer(errors, ids[lost], rows)

    def _within(
        self,
        blocks: NDArray[np.int64],
        asked: NDArray[np.int64],
        ordered: NDArray[np.int64],
        places: NDArray[np.int64],
    ) -> tuple[Positions, Positions, Positions, Positions]:
        """Return `asked`, `ordered` and `places` of rows in `blocks`, and the other positions."""
        there = np.isin(places // self.stored.rows_per_block, blocks)
        return (
            asked[np.isin(asked, ordered[there])],
            ordered[there],
            places[there],
            ordered[~there],
        )

    def _admit(
        self,
        epoch: int,
        asked: NDArray[np.int64],
        ordered: NDArray[np.int64],
        places: NDArray[np.int64],
        fresh: NDArray[np.int64],
        blocks: NDArray[np.int64],
        payloads: NDArray[np.uint8],
        counters: NDArray[np.int64],
    ) -> None:
        """Let rows of the blocks that were read into the cache."""
        self._turns.take()
        try:
            if epoch != self._epoch:
                return  # since these were read, updated rows have gone into their blocks
            if self._overlay.count:
                payloads = payloads.copy()  # others may be reading them
                self._overlay.patch(self._layout, blocks, payloads)
            admit_rows(
                self._state,
                self._data,
                self._layout,
                asked,
                ordered,
                places,
                fresh,
                blocks,
                payloads,
                counters,
            )
        finally:
            self._turns.give_back()

    def _admit_late(
        self,
        claim: Claim,
        epoch: int,
        asked: NDArray[np.int64],
        ordered: NDArray[np.int64],
        places: NDArray[np.int64],
        outstanding: set[int],
    ) -> None:
        """Let rows of blocks into the cache that came after their caller had gone.

        Without that a device that is always a little late would never fill the cache.
        """
        mine = claim.mine
        if mine.payloads is None or mine.arrived is None:
            return
        came = mine.arrived & np.isin(mine.blocks, list(outstanding))
        if not came.any():
            return
        blocks = mine.blocks[came]
        counters = np.zeros_like(self._counters)
        asked, ordered, places, _ = self._within(blocks, asked, ordered, places)
        payloads = mine.payloads[came]
        self._admit(epoch, asked, ordered, places, blocks, blocks, payloads, counters)
        with self._lock:
            self._counters += counters

    def prefetch(
        self, reader: BlockReader, ids: NDArray[np.integer[Any]], ended: Callable[[], None]
    ) -> bool:
        """Begin to read the blocks of those of `ids` that DRAM does not hold.

        Returns whether there was something to read; then `ended` is called when it is over.
        """
        if self._fail_safe.resting:
            return False
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

        def arrived(read: BlockRead | None) -> None:
            sound = read is not None and bool(read.arrived.all())
            if read is not None and sound:
                reading.payloads = read.payloads
            reading.done.set()
            with self._lock:
                if sound:
                    self._counters[BLOCK_READS] += reading.blocks.size
                else:
                    self._in_flight.drop_ahead(reading)

        def over(read: BlockRead | None) -> None:
            arrived(read)
            ended()

        try:
            reader.begin(self.stored, reading.blocks, over)
        except BaseException:
            arrived(None)
            raise
        return True

    def placement(self, method: str) -> Placement:
        """Return how the rows lie, as `method` has placed them. Cost: some 12 bytes a row."""
        position_of_id = unpack(self._index, self.stored.rows)
        placement = Placement(position_of_id, self.stored.rows_per_block, method)
        if not self._layout.original_of.size:
            return placement
        copies = placement.id_of_position()[self._layout.original_of]
        return dataclasses.replace(placement, replicas=copies)

    @property
    def heat(self) -> NDArray[np.uint8]:
        """How often the training log looked each position up: uint8 (rows,)."""
        return self._layout.heat

    def cached_part(self, first: int, count: int) -> tuple[Positions, NDArray[np.uint8]]:
        """Return positions and rows, uint8 (n, row_bytes), of `count` slots from `first` on.

        Between two calls rows may change their slots. Empty behind the last slot in use.
        """
        self._turns.enter()
        try:
            last = min(first + count, int(self._state.clock[USED]))
            held = self._state.held[first:last].astype(np.int64)
            return held, self._data[first:last].copy()
        finally:
            self._turns.leave()

    def take_in(self, positions: Positions, rows: NDArray[np.uint8]) -> None:
        """Let rows, uint8 (n, row_bytes), of distinct positions in, without reading blocks."""
        per_block, row_bytes = self.stored.rows_per_block, self.stored.row_bytes
        order = np.argsort(positions)
        ordered = positions[order]
        blocks, numbers = np.unique(ordered // per_block, return_inverse=True)
        # Blocks of which nothing but these rows is looked at.
        payloads = np.empty((blocks.size, HEADER_BYTES + per_block * row_bytes), np.uint8)
        of_rows = payloads[:, HEADER_BYTES:].reshape(blocks.size, per_block, row_bytes)
        of_rows[numbers, ordered % per_block] = rows[order]
        self._admit(
            self._epoch,
            positions,
            ordered,
            ordered.copy(),
            blocks[:0],
            blocks,
            payloads,
            new_counters(),
        )

    def hand_on(self, heir: ServedTable) -> None:
        """Let updates of this table reach the one that serves its rows from now on."""
        self._heir = heir

    def update(self, ids: NDArray[np.uint32], rows: NDArray[np.uint8], sequence: int) -> None:
        """Serve new rows, uint8 (n, row_bytes), from now on; the journal has them already.

        Parameters
        ----------
        ids
            uint32 (n,), distinct and in range.
        sequence
            Of the update; a row keeps the one with the highest.
        """
        positions = positions_of_ids(ids, self._index, self.stored.rows)
        sequences = np.full(ids.size, sequence, np.uint64)
        self._turns.take()
        try:
            self._overlay.put(positions, rows, sequences)
            self._overlay.renew(positions, self._state, self._data)
        finally:
            self._turns.give_back()
        if self._heir is not None:
            self._heir.update(ids, rows, sequence)

    @property
    def overlay_bytes(self) -> int:
        """DRAM that updated rows take which are not in their blocks yet."""
        return self._overlay.held_bytes if self._overlay.count else 0

    def bytes_to_flush(self, upto: int) -> int:
        """Return the bytes of blocks that :meth:`flush` would write."""
        return self._blocks_to_flush(upto).size * self.stored.adapter.payload_bytes

    def _blocks_to_flush(self, upto: int) -> NDArray[np.int64]:
        self._turns.enter()
        try:
            return blocks_with(self._overlay.positions(upto), self._layout)
        finally:
            self._turns.leave()

    def flush(self, reader: BlockReader, adapter: Adapter, upto: int) -> int:
        """Write updated rows into their blocks, each block once; return the bytes handed over.

        Parameters
        ----------
        adapter
            The table's engine, opened to write. From now on blocks are read with it too: one
            opened before may not see what is written.
        upto
            The sequence of the last update to write.
        """
        self.stored = stored = dataclasses.replace(self.stored, adapter=adapter)
        blocks = self._blocks_to_flush(upto)
        written = 0
        for first in range(0, blocks.size, _FLUSHED_AT_ONCE):
            part = blocks[first : first + _FLUSHED_AT_ONCE]
            payloads = reader.read(stored, part)
            self._turns.enter()
            try:
                self._overlay.patch(self._layout, part, payloads)
            finally:
                self._turns.leave()
            stored.seal(payloads, part)
            adapter.put_many(stored.keys(part), payloads)
            written += payloads.nbytes
        if blocks.size:
            self._forget_updates(blocks, upto)
        return written

    def _forget_updates(self, blocks: NDArray[np.int64], upto: int) -> None:
        """Let blocks answer for rows again that are in them now.

        In this order: a lookup that does not find a row here reads its block anew, and one
        that has read it before does not bring it into the cache.
        """
        with self._lock:
            self._in_flight.forget_blocks(blocks)
        self._turns.take()
        try:
            self._epoch += 1
            self._overlay.drop(upto)
        finally:
            self._turns.give_back()

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
        self._fail_safe.after_fork_in_child()
        self._lock.release()
        self._turns.give_back()

    def _fetch(
        self,
        reader: BlockReader,
        claim: Claim,
        blocks: NDArray[np.int64],
        places: NDArray[np.int64],
        counters: NDArray[np.int64],
    ) -> tuple[NDArray[np.uint8], Errors]:
        """Read what this request claimed, then take what others read: one payload a block.

        Also returns what is wrong with blocks whose payloads are not to be used.
        """
        mine = claim.mine
        reads = 0
        try:
            if mine.blocks.size:
                each = self._to_read(mine.blocks, places)
                read, mine.errors = reader.read_sound(self.stored, each)
                if mine.errors:
                    mine.arrived = ~np.isin(mine.blocks, list(mine.errors))
                mine.payloads = read if self._coalesce else _first_of_each(read, each, mine.blocks)
                reads = each.size
        finally:
            # Waiters must never hang: after a failure they find no payloads, and read on
            # their own. Own reads come before waiting, so that no two wait for each other.
            mine.done.set()
        payloads, errors = mine.payloads, mine.errors
        if claim.others or payloads is None:
            errors = dict(errors)
            payloads = self._own_payloads(claim, blocks)
            for block, reading in claim.others:
                at = np.searchsorted(blocks, block)
                reading.done.wait()
                payload = reading.payload(block)
                if payload is None:
                    again, wrong = reader.read_sound(self.stored, blocks[at : at + 1])
                    errors |= wrong
                    payload = again[0]
                    reads += 1
                payloads[at] = payload
        counters[BLOCK_READS] += reads
        return payloads, errors

    def _own_payloads(self, claim: Claim, blocks: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return room for the payloads of `blocks`, with those this request read itself."""
        payloads = np.empty((blocks.size, self.stored.adapter.payload_bytes), np.uint8)
        if claim.mine.payloads is not None:
            payloads[np.searchsorted(blocks, claim.mine.blocks)] = claim.mine.payloads
        return payloads

    def _fetch_until(
        self, deadline: Deadline, reader: BlockReader, claim: Claim, blocks: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], Errors]:
        """Do what `_fetch` does, but for the reading itself, which helping threads do.

        At the deadline what has arrived is taken. The rest goes on arriving, in memory that
        belongs to the read.
        """
        mine = claim.mine
        by_block = dict.fromkeys(mine.blocks.tolist(), mine) | dict(claim.others)
        begun = []
        if mine.blocks.size:
            begun.append(self._begin(reader, mine))
            mine.done.wait(deadline.left())
            arrived = mine.arrived
            if not claim.others and arrived is not None and arrived.all():
                return begun[0].payloads, {}
        for _, reading in claim.others:
            reading.done.wait(deadline.left())
        failed = [
            block
            for block, reading in claim.others
            if reading.done.is_set() and reading.payload(block) is None
        ]
        if failed:
            again = Reading(np.array(failed, np.int64))
            by_block |= dict.fromkeys(failed, again)
            begun.append(self._begin(reader, again))
            again.done.wait(deadline.left())
        for read in begun:
            reader.withdraw(read)
            if read.failure is not None:
                raise read.failure
        return self._taken(deadline, by_block, blocks)

    def _taken(
        self, deadline: Deadline, by_block: dict[int, Reading], blocks: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], Errors]:
        """Take what has arrived by now; the rest is wrong, or late."""
        payloads = np.empty((blocks.size, self.stored.adapter.payload_bytes), np.uint8)
        errors: Errors = {}
        late = []
        for at, block in enumerate(blocks.tolist()):
            reading = by_block[block]
            payload = reading.payload(block)
            if payload is not None:
                payloads[at] = payload
            elif block in reading.errors:
                errors[block] = reading.errors[block]
            else:
                late.append(block)
        return payloads, errors | dict.fromkeys(late, deadline.missed(self.stored.name, len(late)))

    def _begin(self, reader: BlockReader, reading: Reading) -> BlockRead:
        """Let helping threads read; what arrives is seen in `reading` from now on."""
        reading.apart = True
        try:
            read = reader.begin(self.stored, reading.blocks, partial(self._ended, reading))
        except BaseException:
            reading.done.set()
            raise
        _share(reading, read)
        return read

    def _ended(self, reading: Reading, read: BlockRead) -> None:
        """Hear, in a helping thread, that nothing more will arrive."""
        _share(reading, read)
        with self._lock:
            self._counters[BLOCK_READS] += int(read.arrived.sum()) + len(read.errors)
            left = self._in_flight.end(reading)
        if left is None:
            return
        try:
            left()
        finally:
            with self._lock:
                self._in_flight.drop(reading)

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

    @property
    def cached_rows(self) -> int:
        """Rows that DRAM holds now."""
        return int(self._state.clock[USED])

    def is_full(self) -> bool:
        """Return whether one more row would have to drive another one out."""
        return self.cached_rows >= self.capacity_rows

    def stats(self) -> dict[str, int]:
        """Return the counters, with `bytes_read` from the engine, as plain numbers."""
        return self.counts.stats()

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
        if self._overlay.count:
            self._overlay.patch(self._layout, blocks, payloads)
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
