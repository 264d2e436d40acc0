"""Recursive bisection with exactly full blocks, the core of the Social Hash Partitioner.

Sources: Kabiljo et al., VLDB 2017 (p-fanout, its gain, final-p-fanout, bounded swap
probability); MaxEmbed, ASPLOS 2024 (split points at multiples of the block capacity, the
i-th best of each side swapped while the sum of the pair's gains is positive).

Terms: a *part* is a range of positions and the rows that share them. It is cut into a left
and a right side; a request's *count* on a side is the number of its rows there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel
from bandana_kv.placement.randomness import scramble

__all__ = [
    "Cut",
    "Part",
    "Recipe",
    "arrange",
    "begin_cut",
    "decay_table",
    "request_gains",
    "row_bins",
    "rows_on_the_left",
    "side_of_cut",
    "split",
    "swap_best",
]

# Gains fall into bins by sign, exponent and the top four bits of the mantissa.
_BIN_SHIFT = np.uint32(19)
_BINS = 1 << 13
_SIGN = np.uint32(0x80000000)
_ALL_BITS = np.uint32(0xFFFFFFFF)
_HALF_BIN = np.uint32(1 << 18)


class Part(NamedTuple):
    """Rows that share a range of positions, and the requests that have two or more of them."""

    offsets: NDArray[np.int64]  # (rows + 1,): row i is in requests pins[offsets[i]:offsets[i + 1]]
    pins: NDArray[np.int32]
    sizes: NDArray[np.int32]  # (requests,): rows of the part that each request looks up
    vertices: NDArray[np.int32]  # (rows,): what the part's rows are called outside
    begin: int  # first position


class Cut(NamedTuple):
    """A part's two sides, and room to work in."""

    side: NDArray[np.uint8]  # (rows,): 0 left, 1 right
    left: NDArray[np.int32]  # (requests,): count on the left
    gains: NDArray[np.float32]  # (2 requests,): of moving a row off the left, off the right
    bins: NDArray[np.uint16]  # (rows,): each row's gain, coarsely
    chosen: NDArray[np.int32]  # (2, rows): rows to swap


class Recipe(NamedTuple):
    """How to bisect."""

    rate: float  # p of p-fanout
    iterations: int  # at most so many rounds of swaps for each cut
    keep: np.uint64  # 2**32 times the chance that a row picked for a swap takes part
    by_gain: bool  # order each side by its rows' last gains, instead of keeping their order


@kernel
def decay_table(sizes: NDArray[np.int32], rate: float) -> NDArray[np.float32]:
    """Return (1 - rate) ** c for every possible count c: p-fanout that one more row adds."""
    longest = 0
    for size in sizes:
        longest = max(longest, size)
    table = np.empty(longest + 1, np.float32)
    value = 1.0
    for count in range(longest + 1):
        table[count] = value
        value *= 1.0 - rate
    return table


@kernel
def request_gains(part: Part, cut: Cut, decay: NDArray[np.float32], first: int, last: int) -> None:
    """For requests `first` .. `last` - 1, what moving one of their rows gains."""
    for request in range(first, last):
        on_left = int(cut.left[request])
        on_right = int(part.sizes[request]) - on_left
        cut.gains[2 * request] = decay[max(on_left - 1, 0)] - decay[on_right]
        cut.gains[2 * request + 1] = decay[max(on_right - 1, 0)] - decay[on_left]


