"""Where the blocks of a table lie whose rows were placed anew, and which rows they hold.

A re-placement never writes over a block that some version reads: it writes blocks under other
numbers of the same key space, and a map for its version that names them. An entry of the map is
an int64: in its low 40 bits the number in the block's key, above them 23 bits of *stamp*, a hash
of the ids of the block's rows in their order; 0 for a block that a load put together. A block's
header has the stamp too, above its own number, so that an earlier copy of the same block, with
other rows, is as little taken for it as another block is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk import manifest
from bandana_kv.disk.arrays import map_array
from bandana_kv.disk.blocks import NUMBER_BITS
from bandana_kv.kernels.checksum import xxh64
from bandana_kv.kernels.compile import kernel, signed

__all__ = [
    "KIND",
    "NUMBER_MASK",
    "entries_of",
    "free_numbers",
    "labels_of",
    "numbers_of",
    "read_block_map",
    "stamps_of",
]

KIND = "block-map"
NUMBER_MASK = (1 << NUMBER_BITS) - 1
_MOST_STAMP = (1 << 23) - 1


def numbers_of(entries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers in the keys of blocks."""
    return entries & NUMBER_MASK


def labels_of(entries: NDArray[np.int64], blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what the headers of `blocks` say: their own numbers, with their stamps."""
    return entries & ~NUMBER_MASK | blocks


def entries_of(numbers: NDArray[np.int64], stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the entries of blocks that lie under `numbers` and have these `stamps`."""
    return stamps << NUMBER_BITS | numbers


@kernel
def _stamp(ids: np.ndarray) -> int:
    return signed(xxh64(ids.view(np.uint8)) % np.uint64(_MOST_STAMP)) + 1


@kernel
def stamps_of(ids: np.ndarray, rows_per_block: int, blocks: np.ndarray) -> np.ndarray:
    """Return the stamps of blocks.

    Parameters
    ----------
    ids
        uint32 (rows,): the id at each position; of blocks of copies, at each place behind.
    rows_per_block
        Of a full block.
    blocks
        int64 (n,): which blocks, counted from the first that `ids` fill.

    Returns
    -------
    ndarray
        int64 (n,), from 1 up.
    """
    stamps = np.empty(blocks.size, np.int64)
    for i in range(blocks.size):
        first = blocks[i] * rows_per_block
        stamps[i] = _stamp(ids[first : min(first + rows_per_block, ids.size)])
    return stamps


def read_block_map(root: Path, table: manifest.Table) -> NDArray[np.int64] | None:
    """Return a table's map, int64 (blocks,), checked; None where it was not placed anew.

    Raises
    ------
    FormatError
        As :func:`bandana_kv.disk.arrays.map_array`.
    """
    if not table.placed_by:
        return None
    path = manifest.table_file(root, table.placed_by, table.space, KIND)
    return map_array(path, KIND, np.int64, table.blocks)


def free_numbers(used: list[NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """Return the `count` lowest numbers, int64 and rising, that are in none of `used`."""
    taken = np.zeros(1 + max((int(part.max()) for part in used), default=-1), np.bool_)
    for part in used:
        taken[part] = True
    free = np.flatnonzero(~taken)[:count]
    behind = taken.size + np.arange(count - free.size, dtype=np.int64)
    return np.concatenate([free.astype(np.int64), behind])
