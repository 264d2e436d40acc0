"""Which blocks to refine together: those that the same requests touch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel
from bandana_kv.placement.randomness import scramble

__all__ = ["MOST_CELLS", "group_blocks", "touched_blocks"]

# A block's neighbours are told from at most so many of its pins, and so many of the other
# blocks that each of these requests touches: enough to rank them, and it bounds the cost.
_PINS_SEEN = 2048
_TOUCHES_SEEN = 128
# Groups are closed early when their arrays would outgrow this many pins times blocks.
MOST_CELLS = 1 << 26


@kernel
def touched_blocks(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    order: NDArray[np.int32],
    rows_per_block: int,
    requests: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """List the blocks that each request touches: ends (requests + 1,) and blocks."""
    ends = np.zeros(requests + 1, np.int64)
    last = np.full(requests, -1, np.int32)
    for position in range(order.size):
        block = np.int32(position // rows_per_block)
        for at in range(offsets[order[position]], offsets[order[position] + 1]):
            if last[pins[at]] != block:
                last[pins[at]] = block
                ends[pins[at] + 1] += 1
    for request in range(requests):
        ends[request + 1] += ends[request]
    blocks = np.empty(ends[requests], np.int32)
    fill = ends[:-1].copy()
    last[:] = -1
    for position in range(order.size):
        block = np.int32(position // rows_per_block)
        for at in range(offsets[order[position]], offsets[order[position] + 1]):
            request = pins[at]
            if last[request] != block:
                last[request] = block
                blocks[fill[request]] = block
                fill[request] += 1
    return ends, blocks


@kernel
def _pins_of_blocks(
    offsets: NDArray[np.int64], order: NDArray[np.int32], rows_per_block: int
) -> NDArray[np.int64]:
    count = np.zeros((order.size + rows_per_block - 1) // rows_per_block, np.int64)
    for position in range(order.size):
        vertex = order[position]
        count[position // rows_per_block] += offsets[vertex + 1] - offsets[vertex]
    return count


@kernel
def _score(
    block: int,
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    order: NDArray[np.int32],
    rows_per_block: int,
    stride: int,
    ends: NDArray[np.int64],
    blocks: NDArray[np.int32],
    used: NDArray[np.bool_],
    score: NDArray[np.int32],
    scored: NDArray[np.int32],
) -> int:
    """Count how often the block's requests touch each block not in use; return how many do."""
    found = 0
    skip = 0
    for position in range(block * rows_per_block, min((block + 1) * rows_per_block, order.size)):
        vertex = order[position]
        at = offsets[vertex] + skip
        while at < offsets[vertex + 1]:
            first, last = ends[pins[at]], ends[pins[at] + 1]
            step = (last - first) // _TOUCHES_SEEN + 1
            for touch in range(first + at % step, last, step):
                other = blocks[touch]
                if used[other]:
                    continue
                if score[other] == 0:
                    scored[found] = other
                    found += 1
                score[other] += step
            at += stride
        skip = at - offsets[vertex + 1]
    return found


@kernel
def _ranked(
    wanted: int, found: int, score: NDArray[np.int32], scored: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Return the `wanted` blocks of highest score, the best first; clear all scores."""
    count = min(wanted, found)
    keys = np.empty(found, np.int64)
    for i in range(found):
        # ties by block number, so that the result does not depend on the sort
        keys[i] = np.int64(scored[i]) - (np.int64(score[scored[i]]) << np.int64(32))
        score[scored[i]] = 0
    if 0 < count < found:
        keys = np.partition(keys, count - 1)[:count]
    ranked = np.empty(count, np.int32)
    for i, key in enumerate(np.sort(keys)[:count]):
        ranked[i] = key & np.int64(0xFFFFFFFF)
    return ranked


@kernel
def _shuffled(count: int, seed: np.uint64) -> NDArray[np.int32]:
    drawn = np.arange(count).astype(np.int32)
    for i in range(count - 1, 0, -1):
        seed = scramble(seed + np.uint64(1))
        j = np.int64(seed % np.uint64(i + 1))
        drawn[i], drawn[j] = drawn[j], drawn[i]
    return drawn


@kernel
def group_blocks(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    order: NDArray[np.int32],
    rows_per_block: int,
    ends: NDArray[np.int64],
    blocks: NDArray[np.int32],
    size: int,
    seed: np.uint64,
    most_cells: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Split all blocks into groups of about `size`: one drawn at random and its neighbours.

    `ends` and `blocks` are what `touched_blocks` returns; they may be of a slightly earlier
    `order`. Blocks inside a group are in ascending order. Returns the groups' ends and the
    blocks of each. Groups whose pins times blocks would be more than `most_cells` stay smaller.
    """
    weight = _pins_of_blocks(offsets, order, rows_per_block)
    used = np.zeros(weight.size, np.bool_)
    score = np.zeros(weight.size, np.int32)
    scored = np.empty(weight.size, np.int32)
    group_ends = [0]
    members = np.empty(weight.size, np.int32)
    filled = 0
    group_pins = 0
    for block in _shuffled(weight.size, seed):
        if used[block]:
            continue
        stride = weight[block] // _PINS_SEEN + 1
        used[block] = True
        found = _score(
            block, offsets, pins, order, rows_per_block, stride, ends, blocks, used, score, scored
        )
        begun = filled - group_ends[-1]
        if begun > 0 and (group_pins + weight[block]) * (begun + 1) > most_cells:
            group_ends.append(filled)
            group_pins = 0
            begun = 0
        members[filled] = block
        filled += 1
        group_pins += weight[block]
        # a group that its neighbours do not fill goes on with the next block drawn
        for other in _ranked(size - begun - 1, found, score, scored):
            if (group_pins + weight[other]) * (filled - group_ends[-1] + 1) > most_cells:
                break
            used[other] = True
            members[filled] = other
            filled += 1
            group_pins += weight[other]
        if filled - group_ends[-1] >= size:
            group_ends.append(filled)
            group_pins = 0
    if filled > group_ends[-1]:
        group_ends.append(filled)
    for i in range(len(group_ends) - 1):
        members[group_ends[i] : group_ends[i + 1]].sort()
    return np.array(group_ends, np.int64), members