@kernel
def row_bins(part: Part, cut: Cut, first: int, last: int) -> None:
    """Sum up the gains of rows `first` .. `last` - 1; bins rise with the gain."""
    offsets, pins, side, gains, bins = part.offsets, part.pins, cut.side, cut.gains, cut.bins
    cell = np.empty(1, np.float32)
    bits = cell.view(np.uint32)
    for row in range(first, last):
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
) -> tuple[int, int, int, int, int]:
    """Pair the best of both sides while their gains sum to more than nothing.

    Returns the number of pairs and, for each side, the lowest bin that takes part and how
    many of its rows do.
    """
    at_left = at_right = top
    used_left = used_right = 0
    matched = 0
    while True:
        while at_left > 0 and used_left == left_bins[at_left]:
            at_left -= 1
            used_left = 0
        while at_right > 0 and used_right == right_bins[at_right]:
            at_right -= 1
            used_right = 0
        if at_left == 0 or at_right == 0:
            return matched, at_left, used_left, at_right, used_right
        if _gain_of_bin(at_left) + _gain_of_bin(at_right) <= 0:
            return matched, at_left, used_left, at_right, used_right
        pairs = min(left_bins[at_left] - used_left, right_bins[at_right] - used_right)
        used_left += pairs
        used_right += pairs
        matched += pairs


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
def _order_by_bin(bins: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Return the rows by falling gain, ties in the order they have."""
    begins = np.zeros(_BINS + 1, np.int64)
    for number in bins:
        begins[_BINS - number] += 1
    for i in range(_BINS):
        begins[i + 1] += begins[i]
    sequence = np.empty(bins.size, np.int32)
    for row in range(bins.size):
        slot = _BINS - 1 - bins[row]
        sequence[begins[slot]] = row
        begins[slot] += 1
    return sequence


@kernel
def begin_cut(part: Part, left_rows: int) -> Cut:
    """Put the first `left_rows` rows on the left, the others on the right."""
    rows = part.vertices.size
    requests = part.sizes.size
    side = np.zeros(rows, np.uint8)
    side[left_rows:] = 1
    left = np.zeros(requests, np.int32)
    for at in range(part.offsets[left_rows]):
        left[part.pins[at]] += 1
    gains = np.empty(2 * requests, np.float32)
    chosen = np.empty((2, rows), np.int32)
    return Cut(side, left, gains, np.empty(rows, np.uint16), chosen)


@kernel
def swap_best(part: Part, cut: Cut, keep: np.uint64, seed: np.uint64, iteration: int) -> bool:
    """Swap the rows that the bins say gain; return False when there are none."""
    where = (np.uint64(part.begin) << np.uint64(32)) + np.uint64(part.vertices.size)
    salt = scramble(scramble(seed + scramble(where)) + np.uint64(iteration))
    histogram = np.zeros((2, _BINS), np.int32)
    top = 0
    for row in range(cut.side.size):
        histogram[cut.side[row], cut.bins[row]] += 1
        top = max(top, int(cut.bins[row]))
    matched, low_left, of_left, low_right, of_right = _match_bins(histogram[0], histogram[1], top)
    if matched == 0:
        return False
    from_left, from_right = cut.chosen[0], cut.chosen[1]
    moves = min(
        _choose(cut.side, cut.bins, 0, low_left, of_left, salt, keep, from_left),
        _choose(cut.side, cut.bins, 1, low_right, of_right, salt, keep, from_right),
    )
    _swap(part.offsets, part.pins, cut.side, cut.left, from_left, moves, 0)
    _swap(part.offsets, part.pins, cut.side, cut.left, from_right, moves, 1)
    return True


@kernel
def bisect(
    part: Part, left_rows: int, recipe: Recipe, seed: np.uint64, stop: NDArray[np.uint8]
) -> Cut:
    """Cut a part in two, beginning with its first rows on the left."""
    cut = begin_cut(part, left_rows)
    decay = decay_table(part.sizes, recipe.rate)
    for iteration in range(recipe.iterations):
        if stop[0]:
            break
        request_gains(part, cut, decay, 0, part.sizes.size)
        row_bins(part, cut, 0, part.vertices.size)
        if not swap_best(part, cut, recipe.keep, seed, iteration):
            break
    return cut


@kernel
def side_of_cut(part: Part, cut: Cut, own: int, by_gain: bool) -> Part:
    """Copy one side out, without the requests that have fewer than two rows there."""
    requests = part.sizes.size
    number = np.empty(requests, np.int32)
    counts = np.empty(requests, np.int32)
    kept = 0
    kept_pins = 0
    for request in range(requests):
        on_left = cut.left[request]
        count = on_left if own == 0 else part.sizes[request] - on_left
        number[request] = -1
        if count >= 2:
            number[request] = kept
            counts[kept] = count
            kept += 1
            kept_pins += count
    rows = 0
    for row in range(cut.side.size):
        rows += cut.side[row] == own
    vertices = np.empty(rows, np.int32)
    offsets = np.zeros(rows + 1, np.int64)
    pins = np.empty(kept_pins, np.int32)
    cursor = 0
    copied = 0
    sequence = _order_by_bin(cut.bins) if by_gain else np.arange(cut.side.size).astype(np.int32)
    for row in sequence:
        if cut.side[row] != own:
            continue
        vertices[copied] = part.vertices[row]
        for at in range(part.offsets[row], part.offsets[row + 1]):
            if number[part.pins[at]] >= 0:
                pins[cursor] = number[part.pins[at]]
                cursor += 1
        copied += 1
        offsets[copied] = cursor
    begin = part.begin if own == 0 else part.begin + cut.side.size - rows
    return Part(offsets, pins, counts[:kept].copy(), vertices, begin)


@kernel
def rows_on_the_left(rows: int, rows_per_block: int) -> int:
    """Return where to cut: after half of the blocks."""
    blocks = (rows + rows_per_block - 1) // rows_per_block
    return blocks // 2 * rows_per_block


@kernel
def split(
    part: Part, rows_per_block: int, recipe: Recipe, seed: np.uint64, stop: NDArray[np.uint8]
) -> tuple[Part, Part]:
    """Cut a part in two and copy both sides out."""
    left_rows = rows_on_the_left(part.vertices.size, rows_per_block)
    cut = bisect(part, left_rows, recipe, seed, stop)
    return side_of_cut(part, cut, 0, recipe.by_gain), side_of_cut(part, cut, 1, recipe.by_gain)


@kernel
def arrange(
    part: Part,
    rows_per_block: int,
    recipe: Recipe,
    seed: np.uint64,
    order: NDArray[np.int32],
    stop: NDArray[np.uint8],
    done: NDArray[np.int64],
) -> None:
    """Cut a part until each piece fills one block; write its vertices by position to `order`.

    `done[0]` counts the rows of the parts cut so far; work ends early, with a valid order,
    once `stop[0]` is set.
    """
    stack = [part]
    while len(stack) > 0:
        part = stack.pop()
        rows = part.vertices.size
        if rows <= rows_per_block or stop[0]:
            order[part.begin : part.begin + rows] = part.vertices
            continue
        left, right = split(part, rows_per_block, recipe, seed, stop)
        done[0] += rows
        stack.append(right)
        stack.append(left)
