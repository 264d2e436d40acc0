"""How rows lie in blocks, and which blocks to read for rows that may lie in two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import inlined, kernel, signed

__all__ = ["Layout", "blocks_of", "cover", "first_copy", "position_of_place"]


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
    original_of : uint32 (copies,)
        The positions of the rows of which the places behind the positions hold copies.
    by_position : uint32 (copies,)
        The order that sorts `original_of`. To find a copy by its position costs a search,
        and memory by the copies alone.
    """

    rows_per_block: int
    heat: NDArray[np.uint8]
    original_of: NDArray[np.uint32]
    by_position: NDArray[np.uint32]


@inlined
def first_copy(rows: int, rows_per_block: int) -> int:
    """Return the first place behind the blocks of the table's rows."""
    return (rows + rows_per_block - 1) // rows_per_block * rows_per_block


@inlined
def position_of_place(place: int, rows: int, original_of: np.ndarray, behind: int) -> int:
    """Return the position of the row at a place, or -1 where the place is empty.

    `behind` is where copies begin: :func:`first_copy`.
    """
    if place < rows:
        return place
    if place < behind or place - behind >= original_of.size:
        return -1
    return signed(original_of[place - behind])


@kernel
def _copy_places(ordered: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the place of each position's copy (int64), or -1."""
    rows_per_block, heat, original_of, by_position = layout
    first = first_copy(heat.size, rows_per_block)
    found = np.full(ordered.size, -1, np.int64)
    low = 0
    for i in range(ordered.size):
        high = by_position.size
        while low < high:
            middle = (low + high) // 2
            if signed(original_of[by_position[middle]]) < ordered[i]:
                low = middle + 1
            else:
                high = middle
        # `ordered` rises: the next search begins where this one ended.
        if low < by_position.size and signed(original_of[by_position[low]]) == ordered[i]:
            found[i] = first + signed(by_position[low])
    return found


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
def cover(ordered: np.ndarray, layout: Layout, places: np.ndarray) -> np.ndarray:
    """Choose few blocks that hold all of `ordered`.

    Blocks of rows without a copy must be read anyway, and give what else they hold. Of the
    other blocks the one that gives most of what is missing is taken, again and again; among
    equals the lowest, so that the choice is always the same.

    Parameters
    ----------
    ordered
        int64 (n,), sorted positions without repeats.
    layout
        Of the table.
    places
        int64 (n,), written: the place at which each row will be read.

    Returns
    -------
    ndarray
        int64, sorted: the blocks to read.
    """
    rows_per_block = layout.rows_per_block
    places[: ordered.size] = ordered
    if layout.original_of.size == 0:
        return blocks_of(ordered, rows_per_block)
    copies = _copy_places(ordered, layout)
    forced = blocks_of(ordered[copies < 0], rows_per_block)
    free = np.empty(ordered.size, np.int64)
    left = 0
    for i in range(ordered.size):
        block = ordered[i] // rows_per_block
        at = np.searchsorted(forced, block)
        if at == forced.size or forced[at] != block:
            free[left] = i
            left += 1
    if left == 0:
        return forced
    chosen = _greedy(ordered, free[:left], copies, rows_per_block, places)
    return np.sort(np.concatenate((forced, chosen)))


@kernel
def _greedy(
    ordered: np.ndarray,
    free: np.ndarray,
    copies: np.ndarray,
    rows_per_block: int,
    places: np.ndarray,
) -> np.ndarray:
    """Cover the rows `free` (indices into `ordered`), each of which lies in two blocks."""
    rows = free.size
    of_row = np.empty((rows, 2), np.int64)
    for k in range(rows):
        position = ordered[free[k]]
        of_row[k, 0] = position // rows_per_block
        of_row[k, 1] = copies[free[k]] // rows_per_block
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
                if of_row[k, 0] != best:
                    places[free[k]] = copies[free[k]]
                gives[of_row[k, 0]] -= 1
                gives[of_row[k, 1]] -= 1
                of_row[k, 0] = -1
                missing -= 1
    return chosen[:taken]
