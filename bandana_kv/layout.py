"""How rows lie in blocks, and which blocks to read for rows that may lie in two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel, signed

__all__ = ["NO_COPY", "Layout", "blocks_of", "cover"]

NO_COPY = np.uint32(0xFFFFFFFF)


class Layout(NamedTuple):
    """How a table's rows lie in blocks, as the kernels take it.

    A row is known by its position. Its copy, if it has one, lies at a *place* behind the
    last block of positions; places and positions number the rows of blocks alike, so that
    ``place // rows_per_block`` is a block. A row that has no copy has one place, its position.

    Attributes
    ----------
    rows_per_block : int
    heat : uint8 (rows,)
        By position: how often the training log looked a row up.
    copy_of : uint32 (rows,) or (0,)
        By position: the place of the row's copy, or :data:`NO_COPY`. Empty without copies.
    original_of : uint32 (copies,)
        The position of the row of which each place behind the positions holds a copy.
    """

    rows_per_block: int
    heat: NDArray[np.uint8]
    copy_of: NDArray[np.uint32]
    original_of: NDArray[np.uint32]


@kernel
def blocks_of(ordered: np.ndarray, rows_per_block: int) -> np.ndarray:
    """Return the distinct blocks (int64, sorted) of sorted positions."""
    blocks = np.empty(ordered.size, np.int64)
    distinct = 0
    for i in range(ordered.size):
        block = ordered[i] // rows_per_block
        if distinct == 0 or blocks[distinct - 1] != block:
            blocks[distinct] = block
            distinct += 1
    return blocks[:distinct]


@kernel
def cover(
    ordered: np.ndarray, copy_of: np.ndarray, rows_per_block: int, places: np.ndarray
) -> np.ndarray:
    """Choose few blocks that hold all of `ordered`.

    Blocks of rows without a copy must be read anyway, and give what else they hold. Of the
    other blocks the one that gives most of what is missing is taken, again and again; among
    equals the lowest, so that the choice is always the same.

    Parameters
    ----------
    ordered
        int64 (n,), sorted positions without repeats.
    copy_of, rows_per_block
        Of the :class:`Layout`.
    places
        int64 (n,), written: the place at which each row will be read.

    Returns
    -------
    ndarray
        int64, sorted: the blocks to read.
    """
    if copy_of.size == 0:
        places[: ordered.size] = ordered
        return blocks_of(ordered, rows_per_block)
    fixed = ordered[copy_of[ordered] == NO_COPY]
    forced = blocks_of(fixed, rows_per_block)
    free = np.empty(ordered.size, np.int64)
    left = 0
    for i in range(ordered.size):
        block = ordered[i] // rows_per_block
        at = np.searchsorted(forced, block)
        if at < forced.size and forced[at] == block:
            places[i] = ordered[i]
        else:
            free[left] = i
            left += 1
    if left == 0:
        return forced
    chosen = _greedy(ordered, free[:left], copy_of, rows_per_block, places)
    return np.sort(np.concatenate((forced, chosen)))


@kernel
def _greedy(
    ordered: np.ndarray,
    free: np.ndarray,
    copy_of: np.ndarray,
    rows_per_block: int,
    places: np.ndarray,
) -> np.ndarray:
    """Cover the rows `free` (indices into `ordered`), each of which lies in two blocks."""
    rows = free.size
    of_row = np.empty((rows, 2), np.int64)
    for k in range(rows):
        position = ordered[free[k]]
        of_row[k, 0] = position // rows_per_block
        of_row[k, 1] = signed(copy_of[position]) // rows_per_block
    blocks = np.unique(of_row)
    gives = np.zeros(blocks.size, np.int64)
    for k in range(rows):
        for side in range(2):
            of_row[k, side] = np.searchsorted(blocks, of_row[k, side])
            gives[of_row[k, side]] += 1
    chosen = np.empty(rows, np.int64)
    taken = 0
    missing = rows
    while missing > 0:
        best = np.argmax(gives)
        chosen[taken] = blocks[best]
        taken += 1
        for k in range(rows):
            if of_row[k, 0] >= 0 and (of_row[k, 0] == best or of_row[k, 1] == best):
                position = ordered[free[k]]
                places[free[k]] = position if of_row[k, 0] == best else signed(copy_of[position])
                gives[of_row[k, 0]] -= 1
                gives[of_row[k, 1]] -= 1
                of_row[k, 0] = -1
                missing -= 1
    return chosen[:taken]
