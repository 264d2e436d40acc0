"""A few blocks on their own: everything that swaps between them need to know.

The fanout of a log is a sum over blocks, so swaps inside one group of blocks change nothing
in another. A group's arrays are small enough for a processor's own cache, which is what makes
many swaps affordable, and groups without a common block can be worked on by many threads.

A request that has c rows in a block costs 1 - (1 - p)**c there (p-fanout). Moving a row from
block A to block B then gains, summed over its requests, what they keep in B without it, less
what they keep in A without it. The first is kept as `near`, the second as `stay`, in whole
multiples of a small unit, so that sums are exact and do not depend on their order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel

__all__ = ["Group", "cross", "group_of", "regain", "unit_bits"]

_MOST_BITS = 14
_LIMIT = np.int64(1) << np.int64(28)


class Group(NamedTuple):
    """Rows of a few blocks, numbered from 0; blocks and requests likewise."""

    row_ends: NDArray[np.int32]  # (rows + 1,): row i is in requests of_row[ends[i]:ends[i + 1]]
    of_row: NDArray[np.int32]
    request_ends: NDArray[np.int32]  # (requests + 1,), into of_request
    of_request: NDArray[np.int32]  # rows of each request
    weight: NDArray[np.int32]  # (rows_per_block + 2,): (1 - p) ** c in units, by count c
    counts: NDArray[np.int16]  # (requests, blocks): rows of the request in the block
    near: NDArray[np.int32]  # (rows, blocks): what the row's requests keep in each block
    stay: NDArray[np.int32]  # (rows,): what they keep in the row's own block without it
    block_of_row: NDArray[np.int32]
    slot_of_row: NDArray[np.int32]
    row_at_slot: NDArray[np.int32]  # block b holds slots b * rows_per_block and up
    mark: NDArray[np.uint8]  # (requests,): zero between swaps
    rows_per_block: int


@kernel
def unit_bits(longest: int) -> int:
    """Return how many bits a unit may be below 1, so that sums over `longest` requests fit."""
    bits = _MOST_BITS
    while bits > 2 and (longest << bits) > _LIMIT:
        bits -= 1
    return bits


@kernel
def _number_requests(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    members: NDArray[np.int32],
    number: NDArray[np.int32],
) -> tuple[int, int]:
    """Give requests with two or more of the rows a number, kept in `number` as -2 - number.

    `number` is all zeros before; returns how many were numbered, and their pins.
    """
    requests = 0
    kept_pins = 0
    for vertex in members:
        for at in range(offsets[vertex], offsets[vertex + 1]):
            number[pins[at]] += 1
    for vertex in members:
        for at in range(offsets[vertex], offsets[vertex + 1]):
            rows = number[pins[at]]
            if rows >= 2:
                kept_pins += rows
                number[pins[at]] = -2 - requests
                requests += 1
            elif rows == 1:
                number[pins[at]] = -1
    return requests, kept_pins


@kernel
def _copy_pins(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    members: NDArray[np.int32],
    number: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Copy the rows' pins out, by row and by request; leave `number` all zeros."""
    requests, kept_pins = _number_requests(offsets, pins, members, number)
    row_ends = np.zeros(members.size + 1, np.int32)
    of_row = np.empty(kept_pins, np.int32)
    request_ends = np.zeros(requests + 1, np.int32)
    cursor = 0
    for row in range(members.size):
        for at in range(offsets[members[row]], offsets[members[row] + 1]):
            request = -2 - number[pins[at]]
            if request >= 0:
                of_row[cursor] = request
                request_ends[request + 1] += 1
                cursor += 1
        row_ends[row + 1] = cursor
    for vertex in members:
        for at in range(offsets[vertex], offsets[vertex + 1]):
            number[pins[at]] = 0
    for request in range(requests):
        request_ends[request + 1] += request_ends[request]
    of_request = np.empty(kept_pins, np.int32)
    fill = request_ends[:-1].copy()
    for row in range(members.size):
        for at in range(row_ends[row], row_ends[row + 1]):
            of_request[fill[of_row[at]]] = row
            fill[of_row[at]] += 1
    return row_ends, of_row, request_ends, of_request


