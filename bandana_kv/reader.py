"""Missed blocks -> sorted slices at the device's queue depth -> verified payloads."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv import blocks as block_format
from bandana_kv.adapters import block_keys
from bandana_kv.adapters.contract import empty_payloads
from bandana_kv.errors import (
    AdapterError,
    BlockCorruptError,
    BlockMissingError,
    InputError,
)

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["BlockReader", "StoredTable"]

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


@dataclass(frozen=True)
class StoredTable:
    """Where a table's blocks lie and what they must look like.

    Attributes
    ----------
    name : str
    adapter : Adapter
    space : int
    rows, copies, row_bytes, rows_per_block : int
    """

    name: str
    adapter: Adapter
    space: int
    rows: int
    copies: int
    row_bytes: int
    rows_per_block: int

    @cached_property
    def first_key(self) -> np.uint64:
        """The key of block 0."""
        return np.uint64(block_keys(self.space, 0))


class _Batch:
    """The blocks of one request, cut into slices that any thread may take."""

    def __init__(
        self,
        table: StoredTable,
        blocks: NDArray[np.int64],
        payloads: NDArray[np.uint8],
        slices: list[slice],
        then: Callable[[], None] | None,
    ) -> None:
        self.table = table
        self.blocks = blocks
        self.payloads = payloads
        self.slices = slices
        self.taken = 0
        self.unfinished = len(slices)
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self._then = then

    def read(self, part: slice) -> None:
        """Read one slice; the first failure is kept."""
        try:
            _read_slice(self.table, self.blocks[part], self.payloads[part])
        except BaseException as error:
            self.error = self.error or error

    def finish(self) -> None:
        """Wake whoever waits for the whole."""
        if self._then is not None:
            self._then()
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
        self._asking: set[object] = set()  # the calls of `read` that are under way
        self._waiting: list[tuple[int, int, _Batch]] = []
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
            Names the table, and the block where the engine says which.
        InputError
            The store was closed meanwhile.

        Notes
        -----
        Cost: one device read a block; checksums about 0.5 us a block. The GIL is released
        while the device works and while checksums are computed.
        """
        call = object()
        self._asking.add(call)
        try:
            return self._read(table, blocks)
        finally:
            self._asking.discard(call)

    def _read(self, table: StoredTable, blocks: NDArray[np.int64]) -> NDArray[np.uint8]:
        payloads = empty_payloads(blocks.size, table.adapter.payload_bytes)
        slices = self._slices(table, blocks.size)
        if len(slices) == 1:
            begun = time.perf_counter()
            _read_slice(table, blocks, payloads)
            self._learn(blocks.size, time.perf_counter() - begun)
            return payloads
        batch = _Batch(table, blocks, payloads, slices, None)
        self._enqueue(batch)
        # Also after an error: other threads write into memory about to be given up.
        while (part := self._take(batch)) is not None:
            begun = time.perf_counter()
            self._finish(batch, part)
            self._learn(part.stop - part.start, time.perf_counter() - begun)
        batch.finished.wait()
        if batch.error is not None:
            raise batch.error
        return payloads

    def start(
        self,
        table: StoredTable,
        blocks: NDArray[np.int64],
        then: Callable[[NDArray[np.uint8] | None], None],
    ) -> None:
        """Read `blocks` as :meth:`read` does, without waiting.

        `then` is called by the thread that ends it, with the payloads or, after a failure, None.
        """
        payloads = empty_payloads(blocks.size, table.adapter.payload_bytes)
        batch = _Batch(
            table,
            blocks,
            payloads,
            self._slices(table, blocks.size),
            lambda: then(None if batch.error is not None else payloads),
        )
        self._enqueue(batch)

    def _enqueue(self, batch: _Batch) -> None:
        """Let the threads help; they are begun when there is something to do."""
        with self._change:
            if self._closed:
                raise InputError("the store was closed during a lookup")
            calls = batch.table.adapter.capabilities.queue_depth == "call"
            most = min(self.depth, _CALLS_AT_ONCE) if calls else self.depth
            wanted = min(most, len(self._threads) + len(batch.slices))
            while len(self._threads) < wanted:
                thread = threading.Thread(target=self._help, name="bandana-kv-read", daemon=True)
                self._threads.append(thread)
                thread.start()
            heapq.heappush(self._waiting, (batch.blocks.size, next(self._numbers), batch))
            self._change.notify(len(batch.slices))

    def _take(self, batch: _Batch) -> slice | None:
        """Take a slice of `batch`; None when all are taken."""
        with self._change:
            return self._take_locked(batch)

    def _take_locked(self, batch: _Batch) -> slice | None:
        if batch.taken == len(batch.slices):
            return None
        part = batch.slices[batch.taken]
        batch.taken += 1
        return part

    def _finish(self, batch: _Batch, part: slice) -> None:
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

    def _next(self) -> tuple[_Batch, slice] | None:
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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _read_slice(table: StoredTable, blocks: NDArray[np.int64], payloads: NDArray[np.uint8]) -> None:
    keys = blocks.astype(np.uint64) | table.first_key
    try:
        table.adapter.multi_get(keys, out=payloads)
    except (AdapterError, BlockCorruptError, BlockMissingError) as error:
        # Engines know keys; whoever reads the message knows tables.
        raise type(error)(f"table {table.name!r}: {error}") from error
    block_format.verify(
        payloads,
        table.space,
        blocks,
        table.rows,
        table.copies,
        table.rows_per_block,
        table.row_bytes,
        table.name,
    )
