"""Fill blocks exactly: a partitioner's blocks may be too large or too small by some rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel
from bandana_kv.placement.outside.nets import Nets, transposed
from bandana_kv.progress import Progress

__all__ = ["fill_blocks"]

# Between two slices of so many rows Python looks for Ctrl-C and reports progress.
_SLICE = 1024


class _Blocks(NamedTuple):
    """What the kernels work on: nets both ways, and the blocks as they become full."""

    offsets: NDArray[np.int64]
    pins: NDArray[np.int32]
    begins: NDArray[np.int64]
    nets_of_vertex: NDArray[np.int32]
    block_of_vertex: NDArray[np.int32]
    room: NDArray[np.int64]  # by block; negative: so many rows too many
    score: NDArray[np.int32]  # by block; zero between calls
    last_net: NDArray[np.int64]  # by block; the last count of nets that touched it


@kernel
def _look(vertex: int, of: _Blocks, counter: int) -> tuple[int, int, int]:
    """Return the open block that shares most nets with a row, and what a move there gains.

    The third is the number of nets counted so far, over all calls.
    """
    # names of their own: a member taken from the tuple in a loop costs more than the loop
    offsets, pins, begins, nets_of_vertex = of.offsets, of.pins, of.begins, of.nets_of_vertex
    block_of_vertex, room, score, last_net = of.block_of_vertex, of.room, of.score, of.last_net
    for i in range(begins[vertex], begins[vertex + 1]):
        counter += 1
        for at in range(offsets[nets_of_vertex[i]], offsets[nets_of_vertex[i] + 1]):
            block = block_of_vertex[pins[at]]
            if pins[at] != vertex and last_net[block] != counter:
                last_net[block] = counter
                score[block] += 1
    best, best_score = -1, 0
    stays = score[block_of_vertex[vertex]]
    for i in range(begins[vertex], begins[vertex + 1]):
        for at in range(offsets[nets_of_vertex[i]], offsets[nets_of_vertex[i] + 1]):
            block = block_of_vertex[pins[at]]
            shared, score[block] = score[block], 0
            better = shared > best_score or (shared == best_score and block < best)
            if shared > 0 and room[block] > 0 and better:
                best, best_score = block, shared
    return best, best_score - stays, counter


@kernel
def _gains_of(
    vertices: NDArray[np.int64], of: _Blocks, counter: int, gains: NDArray[np.int32]
) -> int:
    for i in range(vertices.size):
        _, gains[i], counter = _look(vertices[i], of, counter)
    return counter


@kernel
def _move(
    vertices: NDArray[np.int64], of: _Blocks, counter: int, first_open: int
) -> tuple[int, int]:
    """Move rows out of blocks that have too many, in the order given."""
    for i in range(vertices.size):
        vertex = vertices[i]
        own = of.block_of_vertex[vertex]
        if of.room[own] >= 0:
            continue
        best, _, counter = _look(vertex, of, counter)
        if best < 0:
            while of.room[first_open] <= 0:  # room never grows in a block that had some
                first_open += 1
            best = first_open
        of.block_of_vertex[vertex] = best
        of.room[own] += 1
        of.room[best] -= 1
    return counter, first_open


def fill_blocks(
    nets: Nets, block_of_vertex: NDArray[np.int32], rows_per_block: int, progress: Progress
) -> NDArray[np.int32]:
    """Return a partition's rows in an order that cuts into exactly full blocks.

    The smallest block becomes the one that is part full and last. Every other block with too
    few rows is filled from blocks with too many, in the order of what each row's move costs
    in fanout; a row goes to the open block with which it shares most requests. So no more
    rows move than must.

    Parameters
    ----------
    nets
        The requests.
    block_of_vertex
        int32 (vertices,), each from 0 to ceil(vertices / rows_per_block) - 1, of any sizes.
        Left as it is.
    rows_per_block
        Rows in a full block.
    progress
        Told of the rows of blocks with too many.

    Returns
    -------
    ndarray
        int32 (vertices,): the vertices by position.

    Notes
    -----
    Cost: for each row of a block with too many, one pass over the requests that look it up.
    """
    vertices = nets.vertices
    blocks = -(-vertices // rows_per_block)
    block_of = block_of_vertex.astype(np.int32)
    sizes = np.bincount(block_of, minlength=blocks)
    last = int(np.argmin(sizes))
    targets = np.full(blocks, rows_per_block, np.int64)
    targets[last] = vertices - (blocks - 1) * rows_per_block
    room = targets - sizes
    movable = np.flatnonzero(room[block_of] < 0)
    if movable.size:
        _even_out(nets, block_of, room, movable, progress)
    key = np.where(block_of == last, blocks, block_of)
    return np.argsort(key, kind="stable").astype(np.int32)


def _even_out(
    nets: Nets,
    block_of: NDArray[np.int32],
    room: NDArray[np.int64],
    movable: NDArray[np.int64],
    progress: Progress,
) -> None:
    """Move rows until no block has room or rows too many, in place."""
    of = _Blocks(
        nets.offsets,
        nets.pins,
        *transposed(nets),
        block_of,
        room,
        np.zeros(room.size, np.int32),
        np.zeros(room.size, np.int64),
    )
    counter, first_open = 0, 0
    gains = np.empty(movable.size, np.int32)
    progress.start("fill blocks", 2 * movable.size, "rows")
    for begin in range(0, movable.size, _SLICE):
        rows = movable[begin : begin + _SLICE]
        counter = _gains_of(rows, of, counter, gains[begin : begin + _SLICE])
        progress.advance(rows.size)
    in_order = movable[np.argsort(-gains, kind="stable")]
    for begin in range(0, movable.size, _SLICE):
        rows = in_order[begin : begin + _SLICE]
        counter, first_open = _move(rows, of, counter, first_open)
        progress.advance(rows.size)
    progress.finish()