@kernel
def _weights(rate: float, rows_per_block: int, bits: int) -> NDArray[np.int32]:
    weight = np.empty(rows_per_block + 2, np.int32)
    value = float(1 << bits)
    for count in range(rows_per_block + 2):
        weight[count] = int(value + 0.5)
        value *= 1.0 - rate
    return weight


@kernel
def _sum_up(group: Group) -> None:
    """Fill `counts`, `near` and `stay` from where the rows are."""
    counts, weight = group.counts, group.weight
    touched = np.empty(counts.shape[1], np.int32)
    for request in range(group.request_ends.size - 1):
        rows = group.of_request[group.request_ends[request] : group.request_ends[request + 1]]
        blocks = 0
        for row in rows:
            block = group.block_of_row[row]
            if counts[request, block] == 0:
                touched[blocks] = block
                blocks += 1
            counts[request, block] += 1
        for row in rows:
            for i in range(blocks):
                block = touched[i]
                group.near[row, block] += weight[0] - weight[counts[request, block]]
            own = counts[request, group.block_of_row[row]]
            group.stay[row] += weight[0] - weight[own - 1]


@kernel
def group_of(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    members: NDArray[np.int32],
    rows_per_block: int,
    rate: float,
    number: NDArray[np.int32],
) -> Group:
    """Build the group of the vertices `members`, listed by block.

    All blocks but the last are full. `number` is room for one int32 a request of the whole
    log, all zeros before and after. Cost: six passes over the members' pins.
    """
    row_ends, of_row, request_ends, of_request = _copy_pins(offsets, pins, members, number)
    rows, requests = members.size, request_ends.size - 1
    blocks = (rows + rows_per_block - 1) // rows_per_block
    longest = 0
    for row in range(rows):
        longest = max(longest, int(row_ends[row + 1] - row_ends[row]))
    slots = np.arange(rows).astype(np.int32)
    group = Group(
        row_ends,
        of_row,
        request_ends,
        of_request,
        _weights(rate, rows_per_block, unit_bits(longest)),
        np.zeros((requests, blocks), np.int16),
        np.zeros((rows, blocks), np.int32),
        np.zeros(rows, np.int32),
        slots // np.int32(rows_per_block),
        slots,
        slots.copy(),
        np.zeros(requests, np.uint8),
        rows_per_block,
    )
    _sum_up(group)
    return group


@kernel
def cross(
    weight: NDArray[np.int32],
    counts: NDArray[np.int32],
    near: NDArray[np.int32],
    stay: NDArray[np.int32],
    block_of_row: NDArray[np.int32],
    rows: NDArray[np.int32],
    source: int,
    target: int,
) -> None:
    """Note that one of a request's `rows` goes from block `source` to block `target`.

    `counts` is the request's row of the group's. Takes arrays and not the group, because
    counting the references to all of a tuple's members would cost as much as the work.
    """
    left = int(counts[source]) - 1
    met = int(counts[target])
    counts[source] = left
    counts[target] = met + 1
    less = weight[left] - weight[left + 1]
    more = weight[met] - weight[met + 1]
    stay_less = weight[left - 1] - weight[left] if left >= 1 else 0
    stay_more = weight[met - 1] - weight[met] if met >= 1 else 0
    for row in rows:
        near[row, source] -= less
        near[row, target] += more
        block = block_of_row[row]
        if block == source:
            stay[row] -= stay_less
        elif block == target:
            stay[row] += stay_more


@kernel
def regain(group: Group, row: int) -> None:
    """Sum the row's `stay` up anew, after it went to another block."""
    block = group.block_of_row[row]
    total = np.int32(0)
    for at in range(group.row_ends[row], group.row_ends[row + 1]):
        total += group.weight[0] - group.weight[group.counts[group.of_row[at], block] - 1]
    group.stay[row] = total
