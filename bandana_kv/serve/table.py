"""One table as it is served: its cache in DRAM, and the blocks behind it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.contract import empty_payloads
from bandana_kv.cache.policy import Policy
from bandana_kv.cache.request import BLOCK_READS
from bandana_kv.cache.state import USED, cache_bytes_of, check, hits_relink, make_state
from bandana_kv.cache.state import positions as cached_positions
from bandana_kv.disk.blocks import HEADER_BYTES, NUMBER_BITS
from bandana_kv.disk.placement import Placement
from bandana_kv.errors import IdError
from bandana_kv.kernels.bitpack import unpack
from bandana_kv.kernels.layout import Layout
from bandana_kv.serve import answer, lookup, one_call, pooling, tickets, words
from bandana_kv.serve.ahead import ReadAhead
from bandana_kv.serve.counters import Counts
from bandana_kv.serve.failsafe import Deadline, FailSafe
from bandana_kv.serve.forms import pooled_form, raw_of
from bandana_kv.serve.inflight import InFlight
from bandana_kv.serve.late import LateReads
from bandana_kv.serve.overlay import Overlay, blocks_with, positions_of_ids
from bandana_kv.serve.reader import BlockReader, Errors, StoredTable
from bandana_kv.serve.reads import blocks_to_read, errors_of, read_by, take_blocks
from bandana_kv.serve.slots import admit_rows
from bandana_kv.system.forks import at_fork
from bandana_kv.system.interrupts import without_interrupts
from bandana_kv.system.maps import let_go

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter
    from bandana_kv.codecs import Codec
    from bandana_kv.disk.journal_files import Record
    from bandana_kv.keys import ChangedKeys

__all__ = ["ServedTable"]


# Blocks that a flush writes with one commit: 4 MiB.
_FLUSHED_AT_ONCE = 1024

# Requests of so many ids, and bytes, keep the GIL while DRAM is looked at, some 10 us; from there
# on giving it away pays with two threads and more, and costs little with one.
_FEW_IDS, _FEW_BYTES = 512, 1 << 16
_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)
# Requests of so many ids use the scratch of others again.
_SHARED_IDS = 2048
_LINE_BYTES = 64

Positions = NDArray[np.int64]

# Scratch of requests that are over; popping and appending are single steps.
_scratch: collections.deque[tuple[NDArray[np.int64], int]] = collections.deque(maxlen=64)


def _new_scratch(ids: int) -> tuple[NDArray[np.int64], int]:
    """Return the words of a request, and where they are."""
    scratch = np.empty(words.HEAD + words.WORDS_OF_ID * ids, np.int64)
    scratch[: words.HEAD] = 0
    return scratch, scratch.ctypes.data


def _room_for_rows(count: int, row_bytes: int) -> NDArray[np.uint8]:
    """Return memory (count, row_bytes) from the beginning of a cache line on.

    So a row lies in as few lines as it can: one of 128 bytes else takes three, not two.
    """
    room = np.empty(count * row_bytes + _LINE_BYTES, np.uint8)
    first = -room.ctypes.data % _LINE_BYTES
    return room[first : first + count * row_bytes].reshape(count, row_bytes)


_serials = itertools.count(1)


class ServedTable:
    """Answers lookups of one table; safe to call from many threads.

    Parameters
    ----------
    stored
        Where the blocks lie.
    dtype, dim
        Of the rows as they are answered.
    index
        The position of each id, packed (:mod:`bandana_kv.kernels.bitpack`); read-only.
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
    in_flight
        The blocks that are being read of the table's engine.
    codec
        How rows are stored; None: as they are answered.
    keys
        The ids of keys, where callers ask by those.

    Attributes
    ----------
    stored, dtype, dim, codec, keys, capacity_rows, policy
        As given.
    counts : Counts
        What it has counted.
    row_bytes : int
    pooled : PooledForm or None
        How its rows are pooled; None: they are no floats.
    words, flights : int64 arrays
        The table, and the blocks in flight of its engine, as compiled code knows them.
    address : int
        Where the words are.
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
        in_flight: InFlight,
        codec: Codec | None = None,
        keys: ChangedKeys | None = None,
    ) -> None:
        self.stored = stored
        self.dtype = dtype
        self.codec = codec
        self.keys = keys
        self.dim = dim
        self.capacity_rows = capacity_rows
        self.policy = policy
        self._fail_safe = fail_safe
        self.breaks = fail_safe.breaks
        self._coalesce = coalesce
        self._index = index
        self._layout = layout
        self._state = make_state(policy, capacity_rows, layout.heat)
        # Only thresholds read training heat from here on; live heat is a copy.
        let_go(layout.heat)
        self._data = _room_for_rows(capacity_rows, stored.row_bytes)
        self.counts = Counts(stored.adapter.payload_bytes, fail_safe)
        self._in_flight = in_flight
        self.row_bytes = stored.row_bytes
        self.pooled = pooled_form(dtype, codec)
        self.flights = in_flight.words
        self._serial = next(_serials) % (1 << 23) << NUMBER_BITS
        self._forking = np.zeros(1, np.int64)
        self._overlay = Overlay(stored.row_bytes)
        self._heir: ServedTable | None = None
        self._table = self._as_words()
        self.words = self._table.words
        # What every request needs, at hand.
        self.address: int = self.words.ctypes.data
        self._numbers = self.words.data  # quicker to look at
        self._few_ids = min(_FEW_IDS, _FEW_BYTES // max(1, stored.row_bytes))
        self._ask_few = one_call.ask_few_of(_INT64)
        self._ask_few_halves = one_call.ask_few_of(_INT32)
        self._ahead = ReadAhead(self._table, in_flight, self._serial)
        self._late = LateReads(self._table, in_flight)
        with _tables_lock:
            _tables.add(self)

    def _as_words(self) -> words.TableWords:
        stored, state, layout = self.stored, self._state, self._layout
        arrays: dict[str, NDArray[Any]] = {
            name: getattr(state, name) for name in state._fields if name not in ("ghost", "shadow")
        }
        for kind, memory in (("ghost", state.ghost), ("shadow", state.shadow)):
            names = ("buckets", "held", "links", "half", "ends", "free", "counts")
            arrays |= {
                f"{kind}_{name}": getattr(memory, part)
                for name, part in zip(names, memory._fields, strict=True)
            }
        arrays |= {
            "data": self._data,
            "index": self._index,
            "heat": layout.heat,
            "original_of": layout.original_of,
            "by_position": layout.by_position,
            "counters": self.counts.counters,
            "waits": self.counts.waits,
            "upper_ns": self.counts.upper_ns,
            "updates_buckets": self._overlay.buckets,
            "updates_data": self._overlay.data,
        }
        if stored.block_map is not None:
            arrays["block_map"] = stored.block_map
        numbers = {
            words.ROWS: stored.rows,
            words.ROW_BYTES: stored.row_bytes,
            words.PER_BLOCK: stored.rows_per_block,
            words.COPIES: stored.copies,
            words.SPACE: stored.space,
            words.SERIAL: self._serial,
            words.FLIGHTS: self.flights.ctypes.data,
            words.FIRST_KEY: int(np.uint64(stored.first_key).view(np.int64)),
            words.RELINKS: hits_relink(self.policy),
            words.COALESCE: self._coalesce,
        }
        return words.TableWords(numbers, arrays)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep lookups out of the cache."""
        held = np.zeros(1, np.int64)
        try:
            words.lock_table(self.words, held)
            yield
        finally:
            words.unlock_table(self.words, held)

    def _show_updates(self) -> None:
        """Let lookups see what the overlay holds now; alone."""
        # In this order: whatever comes in between, no slot lies behind the end of the rows.
        self._table.set_array("updates_data", self._overlay.data)
        self._table.set_array("updates_buckets", self._overlay.buckets)
        self.words[words.UPDATED] = self._overlay.count > 0

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
        bags: int = 0,
    ) -> None:
        """Put the rows of `ids` (n,) into `out`, uint8 (n, row_bytes); checked by the store.

        While `warming` none but these rows enter the cache, and nothing is counted. With the
        address of words of `bags` (:mod:`bandana_kv.serve.pooling`) rows are pooled instead,
        and `out` is room for those that must be kept until then.
        """
        few = ids.size <= self._few_ids and not warming
        shared = ids.size <= _SHARED_IDS and not warming
        try:
            room = _scratch.pop() if shared else _new_scratch(ids.size)
        except IndexError:  # all are in use; to ask before would not tell what is so by then
            room = _new_scratch(_SHARED_IDS)
        scratch, at = room
        # In this order: what a flush writes in between, the engine may not know of.
        epoch = self._numbers[words.EPOCH]
        # Held until the end, since so long its words are good.
        engine = None if deadline is not None or self.breaks else self.stored.adapter.standing()
        engine_at = 0 if engine is None else engine.address
        try:
            if bags:
                scratch[words.BAGS] = bags
            if few:
                ask = self._ask_few_halves if ids.dtype is _INT32 else self._ask_few
                missed = ask(self.address, at, ids, out, engine_at, epoch)
            else:
                scratch[words.WARMING] = warming
                missed = words.BUSY
            if missed == words.BUSY:
                missed = one_call.ask_many(self.address, at, ids, out, engine_at, epoch)
            if missed > 0:
                self._answer_missed(reader, ids, missed, scratch, out, deadline)
        except BaseException:
            answer.abandon(self.flights, scratch)
            raise
        if missed < 0:
            raise self.out_of_range(ids, -1 - missed)
        if bags:
            scratch[words.BAGS] = 0
        if shared:
            _scratch.append(room)

    def ask(
        self, ids: NDArray[np.integer[Any]], out: NDArray[np.uint8]
    ) -> tuple[int, NDArray[np.int64], int] | None:
        """Answer what DRAM holds, without waiting; return None where that is all.

        Else how many missed, and the request's words, with where they are: a ticket, for
        :mod:`bandana_kv.serve.tickets`, and the scratch that :meth:`finish` goes on with.
        """
        room = np.empty(tickets.TICKET + words.scratch_words(ids.size), np.int64)
        room[: tickets.TICKET + words.HEAD] = 0
        at: int = room.ctypes.data
        scratch_at = at + 8 * tickets.TICKET
        missed = words.BUSY
        if ids.size <= self._few_ids:
            ask = self._ask_few_halves if ids.dtype is _INT32 else self._ask_few
            missed = ask(self.address, scratch_at, ids, out, 0, 0)
        if missed == words.BUSY:
            missed = one_call.ask_many(self.address, scratch_at, ids, out, 0, 0)
        if missed < 0:
            raise self.out_of_range(ids, -1 - missed)
        return (missed, room, at) if missed else None

    def finish(
        self,
        reader: BlockReader,
        ids: NDArray[np.integer[Any]],
        missed: int,
        scratch: NDArray[np.int64],
        out: NDArray[np.uint8],
        deadline: Deadline | None,
    ) -> None:
        """Answer what :meth:`ask` did not."""
        try:
            self._answer_missed(reader, ids, missed, scratch, out, deadline)
        except BaseException:
            answer.abandon(self.flights, scratch)
            raise

    def _answer_missed(
        self,
        reader: BlockReader,
        ids: NDArray[np.integer[Any]],
        missed: int,
        scratch: NDArray[np.int64],
        out: NDArray[np.uint8],
        deadline: Deadline | None,
    ) -> None:
        """Read the blocks of missed rows, answer them, and let rows into the cache.

        After an error the caller abandons the scratch.
        """
        begun, allowed = int(scratch[words.STATE]), missed
        state: int | None = None if begun == words.NOT_CLAIMED else begun
        if state == words.NO_MEMORY:
            raise MemoryError(f"table {self.stored.name!r}: no memory to read {missed} rows")
        if state is None:
            allowed = self._fail_safe.allowed(missed)
        if state is None and allowed and deadline is None:
            state = read_by(
                self.stored.adapter,
                missed,
                lambda engine: answer.read_missed(
                    self.words, self.flights, scratch, out, engine, allowed
                ),
            )
        if state == 0:
            if allowed:
                self._fail_safe.went_well()
            return
        with without_interrupts():
            if state is None:
                lookup.claim(self.words, self.flights, scratch, allowed)
                state = words.AGAIN
            self.answer_from_blocks(reader, ids, allowed, scratch, out, deadline, state, {})

    def answer_from_blocks(
        self,
        reader: BlockReader,
        ids: NDArray[np.integer[Any]],
        allowed: int,
        scratch: NDArray[np.int64],
        out: NDArray[np.uint8],
        deadline: Deadline | None,
        state: int,
        errors: Errors,
    ) -> None:
        """Go on with a request whose blocks are claimed, from what its last step returned.

        AGAIN: nothing was read. `errors` is what is known of bad blocks, and gets more.
        """
        memory: list[NDArray[np.uint8]] = []  # beside that of blocks in flight
        while state < 0:
            if state == words.WAIT:
                self._wait(self.flights, scratch, deadline)
            state = self._read_and_answer(reader, scratch, out, deadline, errors, memory)
        if state:
            self._answer_lost(scratch, ids, out, allowed, errors, deadline)
        elif allowed:
            self._fail_safe.went_well()

    def _read_and_answer(
        self,
        reader: BlockReader,
        scratch: NDArray[np.int64],
        out: NDArray[np.uint8],
        deadline: Deadline | None,
        errors: Errors,
        memory: list[NDArray[np.uint8]],
    ) -> int:
        """Do the reads of a request and answer it; what is wrong with blocks goes into `errors`.

        Into `memory` goes what must be kept until it is answered.
        """
        reads = int(scratch[words.READS])
        if reads:
            memory += self.place(scratch)
        if reads and deadline is not None:
            self._late.read(self.stored, reader, scratch, deadline, errors, list(memory))
        elif reads:
            state = read_by(
                self.stored.adapter,
                reads,
                lambda engine: answer.read_and_answer(
                    self.words, self.flights, scratch, out, engine
                ),
            )
            if state is not None and state != words.UNABLE:
                return state
            payloads, wrong = reader.read_sound(self.stored, blocks_to_read(scratch))
            take_blocks(scratch, payloads, wrong, errors)
        return answer.answer_many(self.words, self.flights, scratch, out)

    def place(self, scratch: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Give those of its reads memory that have none; to be kept until the request is over."""
        unplaced, size = int(scratch[words.UNPLACED]), self._in_flight.block_bytes
        if not unplaced:
            return []
        memory = empty_payloads(unplaced, size)
        lookup.place_reads(scratch, memory.ctypes.data, size)
        return [memory]

    def _wait(
        self, in_flight: NDArray[np.int64], scratch: NDArray[np.int64], deadline: Deadline | None
    ) -> None:
        """Wait for blocks that others read; those that are late are given up."""
        while not answer.wait_for_others(
            in_flight, scratch, -1 if deadline is None else int(deadline.left() * 1e9)
        ):
            if deadline is not None and not deadline.left():
                answer.give_up_waiting(in_flight, scratch)
                return

    def _answer_lost(
        self,
        scratch: NDArray[np.int64],
        ids: NDArray[np.integer[Any]],
        out: NDArray[np.uint8],
        allowed: int,
        errors: Errors,
        deadline: Deadline | None,
    ) -> None:
        """Answer rows that no block brought from the fallback, or raise what went wrong."""
        count = int(scratch[words.IDS])
        errors = errors_of(self.stored, scratch, errors, deadline)
        if errors:
            self._fail_safe.went_wrong(errors)
        elif allowed:
            self._fail_safe.went_well()
        first = words.HEAD + words.SLOTS * count
        lost = np.flatnonzero(scratch[first : first + count] == words.LOST)
        kind = np.empty((0, self.dim), self.dtype)
        out[lost] = raw_of(self, ids[lost], self._fail_safe.answer(errors, ids[lost], kind))
        if scratch[words.BAGS]:
            pooling.pool_rest(scratch, count, out)

    def prefetch(
        self, reader: BlockReader, ids: NDArray[np.integer[Any]], ended: Callable[[], None]
    ) -> bool:
        """Begin to read the blocks of those of `ids` that DRAM does not hold.

        Returns whether there was something to read; then `ended` is called when it is over.
        """
        if self._fail_safe.resting:
            return False
        positions = np.empty(ids.size, np.int64)
        count = answer.absent(self.words, ids, positions)
        if count < 0:
            raise self.out_of_range(ids, -1 - count)

        def arrived(blocks: int) -> None:
            self.counts.counters[BLOCK_READS] += blocks

        return self._ahead.read(lambda: self.stored, reader, positions[:count], arrived, ended)

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
        with self._alone():
            last = min(first + count, int(self._state.clock[USED]))
            held = self._state.held[first:last].astype(np.int64)
            return held, self._data[first:last].copy()

    def take_in(self, positions: Positions, rows: NDArray[np.uint8]) -> None:
        """Let rows, uint8 (n, row_bytes), of distinct positions in, without reading blocks."""
        order = np.argsort(positions)
        with self._alone():
            admit_rows(self.words, positions, positions[order], rows[order])
            if self._overlay.count:
                self._overlay.renew(positions, self._state, self._data)

    def hand_on(self, heir: ServedTable) -> None:
        """Let updates of this table reach the one that serves its rows from now on."""
        self._heir = heir

    @property
    def rows(self) -> int:
        """Rows that callers can ask for: as many as there are keys, where they ask by those."""
        return self.stored.rows if self.keys is None else len(self.keys)

    @property
    def newest(self) -> ServedTable:
        """Who serves these rows from now on: this, or its heir."""
        return self if self._heir is None else self._heir.newest

    def take(self, record: Record) -> None:
        """Serve what an update has changed, from now on; the journal has it already.

        Of a row's updates the one with the last sequence is kept. Its ids are distinct, and in
        range; where they are of keys, those beyond this table are left to its heir.
        """
        ids, rows, words, texts = record.ids, record.rows, record.words, record.texts
        if words is not None:
            inside = ids < self.stored.rows
            if not inside.all():
                ids, rows, words = ids[inside], rows[inside], words[inside]
                texts = [texts[i] for i in np.flatnonzero(inside).tolist()] if texts else ()
        if not record.deletes and ids.size:
            positions = positions_of_ids(ids, self._index, self.stored.rows)
            sequences = np.full(ids.size, record.sequence, np.uint64)
            with self._alone():
                self._overlay.put(positions, rows, sequences)
                self._overlay.renew(positions, self._state, self._data)
                self._show_updates()
        if words is not None and self.keys is not None:
            # After the rows: who finds an id finds its row.
            given = np.full(ids.size, -1, np.int64) if record.deletes else ids.astype(np.int64)
            self.keys.apply(words, given, record.sequence, texts)
        if self._heir is not None:
            self._heir.take(record)

    @property
    def overlay_bytes(self) -> int:
        """DRAM that updated rows take which are not in their blocks yet."""
        return self._overlay.held_bytes if self._overlay.count else 0

    def bytes_to_flush(self, upto: int) -> int:
        """Return the bytes of blocks that :meth:`flush` would write."""
        return self._blocks_to_flush(upto).size * self.stored.adapter.payload_bytes

    def _blocks_to_flush(self, upto: int) -> NDArray[np.int64]:
        with self._alone():
            return blocks_with(self._overlay.positions(upto), self._layout)

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
            with self._alone():
                self._overlay.patch(self._layout, part, payloads)
            stored.seal(payloads, part)
            adapter.put_many(stored.keys(part), payloads)
            written += payloads.nbytes
        if blocks.size:
            self._forget_updates(blocks, upto)
        return written

    def _forget_updates(self, blocks: NDArray[np.int64], upto: int) -> None:
        """Let blocks answer for rows again that are in them now.

        In this order. From the first step on, lookups that began before and have not claimed their
        blocks look anew where those lie (:func:`answer.read_missed`); from the second on nobody
        joins reads that began before; from the third on rows are not found here any more, and
        whoever may have joined such reads does not bring them into the cache.
        """
        with self._alone():
            self.words[words.EPOCH] += 1
        self._in_flight.forget(self._ahead.flights_of(blocks))
        with self._alone():
            self.words[words.EPOCH] += 1
            self._overlay.drop(upto)
            self._show_updates()

    def out_of_range(self, ids: NDArray[np.integer[Any]], at: int) -> IdError:
        """Return the error for the id at `at`."""
        return IdError(
            f"table {self.stored.name!r}: id {int(ids[at])} is out of range; "
            f"it has rows 0 to {self.stored.rows - 1}"
        )

    def before_fork(self) -> None:
        """Keep the cache still while the process is copied."""
        if self.keys is not None:
            self.keys.changing.acquire()
        words.lock_table(self.words, self._forking)
        self._ahead.lock.acquire()
        self._late.lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._late.lock.release()
        self._ahead.lock.release()
        words.unlock_table(self.words, self._forking)
        if self.keys is not None:
            self.keys.changing.release()

    def after_fork_in_child(self) -> None:
        """Go on, without the reads of threads that do not exist here."""
        self._ahead.after_fork_in_child()
        self._fail_safe.after_fork_in_child()
        self._late.lock.release()
        self._ahead.lock.release()
        # Not by ending it: threads that do not exist here may have counted themselves as waiting.
        self.words[words.LOCK] = self._forking[0] = 0
        if self.keys is not None:
            self.keys.changing.release()

    def cached(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return the positions that DRAM holds now, and the live heat of each; 0: not known."""
        with self._alone():
            positions = cached_positions(self._state)
            live = self._state.live
            heat = live[positions] if live.size else np.zeros(positions.size, np.uint8)
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
        with self._alone():
            check(self._state, self.stored.rows)
            positions = cached_positions(self._state)
            cached = self._data[: positions.size].copy()
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


at_fork(
    "tables",
    before=_before_fork,
    in_parent=_after_fork_in_parent,
    in_child=_after_fork_in_child,
)
