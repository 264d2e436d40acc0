"""Missed blocks -> sorted slices at the device's queue depth -> verified payloads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv import blocks as block_format
from bandana_kv.adapters import block_keys

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["BlockReader", "StoredTable"]

# Handing a slice to another thread costs about as much as reading this many blocks that
# the page cache holds; smaller slices are not worth a thread.
_LEAST_SLICE_BLOCKS = 4


@dataclass(frozen=True)
class StoredTable:
    """Where a table's blocks lie and what they must look like.

    Attributes
    ----------
    name : str
    adapter : Adapter
    space : int
    rows, row_bytes, rows_per_block : int
    """

    name: str
    adapter: Adapter
    space: int
    rows: int
    row_bytes: int
    rows_per_block: int


class BlockReader:
    """Reads blocks with up to `threads` reads in flight, shared by all calling threads.

    Parameters
    ----------
    threads
        Threads that read slices; each keeps one read in flight.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bandana-kv-read")

    def read(self, table: StoredTable, blocks: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the payloads of `blocks` (n,), sorted: uint8 (n, payload_bytes), verified.

        Raises
        ------
        BlockMissingError, BlockCorruptError, AdapterError
            Names the table or its space, and the block.

        Notes
        -----
        Cost: one device read a block; checksums about 0.5 us a block. The GIL is released
        while the device works and while checksums are computed.
        """
        payloads = np.empty((blocks.size, table.adapter.payload_bytes), np.uint8)
        slices = max(1, min(self._threads, blocks.size // _LEAST_SLICE_BLOCKS))
        edges = np.linspace(0, blocks.size, slices + 1).astype(np.int64).tolist()
        parts = [slice(first, last) for first, last in zip(edges, edges[1:], strict=False)]
        others = [
            self._pool.submit(_read_slice, table, blocks[part], payloads[part])
            for part in parts[1:]
        ]
        try:
            _read_slice(table, blocks[parts[0]], payloads[parts[0]])
        finally:
            errors = [_error_of(other) for other in others]
        for error in errors:
            if error is not None:
                raise error
        return payloads

    def close(self) -> None:
        """Wait for running reads and end the threads."""
        self._pool.shutdown()


def _error_of(other: Future[None]) -> BaseException | None:
    """Wait for a slice: its thread writes into memory that the caller is about to give up."""
    return other.exception()


def _read_slice(
    table: StoredTable, blocks: NDArray[np.int64], payloads: NDArray[np.uint8]
) -> None:
    table.adapter.multi_get(block_keys(table.space, blocks), out=payloads)
    numbers = blocks.astype(np.uint64)
    counts = block_format.rows_in_blocks(numbers, table.rows, table.rows_per_block)
    block_format.verify(payloads, table.space, numbers, counts, table.row_bytes, table.name)
