"""Missed blocks -> sorted slices at the device's queue depth -> verified payloads."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters import block_keys
from bandana_kv.adapters.contract import empty_payloads
from bandana_kv.disk import blocks as block_format
from bandana_kv.disk.block_map import labels_of, numbers_of
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    InputError,
    NodeError,
    ThreadError,
)
from bandana_kv.system.forks import at_fork
from bandana_kv.system.threads import start

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["BlockRead", "BlockReader", "Errors", "StoredTable", "bad_payloads", "error_named"]

# A slice should keep its thread busy this long: handing it over costs 50 to 100 us of CPU, as
# much as five reads, and more where threads wait for the GIL.
_SLICE_US = 500.0
# What a block is assumed to cost until reads have been timed: a random read of an SSD.
_FIRST_BLOCK_US = 100.0
# A long slice would hold up the small requests that come after it.
_MOST_BLOCKS = 64
# What an engine that reaches the device's depth in one call reads in one.
_BLOCKS_OF_CALL, _CALLS_AT_ONCE = 128, 2
# The estimate falls fast and rises slowly, since waiting for the GIL or for a busy device
# makes a read look slower than it is, and slicing even finer would make that worse.
_FALL, _RISE = 0.3, 0.02

Errors = dict[int, BandanaError]
"""What is wrong, by block number."""


@dataclass(frozen=True)
class StoredTable:
    """Where a table's blocks lie and what they must look like.

    Attributes
    ----------
    name : str
    adapter : Adapter
    space : int
    rows, copies, row_bytes, rows_per_block : int
    block_map : ndarray or None
        int64 (blocks,), see :mod:`bandana_kv.disk.block_map`; None: blocks lie where they were
        loaded.
    """

    name: str
    adapter: Adapter
    space: int
    rows: int
    copies: int
    row_bytes: int
    rows_per_block: int
    block_map: NDArray[np.int64] | None = None

    @cached_property
    def first_key(self) -> np.uint64:
        """The key of block 0, if it lies where it was loaded."""
        return np.uint64(block_keys(self.space, 0))

    def keys(self, blocks: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the keys under which `blocks` (n,) lie."""
        if self.block_map is not None:
            blocks = numbers_of(self.block_map[blocks])
        return blocks.astype(np.uint64) | self.first_key

    def unread(self, block: int, found: int) -> BandanaError:
        """Return the error for a block that the engine did not find whole, as it names it."""
        key = int(self.keys(np.array([block], np.int64))[0])
        return error_named(self, block, self.adapter.why_unread(key, found))

    def labels(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what the headers of `blocks` (n,) say, int64."""
        return blocks if self.block_map is None else labels_of(self.block_map[blocks], blocks)

    def seal(self, payloads: NDArray[np.uint8], blocks: NDArray[np.int64]) -> None:
        """Write the headers of `blocks` (n,), whose rows are in place."""
        block_format.seal(
            payloads,
            self.space,
            self.labels(blocks),
            self.rows,
            self.copies,
            self.rows_per_block,
            self.row_bytes,
        )


class BlockRead:
    """The blocks of one request, cut into slices that any thread may take.

    Attributes
    ----------
    blocks : ndarray
        int64 (n,), sorted.
    payloads : ndarray
        uint8 (n, payload_bytes); only what has arrived is to be used.
    arrived : ndarray
        bool (n,), which blocks are there and sound; more become so until it is finished.
    errors : dict of int to BandanaError
        What is wrong with others, by block number.
    failure : BaseException or None
        What ended a slice for a reason that concerns no block.
    finished : Event
        Set when no thread reads any more.
    """

    def __init__(
        self,
        table: StoredTable,
        blocks: NDArray[np.int64],
        slices: list[slice],
        then: Callable[[], None] | None = None,
    ) -> None:
        self.table = table
        self.blocks = blocks
        self.payloads = empty_payloads(blocks.size, table.adapter.payload_bytes)
        self.arrived = np.zeros(blocks.size, np.bool_)
        self.errors: Errors = {}
        self.failure: BaseException | None = None
        self.finished = threading.Event()
        self.slices = slices
        self.taken = 0
        self.unfinished = len(slices)
        self.then = then

    def read(self, part: slice) -> None:
        """Read one slice; the first failure is kept."""
        try:
            blocks = self.blocks[part]
            errors = _read_slice(self.table, blocks, self.payloads[part])
            self.errors.update(errors)
            # In one step: whoever looks meanwhile takes what has arrived for sound.
            self.arrived[part] = ~np.isin(blocks, list(errors)) if errors else True
        except BaseException as error:
            self.failure = self.failure or error

    def finish(self) -> None:
        """Wake whoever waits for the whole."""
        if self.then is not None:
            self.then()
        self.finished.set()


class BlockReader:
    """Reads blocks at the device's queue depth, shared by all calling threads.

    A request's blocks are cut into slices. Whoever asks reads slices of their own
    request, and `depth` threads help: always those of the smallest request that has some
    left, so that a request of ten blocks does not wait for one of ten thousand. Requests of
    one slice trouble nobody else.

    Parameters
    ----------
    depth
        Threads that help; each keeps one read in flight.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._block_us = _FIRST_BLOCK_US
        self._begin()
        _readers.add(self)

    def _begin(self) -> None:
        self._closed = False
        self._numbers = itertools.count()
        self._asking: set[object] = set()  # the calls of `read_sound` that are under way
        self._waiting: list[tuple[int, int, BlockRead]] = []
        self._change = threading.Condition(threading.Lock())
        self._threads: list[threading.Thread] = []

    def after_fork_in_child(self) -> None:
        """Begin anew without threads: those of the parent do not exist here."""
        self._begin()

    def read(self, table: StoredTable, blocks: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the payloads of `blocks` (n,), sorted: uint8 (n, payload_bytes), verified.

        Raises
        ------
        BlockMissingError, BlockCorruptError, AdapterError
            Names the table and the lowest bad block.
        InputError
            The store was closed meanwhile.

        Notes
        -----
        Cost: as of :meth:`read_sound`.
        """
        payloads, errors = self.read_sound(table, blocks)
        if errors:
            raise errors[min(errors)]
        return payloads

    def read_sound(
        self, table: StoredTable, blocks: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], Errors]:
        """Return the payloads of `blocks` (n,), sorted, and what is wrong with bad ones.

        Payloads are uint8 (n, payload_bytes), verified; those of bad blocks are not to be used.

        Raises
        ------
        InputError
            The store was closed meanwhile.

        Notes
        -----
        Cost: one device read a block, twice where the engine fails without saying which block
        is to blame; checksums about 0.5 us a block. The GIL is released while the device works
        and while checksums are computed.
        """
        call = object()
        self._asking.add(call)
        try:
            return self._read(table, blocks)
        finally:
            self._asking.discard(call)

    def _read(
        self, table: StoredTable, blocks: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], Errors]:
        slices = self._slices(table, blocks.size)
        if len(slices) == 1:
            payloads = empty_payloads(blocks.size, table.adapter.payload_bytes)
            begun = time.perf_counter()
            errors = _read_slice(table, blocks, payloads)
            self._learn(blocks.size, time.perf_counter() - begun)
            return payloads, errors
        batch = BlockRead(table, blocks, slices)
        self._enqueue(batch)
        self._read_alone(batch)
        batch.finished.wait()
        if batch.failure is not None:
            raise batch.failure
        return batch.payloads, batch.errors

    def read_all(
        self, tables: Sequence[StoredTable], blocks: Sequence[NDArray[np.int64]]
    ) -> list[tuple[NDArray[np.uint8], Errors]]:
        """Return for each table what :meth:`read_sound` would; all are in flight together."""
        batches = [
            BlockRead(table, wanted, self._slices(table, wanted.size))
            for table, wanted in zip(tables, blocks, strict=True)
        ]
        for batch in batches:
            self._enqueue(batch)
        for batch in batches:
            self._read_alone(batch)
        for batch in batches:
            batch.finished.wait()
        for batch in batches:
            if batch.failure is not None:
                raise batch.failure
        return [(batch.payloads, batch.errors) for batch in batches]

    def begin(
        self, table: StoredTable, blocks: NDArray[np.int64], then: Callable[[BlockRead], None]
    ) -> BlockRead:
        """Begin to read `blocks`, sorted, in the helping threads, and return at once.

        `then` is called by the thread that ends it, with what this returns. Where no thread can
        be started, all is read before this returns.
        """
        batch = BlockRead(table, blocks, self._slices(table, blocks.size))
        batch.then = lambda: then(batch)
        self._enqueue(batch)
        if not self._threads:
            self._read_alone(batch)
        return batch

    def _read_alone(self, batch: BlockRead) -> None:
        """Read what no thread has begun."""
        # Also after an error: other threads write into memory about to be given up.
        while (part := self._take(batch)) is not None:
            begun = time.perf_counter()
            self._finish(batch, part)
            self._learn(part.stop - part.start, time.perf_counter() - begun)

    def withdraw(self, batch: BlockRead) -> None:
        """Give up those slices of a read that no thread has begun.

        So a device that hangs holds the memory of as many slices as there are threads, and of
        no more requests than that.
        """
        with self._change:
            begun = batch.taken
            batch.unfinished -= len(batch.slices) - begun
            batch.taken = len(batch.slices)
            last = begun < len(batch.slices) and batch.unfinished == 0
        if last:
            batch.finish()

    def _enqueue(self, batch: BlockRead) -> None:
        """Let the threads help; they are begun when there is something to do, and can be."""
        with self._change:
            if self._closed:
                raise InputError("the store was closed during a lookup")
            able = batch.table.adapter.capabilities
            # A call to other machines may wait for one of them: that must not keep others.
            few = able.queue_depth == "call" and not able.remote
            most = min(self.depth, _CALLS_AT_ONCE) if few else self.depth
            wanted = min(most, len(self._threads) + len(batch.slices))
            while len(self._threads) < wanted:
                try:
                    self._threads.append(start(self._help, "bandana-kv-read"))
                except ThreadError:
                    break  # those that there are go on, or who asks reads alone
            heapq.heappush(self._waiting, (batch.blocks.size, next(self._numbers), batch))
            self._change.notify(len(batch.slices))

    def _take(self, batch: BlockRead) -> slice | None:
        """Take a slice of `batch`; None when all are taken."""
        with self._change:
            return self._take_locked(batch)

    def _take_locked(self, batch: BlockRead) -> slice | None:
        if batch.taken == len(batch.slices):
            return None
        part = batch.slices[batch.taken]
        batch.taken += 1
        return part

    def _finish(self, batch: BlockRead, part: slice) -> None:
        batch.read(part)
        with self._change:
            batch.unfinished -= 1
            last = batch.unfinished == 0
        if last:
            batch.finish()

    def _help(self) -> None:
        """Read slices of the smallest request, again and again, until closed."""
        while (work := self._next()) is not None:
            self._finish(*work)
            del work  # or an idle thread would keep the last request's payloads alive

    def _next(self) -> tuple[BlockRead, slice] | None:
        """Wait for a slice to read; None once closed and nothing is left."""
        with self._change:
            while True:
                while self._waiting:
                    batch = self._waiting[0][2]
                    part = self._take_locked(batch)
                    if part is not None:
                        return batch, part
                    heapq.heappop(self._waiting)
                if self._closed:
                    return None
                self._change.wait()

    def _slices(self, table: StoredTable, count: int) -> list[slice]:
        """Cut `count` blocks into slices that are worth a thread each, and none too long."""
        if table.adapter.capabilities.queue_depth == "call":
            # A call keeps the device busy by itself; a second one, while this is verified.
            slices = max(1, -(-count // _BLOCKS_OF_CALL))
        else:
            # Callers are threads too: the more of them read, the less each one needs others.
            callers = max(1, len(self._asking))
            worth = min(self.depth + 1, int(count * self._block_us / _SLICE_US / callers))
            slices = max(1, min(count, max(worth, -(-count // _MOST_BLOCKS))))
        edges = [count * part // slices for part in range(slices + 1)]
        return [slice(first, last) for first, last in pairwise(edges)]

    def _learn(self, count: int, seconds: float) -> None:
        """Follow what a block costs; racing threads may lose an update, which does no harm."""
        difference = 1e6 * seconds / count - self._block_us
        self._block_us += (_FALL if difference < 0 else _RISE) * difference

    def close(self) -> None:
        """Wait for running reads and end the threads."""
        with self._change:
            self._closed = True
            threads = list(self._threads)
            self._change.notify_all()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()


_readers: weakref.WeakSet[BlockReader] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for reader in _readers:
        reader.after_fork_in_child()


at_fork("readers", in_child=_after_fork_in_child)


def _read_slice(
    table: StoredTable, blocks: NDArray[np.int64], payloads: NDArray[np.uint8]
) -> Errors:
    """Read and verify blocks; return what is wrong."""
    unread = table.adapter.read_each(table.keys(blocks), payloads)
    errors = {int(blocks[at]): error_named(table, int(blocks[at]), e) for at, e in unread.items()}
    bad = bad_payloads(table, blocks, payloads)
    for at in bad.keys() - unread.keys():
        block = int(blocks[at])
        errors[block] = block_format.corrupt_block(table.name, block, bad[at])
    return errors


def bad_payloads(
    table: StoredTable, blocks: NDArray[np.int64], payloads: NDArray[np.uint8]
) -> dict[int, str]:
    """Return what is wrong with payloads of `blocks` (n,), by place."""
    return block_format.bad_blocks(
        payloads,
        table.space,
        table.labels(blocks),
        table.rows,
        table.copies,
        table.rows_per_block,
        table.row_bytes,
    )


def error_named(table: StoredTable, block: int, error: Exception) -> BandanaError:
    """Return an error of an engine as one of a table."""
    # Engines know keys; whoever reads the message knows tables.
    kind = type(error) if isinstance(error, BandanaError) else AdapterError
    named = kind(f"table {table.name!r}, block {block}: {error}")
    if isinstance(error, NodeError) and isinstance(named, NodeError):
        named.node = error.node
    named.__cause__ = error
    return named
