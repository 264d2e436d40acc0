"""Recursive bisection with exactly full blocks, the core of the Social Hash Partitioner.

Sources: Kabiljo et al., VLDB 2017 (p-fanout, its gain, final-p-fanout, bounded swap
probability); MaxEmbed, ASPLOS 2024 (split points at multiples of the block capacity, the
i-th best of each side swapped while the sum of the pair's gains is positive).

Terms: a *part* is a range of positions and the rows that share them. It is cut into a left
and a right side; a request's *count* on a side is the number of its rows there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel

__all__ = ["arrange"]

# Gains fall into bins by sign, exponent and the top four bits of the mantissa.
_BIN_SHIFT = np.uint32(19)
_BINS = 1 << 13
_SIGN = np.uint32(0x80000000)
_ALL_BITS = np.uint32(0xFFFFFFFF)
_HALF_BIN = np.uint32(1 << 18)


@kernel
def scramble(word: np.uint64) -> np.uint64:
    """Return 64 well mixed bits of `word` (the finaliser of splitmix64, Steele et al. 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@kernel
def _decay_table(rate: float, length: int) -> NDArray[np.float32]:
    """Return (1 - rate) ** c for counts c: p-fanout added by one more row on a side."""
    table = np.empty(length, np.float32)
    value = 1.0
    for count in range(length):
        table[count] = value
        value *= 1.0 - rate
    return table


@kernel
def _request_gains(
    left: NDArray[np.int32],
    sizes: NDArray[np.int32],
    add_left: NDArray[np.float32],
    add_right: NDArray[np.float32],
    gains: NDArray[np.float32],
) -> None:
    """For each request, what moving one of its rows off the left or right side gains."""
    for request in range(sizes.size):
        on_left = left[request]
        on_right = sizes[request] - on_left
        gains[2 * request] = add_left[max(on_left - 1, 0)] - add_right[on_right]
        gains[2 * request + 1] = add_right[max(on_right - 1, 0)] - add_left[on_left]


@kernel
def _row_bins(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    side: NDArray[np.uint8],
    gains: NDArray[np.float32],
    bins: NDArray[np.uint16],
) -> None:
    """Sum each row's gain over its requests and put it into a bin that rises with the gain."""
    cell = np.empty(1, np.float32)
    bits = cell.view(np.uint32)
    for row in range(side.size):
        total = np.float32(0.0)
        own = np.int64(side[row])
        for at in range(offsets[row], offsets[row + 1]):
            total += gains[2 * np.int64(pins[at]) + own]
        cell[0] = total
        word = bits[0]
        word = word ^ _ALL_BITS if word & _SIGN else word | _SIGN
        bins[row] = word >> _BIN_SHIFT


@kernel
def _gain_of_bin(number: int) -> float:
    """Return the gain in the middle of a bin."""
    cell = np.empty(1, np.uint32)
    word = (np.uint32(number) << _BIN_SHIFT) + _HALF_BIN
    cell[0] = word ^ _SIGN if word & _SIGN else word ^ _ALL_BITS
    return float(cell.view(np.float32)[0])


@kernel
def _match_bins(
    left_bins: NDArray[np.int32], right_bins: NDArray[np.int32], top: int
) -> tuple[int, int, int, int]:
    """Pair the best of both sides while their gains sum to more than nothing.

    Returns for each side the lowest bin that takes part, and how many of its rows do.
    """
    at_left = at_right = top
    used_left = used_right = 0
    while True:
        while at_left > 0 and used_left == left_bins[at_left]:
            at_left -= 1
            used_left = 0
        while at_right > 0 and used_right == right_bins[at_right]:
            at_right -= 1
            used_right = 0
        if at_left == 0 or at_right == 0:
            return at_left, used_left, at_right, used_right
        if _gain_of_bin(at_left) + _gain_of_bin(at_right) <= 0:
            return at_left, used_left, at_right, used_right
        pairs = min(left_bins[at_left] - used_left, right_bins[at_right] - used_right)
        used_left += pairs
        used_right += pairs


@kernel
def _choose(
    side: NDArray[np.uint8],
    bins: NDArray[np.uint16],
    own: int,
    lowest: int,
    of_lowest: int,
    salt: np.uint64,
    keep: np.uint64,
    chosen: NDArray[np.int32],
) -> int:
    """List the rows of one side that take part; each is left out at random now and then."""
    count = 0
    for row in range(side.size):
        if side[row] != own or bins[row] < lowest:
            continue
        if bins[row] == lowest:
            if of_lowest == 0:
                continue
            of_lowest -= 1
        if scramble(salt + np.uint64(row)) >> np.uint64(32) < keep:
            chosen[count] = row
            count += 1
    return count


@kernel
def _swap(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    side: NDArray[np.uint8],
    left: NDArray[np.int32],
    chosen: NDArray[np.int32],
    count: int,
    own: int,
) -> None:
    """Move the first `count` chosen rows off side `own` and keep the requests' counts."""
    step = np.int32(2 * own - 1)
    for i in range(count):
        row = chosen[i]
        side[row] = 1 - own
        for at in range(offsets[row], offsets[row + 1]):
            left[pins[at]] += step


@kernel
def _bisect(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    sizes: NDArray[np.int32],
    left_rows: int,
    left_blocks: int,
    right_blocks: int,
    rate: float,
    iterations: int,
    keep: np.uint64,
    salt: np.uint64,
    stop: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Cut a part in two, beginning with its first rows on the left.

    Returns the side of each row and each request's count on the left.
    """
    rows = offsets.size - 1
    side = np.zeros(rows, np.uint8)
    side[left_rows:] = 1
    left = np.zeros(sizes.size, np.int32)
    for at in range(offsets[left_rows]):
        left[pins[at]] += 1
    longest = 0
    for size in sizes:
        longest = max(longest, size)
    add_left = _decay_table(rate / left_blocks, longest + 1)
    add_right = _decay_table(rate / right_blocks, longest + 1)
    gains = np.empty(2 * sizes.size, np.float32)
    bins = np.empty(rows, np.uint16)
    from_left = np.empty(rows, np.int32)
    from_right = np.empty(rows, np.int32)
    histogram = np.zeros((2, _BINS), np.int32)
    for iteration in range(iterations):
        if stop[0]:
            break
        _request_gains(left, sizes, add_left, add_right, gains)
        _row_bins(offsets, pins, side, gains, bins)
        histogram[:] = 0
        top = 0
        for row in range(rows):
            histogram[side[row], bins[row]] += 1
            top = max(top, bins[row])
        low_left, of_left, low_right, of_right = _match_bins(histogram[0], histogram[1], top)
        salt = scramble(salt + np.uint64(iteration + 1))
        moves = min(
            _choose(side, bins, 0, low_left, of_left, salt, keep, from_left),
            _choose(side, bins, 1, low_right, of_right, salt, keep, from_right),
        )
        if moves == 0:
            break
        _swap(offsets, pins, side, left, from_left, moves, 0)
        _swap(offsets, pins, side, left, from_right, moves, 1)
    return side, left


@kernel
def _subpart(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    sizes: NDArray[np.int32],
    vertices: NDArray[np.int32],
    side: NDArray[np.uint8],
    left: NDArray[np.int32],
    own: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Copy one side out, without the requests that have fewer than two rows there."""
    number = np.empty(sizes.size, np.int32)
    kept = 0
    kept_pins = 0
    for request in range(sizes.size):
        count = left[request] if own == 0 else sizes[request] - left[request]
        number[request] = -1
        if count >= 2:
            number[request] = kept
            kept += 1
            kept_pins += count
    own_sizes = np.empty(kept, np.int32)
    for request in range(sizes.size):
        if number[request] >= 0:
            count = left[request] if own == 0 else sizes[request] - left[request]
            own_sizes[number[request]] = count
    rows = 0
    for row in range(side.size):
        rows += side[row] == own
    own_vertices = np.empty(rows, np.int32)
    own_offsets = np.empty(rows + 1, np.int64)
    own_pins = np.empty(kept_pins, np.int32)
    own_offsets[0] = 0
    cursor = 0
    copied = 0
    for row in range(side.size):
        if side[row] != own:
            continue
        own_vertices[copied] = vertices[row]
        for at in range(offsets[row], offsets[row + 1]):
            if number[pins[at]] >= 0:
                own_pins[cursor] = number[pins[at]]
                cursor += 1
        copied += 1
        own_offsets[copied] = cursor
    return own_offsets, own_pins, own_sizes, own_vertices


@kernel
def arrange(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    sizes: NDArray[np.int32],
    vertices: NDArray[np.int32],
    rows_per_block: int,
    rate: float,
    look_ahead: bool,
    iterations: int,
    keep: np.uint64,
    seed: np.uint64,
    order: NDArray[np.int32],
    stop: NDArray[np.uint8],
    done: NDArray[np.int64],
) -> None:
    """Cut a part until each piece fills one block; write the vertices by position to `order`.

    `rate` is p, with `look_ahead` of final-p-fanout; `keep` of 2**32 is the chance that a
    row picked for a swap takes part. `done[0]` counts the rows of the parts cut so far;
    work ends early, with a valid order, once `stop[0]` is set.
    """
    stack = [(offsets, pins, sizes, vertices, 0)]
    while len(stack) > 0:
        offsets, pins, sizes, vertices, begin = stack.pop()
        rows = vertices.size
        if rows <= rows_per_block:
            order[begin : begin + rows] = vertices
            continue
        blocks = (rows + rows_per_block - 1) // rows_per_block
        left_blocks = blocks // 2
        left_rows = left_blocks * rows_per_block
        salt = scramble(seed + (np.uint64(begin) << np.uint64(32)) + np.uint64(rows))
        ahead = (left_blocks, blocks - left_blocks) if look_ahead else (1, 1)
        side, left = _bisect(
            offsets, pins, sizes, left_rows, *ahead, rate, iterations, keep, salt, stop
        )
        done[0] += rows
        right = _subpart(offsets, pins, sizes, vertices, side, left, 1)
        stack.append((*right, begin + left_rows))
        stack.append((*_subpart(offsets, pins, sizes, vertices, side, left, 0), begin))
