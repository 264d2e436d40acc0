"""The coarse cut: rows into a few parts, by sums over a log that nobody holds.

As :mod:`bandana_kv.placement.bisection`, all parts of a level at a time: the sides of the rows go
to the workers, one bit a row, and what each row would gain on the other side comes back, as an
integer. Rows change sides in pairs, the best of both sides first, equals in the order they have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.views import readable
from bandana_kv.placement.bisection import rows_on_the_left
from bandana_kv.placement.distributed.kernels import add_gains, rows_by_part, taking_part
from bandana_kv.placement.distributed.runner import Runner, Sums
from bandana_kv.placement.distributed.shares import Share
from bandana_kv.placement.randomness import salted
from bandana_kv.progress import Progress

__all__ = ["MOST_PARTS", "Parts", "cut_rows", "gain_type", "row_gains", "swap_sides"]

MOST_PARTS = 1 << 15
ITERATIONS = 20
_KEEP = np.uint64(0.8 * 2**32)  # the chance, times 2**32, that a row that may move does
_RATE = 0.5  # p of p-fanout
_UNIT_BITS = 14
_MOST_BITS = 30  # of a gain that is sent as int32
_COUNTS = 24  # with more rows on a side a request keeps less than half a unit
KEEPS = np.round((1 << _UNIT_BITS) * (1.0 - _RATE) ** np.arange(_COUNTS)).astype(np.int64)
"""What a request keeps of a row on a side, by how many others it has there, in units."""


class Parts(NamedTuple):
    """The rows by their parts, and how they came there."""

    rows: NDArray[np.int32]  # (n,): part by part
    ends: NDArray[np.int64]  # (parts + 1,)
    cuts: tuple[Any, ...]  # each row's sides, packed, level by level, as they were broadcast


def gain_type(longest: int) -> np.dtype[Any]:
    """Return what the gains of a row in `longest` requests fit into, and those of any other."""
    return np.dtype(np.int32 if (longest << _UNIT_BITS) < (1 << _MOST_BITS) else np.int64)


def row_gains(
    shares: Sequence[Share],
    dtype: np.dtype[Any],
    sides: NDArray[np.uint8],
    *cuts: NDArray[np.uint8],
) -> Sums:
    """Return what each row gains on its other side, as far as the shares' requests say."""
    gains = np.zeros(shares[0].rows, dtype)
    for share in shares:
        requests = share.cut(cuts)
        add_gains(requests.ends, requests.ids, readable(sides), readable(KEEPS), gains)
    return (gains,)


def pins_of_parts(
    shares: Sequence[Share], parts: int, part_of_row: NDArray[np.int16], *cuts: NDArray[np.uint8]
) -> Sums:
    """Return how many pins each part has in requests with two or more rows there."""
    pins = np.zeros(parts, np.int64)
    for share in shares:
        pins += rows_by_part(share.cut(cuts).ids, readable(part_of_row), parts)
    return (pins,)


def _best_first(gains: NDArray[Any]) -> NDArray[np.int64]:
    """Return the indices by falling gain, equals in the order they have."""
    if gains.dtype == np.int64:
        return np.argsort(-gains, kind="stable")
    # four times as fast as an argument sort
    keys = (-gains.astype(np.int64) << 32) + np.arange(gains.size)
    keys.sort()
    return keys & 0xFFFFFFFF


def swap_sides(
    rows: NDArray[np.int32], sides: NDArray[np.uint8], gains: NDArray[Any], salt: np.uint64
) -> int:
    """Let the rows of a part change sides in pairs, while a pair gains together.

    Parameters
    ----------
    rows
        int32 (n,): of the part.
    sides
        uint8 (rows of the table,): 0 left, 1 right; changed.
    gains
        int32 or int64 (rows of the table,).
    salt
        Decides which of the rows that may move do.

    Returns
    -------
    int
        How many pairs may: the cut is done when there is none.
    """
    on_right = sides[rows] != 0
    left, right = rows[~on_right], rows[on_right]
    of_left, of_right = gains[left], gains[right]
    if not left.size or not right.size:
        return 0
    # Most rows have no partner with whom they would gain.
    least = -int(of_right.max())
    likely = of_left > least
    left, of_left = left[likely], of_left[likely]
    if not left.size:
        return 0
    least = -int(of_left.max())
    likely = of_right > least
    right, of_right = right[likely], of_right[likely]
    by_left, by_right = _best_first(of_left), _best_first(of_right)
    most = min(left.size, right.size)
    both = of_left[by_left[:most]].astype(np.int64) + of_right[by_right[:most]]
    pairs = int(np.count_nonzero(both > 0))
    from_left = taking_part(left[by_left[:pairs]], salt, _KEEP)
    from_right = taking_part(right[by_right[:pairs]], salt, _KEEP)
    moves = min(from_left.size, from_right.size)
    sides[from_left[:moves]] = 1
    sides[from_right[:moves]] = 0
    return pairs


