"""Missed blocks -> sorted slices at the device's queue depth -> verified payloads."""

from __future__ import annotations

import os
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv import blocks as block_format
from bandana_kv.adapters import block_keys
from bandana_kv.errors import (
    AdapterError,
    BlockCorruptError,
    BlockMissingError,
    InputError,
)

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["BlockReader", "StoredTable"]

# A slice should keep its thread busy this long: handing it over costs some 50 us, and more
# where threads wait for the GIL.
_SLICE_US = 200.0
# What a block is assumed to cost until reads have been timed: a random read of an SSD.
_FIRST_BLOCK_US = 100.0
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


class BlockReader:
    """Reads blocks with up to `threads` reads in flight, shared by all calling threads.

    Parameters
    ----------
    threads
        Threads that read slices; each keeps one read in flight.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._block_us = _FIRST_BLOCK_US
        self._pool = self._new_pool()
        _readers.add(self)

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="bandana-kv-read")

    def after_fork_in_child(self) -> None:
        """Begin anew with threads: those of the parent do not exist here."""
        self._pool = self._new_pool()

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
        payloads = np.empty((blocks.size, table.adapter.payload_bytes), np.uint8)
        parts = self._slices(blocks.size)
        others = [self._submit(table, blocks[part], payloads[part]) for part in parts[1:]]
        begun = time.perf_counter()
        try:
            _read_slice(table, blocks[parts[0]], payloads[parts[0]])
            self._learn(parts[0], time.perf_counter() - begun)
        finally:
            # Also after an error: their threads write into memory about to be given up.
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error
        return payloads

    def _submit(
        self, table: StoredTable, blocks: NDArray[np.int64], payloads: NDArray[np.uint8]
    ) -> Future[None]:
        try:
            return self._pool.submit(_read_slice, table, blocks, payloads)
        except RuntimeError as error:
            raise InputError("the store was closed during a lookup") from error

    def _slices(self, count: int) -> list[slice]:
        """Cut `count` blocks into slices that are worth a thread each."""
        worth = int(count * self._block_us / _SLICE_US)
        slices = max(1, min(self._threads, count, worth))
        edges = [count * part // slices for part in range(slices + 1)]
        return [slice(first, last) for first, last in pairwise(edges)]

    def _learn(self, part: slice, seconds: float) -> None:
        """Follow what a block costs; racing threads may lose an update, which does no harm."""
        difference = 1e6 * seconds / (part.stop - part.start) - self._block_us
        self._block_us += (_FALL if difference < 0 else _RISE) * difference

    def close(self) -> None:
        """Wait for running reads and end the threads."""
        self._pool.shutdown()


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