def cut_rows(
    runner: Runner,
    shares: Sequence[Share],
    rows: NDArray[np.int32],
    rows_per_block: int,
    longest: int,
    fits: Callable[[int, NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]],
    seed: int,
    progress: Progress,
) -> Parts:
    """Cut rows in two, and those parts that do not fit again.

    Parameters
    ----------
    runner, shares
        Who knows the requests.
    rows
        int32 (n,): those that share a request with another, in random order.
    rows_per_block
        Parts are of whole blocks, but for the last one's last.
    longest
        How many requests the busiest row is in.
    fits
        Says of the parts of a level, by their rows and their pins, which need no further cut.
    seed
        Decides which swaps are left out.
    progress
        Told of the passes over the log.

    Notes
    -----
    Cost: for each level at most 20 passes over the log. The driver has some 24 bytes a row.
    """
    parts = Parts(rows, np.array([0, rows.size]), ())
    level = 0
    while True:
        sizes = np.diff(parts.ends)
        pins = _pins(runner, shares, parts)
        cuttable = sizes > rows_per_block
        again = cuttable & ~fits(level, sizes, pins)
        if not again.any():
            return parts
        if parts.ends.size + np.count_nonzero(again) > MOST_PARTS:
            raise InputError(
                f"the rows would be cut into more than {MOST_PARTS} parts; give each worker more "
                "memory"
            )
        progress.start(f"cut {level + 1}", ITERATIONS, "passes")
        parts = _one_level(
            runner, shares, parts, again, rows_per_block, gain_type(longest), seed, progress
        )
        progress.finish()
        level += 1


def _pins(runner: Runner, shares: Sequence[Share], parts: Parts) -> NDArray[np.int64]:
    part_of_row = np.full(shares[0].rows, -1, np.int16)
    part_of_row[parts.rows] = np.repeat(np.arange(parts.ends.size - 1), np.diff(parts.ends))
    sent = runner.broadcast(part_of_row)
    (pins,) = runner.map_log(pins_of_parts, shares, parts.ends.size - 1, sent, *parts.cuts)
    return pins


def _one_level(
    runner: Runner,
    shares: Sequence[Share],
    parts: Parts,
    again: NDArray[np.bool_],
    rows_per_block: int,
    dtype: np.dtype[Any],
    seed: int,
    progress: Progress,
) -> Parts:
    sides = np.zeros(shares[0].rows, np.uint8)
    begins, ends = parts.ends[:-1][again].tolist(), parts.ends[1:][again].tolist()
    for begin, end in zip(begins, ends, strict=True):
        sides[parts.rows[begin + rows_on_the_left(end - begin, rows_per_block) : end]] = 1
    for iteration in range(ITERATIONS):
        sent = runner.broadcast(np.packbits(sides, bitorder="little"))
        (gains,) = runner.map_log(row_gains, shares, dtype, sent, *parts.cuts)
        pairs = 0
        for begin, end in zip(begins, ends, strict=True):
            salt = salted(seed, (begin << 32) + ((end - begin) << 6) + iteration)
            pairs += swap_sides(parts.rows[begin:end], sides, gains, salt)
        progress.advance(1)
        if not pairs:
            break
    cut = runner.broadcast(np.packbits(sides, bitorder="little"))
    return _apart(parts, again, sides, (*parts.cuts, cut))


def _apart(
    parts: Parts, again: NDArray[np.bool_], sides: NDArray[np.uint8], cuts: tuple[Any, ...]
) -> Parts:
    """List the rows by the parts that the cut has made, in the order they had."""
    rows = np.empty_like(parts.rows)
    ends = [0]
    for part, is_cut in enumerate(again.tolist()):
        begin, end = parts.ends[part], parts.ends[part + 1]
        inside = parts.rows[begin:end]
        on_right = sides[inside] != 0
        for side in (inside[~on_right], inside[on_right]) if is_cut else (inside,):
            rows[ends[-1] : ends[-1] + side.size] = side
            ends.append(ends[-1] + side.size)
    return Parts(rows, np.array(ends, np.int64), cuts)
