"""Bags of rows, pooled where the rows lie: in slots, in updates, in blocks that came.

A request that is pooled has the address of words of its bags in its scratch. What looks up, and
what answers from blocks, says there where each row is, instead of copying it; then bags of which
every row is known are pooled. The rows of the others are copied aside: by the time that those
bags can be pooled, what they were read from may hold others.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from bandana_kv.codecs.bits import fused
from bandana_kv.codecs.rows import NUMBERS, decoded
from bandana_kv.kernels.addresses import (
    bytes_at,
    call_at,
    doubles_at,
    floats_at,
    prefetch,
    words_at,
)
from bandana_kv.kernels.compile import brief, foreign, inlined, kernel, signed
from bandana_kv.serve.words import BAGS, copy

__all__ = [
    "DOUBLES",
    "EDGES",
    "MODES",
    "PRODUCTS",
    "WEIGHTED",
    "bag_words",
    "lay_out_bags",
    "pool_at",
    "pool_bags",
    "pool_rest",
    "rows_of_bags",
]

types: Any = numba.types
_int64 = types.int64

# Constants of kernels. Words of bags: numbers; then the edges of bags, for each where it ends and
# the next begins; for each row its address, 0 while it is not known; which bags are still to be
# pooled; and room for one row.
(
    _POOL,
    _COUNT,
    _LEFT,
    _MODE,
    _CODEC,
    _DIM,
    _ROW_BYTES,
    _SWAPPED,
    _OUT,
    _WEIGHTS,
    _ASIDE,
    _ROWS_AT,
    _LEFT_AT,
    _ROOM_AT,
) = range(14)
EDGES = 14
_NOT_BEGUN = -1

# With weights PyTorch multiplies and adds in one step, rounded once; but it takes two where there
# is padding, or numbers are float64.
SUM, MEAN, MAX, WEIGHTED, PRODUCTS = range(5)
MODES = {"sum": SUM, "mean": MEAN, "max": MAX}
DOUBLES = 15  # in place of the number of a codec: rows of float64

_FLOAT32 = NUMBERS["float32"]

# How many rows before one is added the processor is told of it.
_AHEAD = 64
_LINE = 64


def bag_words(bags: int, ids: int, dim: int, row_bytes: int) -> int:
    """Return how many words are for so many bags, of so many ids together."""
    return EDGES + 2 * bags + 1 + ids + (dim + 1) // 2 + (row_bytes + 7) // 8


@brief
def lay_out_bags(
    words: np.ndarray,
    offsets: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
    ids: int,
    each: int,
    mode: int,
    codec: int,
    row_bytes: int,
    swapped: int,
    pool: int,
) -> int:
    """Write the words of bags, and return where they are; 0: the offsets are wrong.

    Right ones begin with 0, do not fall, and do not pass the number of ids.

    Parameters
    ----------
    words
        int64, as many as :func:`bag_words` says.
    offsets
        int64: where bags begin; a last one says where the last bag ends, if there is one more
        than there are bags.
    weights
        Of each id, of the dtype of `out`; or none.
    out
        (bags, dim) float32 or float64, to be filled. Its owner keeps it, as the weights, until
        the request is over.
    ids
        How many.
    each
        How many a bag has; -1: `offsets` say.
    mode
        SUM, MEAN, MAX, WEIGHTED or PRODUCTS.
    codec
        Of :data:`bandana_kv.codecs.rows.NUMBERS`, or DOUBLES.
    swapped
        How many bytes a number takes whose bytes are in the other order; 0: they are in ours.
    pool
        The address of :func:`pool_at`.
    """
    bags, dim = out.shape
    words[_POOL], words[_COUNT], words[_LEFT] = pool, bags, _NOT_BEGUN
    words[_MODE], words[_CODEC], words[_DIM] = mode, codec, dim
    words[_ROW_BYTES], words[_SWAPPED] = row_bytes, swapped
    words[_OUT], words[_WEIGHTS] = out.ctypes.data, weights.ctypes.data
    words[_ROWS_AT] = words.ctypes.data + 8 * (EDGES + bags + 1)
    words[_LEFT_AT] = words[_ROWS_AT] + 8 * ids
    words[_ROOM_AT] = words[_LEFT_AT] + 8 * bags
    before = 0
    for bag in range(bags + 1):
        if each >= 0:
            edge = bag * each
        elif bag < offsets.size:
            edge = offsets[bag]
        else:
            edge = ids
        if edge < before or edge > ids or (bag == 0 and edge != 0):
            return 0
        words[EDGES + bag] = before = edge
    return signed(words.ctypes.data)


@inlined
def rows_of_bags(scratch: np.ndarray) -> int:
    """Return the address of words that get that of each row, of a request that is pooled; or 0."""
    return signed(words_at(scratch[BAGS], EDGES)[_ROWS_AT]) if scratch[BAGS] else 0


@inlined
def pool_bags(scratch: np.ndarray, out: np.ndarray) -> None:
    """Pool the bags of which every row is known; copy rows of the others into `out`.

    `out` is uint8 (ids, row_bytes), the same in each step of the request.
    """
    bags = words_at(scratch[BAGS], EDGES)
    bags[_ASIDE] = out.ctypes.data
    # By its address: else all that look up or answer would be compiled with it in them.
    call_at(bags[_POOL], bags.ctypes.data, 0, 0)


@kernel
def pool_rest(scratch: np.ndarray, ids: int, out: np.ndarray) -> None:
    """Pool what is left; rows that were not known are in `out` by now."""
    rows = words_at(rows_of_bags(scratch), ids)
    for i in range(ids):
        if rows[i] == 0:
            rows[i] = out.ctypes.data + i * out.shape[1]
    pool_bags(scratch, out)


# -- pooling ------------------------------------------------------------------------------------


@inlined
def _first(row: np.ndarray, pooled: np.ndarray) -> None:
    for d in range(pooled.size):
        pooled[d] = row[d]


@inlined
def _most(row: np.ndarray, pooled: np.ndarray) -> None:
    """Keep the larger number of each column; as PyTorch has it, NaN is not larger than any."""
    for d in range(pooled.size):
        if row[d] > pooled[d]:
            pooled[d] = row[d]


@inlined
def _add(row: np.ndarray, pooled: np.ndarray) -> None:
    for d in range(pooled.size):
        pooled[d] += row[d]


@inlined
def _add_weighted(row: np.ndarray, weight: Any, pooled: np.ndarray) -> None:
    for d in range(pooled.size):
        pooled[d] = fused(row[d], weight, pooled[d])


@inlined
def _add_products(row: np.ndarray, weight: Any, pooled: np.ndarray) -> None:
    for d in range(pooled.size):
        pooled[d] += row[d] * weight


@inlined
def _take_in(
    mode: int, first: bool, row: np.ndarray, weights: np.ndarray, i: int, pooled: np.ndarray
) -> None:
    if mode == WEIGHTED:
        _add_weighted(row, weights[i], pooled)
    elif mode == PRODUCTS:
        _add_products(row, weights[i], pooled)
    elif mode != MAX:
        _add(row, pooled)
    elif first:
        _first(row, pooled)
    else:
        _most(row, pooled)


@inlined
def _in_order(address: int, room: int, row_bytes: int, size: int) -> int:
    """Put a row into `room` with the bytes of each number, `size`, the other way round."""
    row, turned = bytes_at(address, row_bytes), bytes_at(room, row_bytes)
    for first in range(0, row_bytes, size):
        for k in range(size):
            turned[first + k] = row[first + size - 1 - k]
    return room


@inlined
def _tell_ahead(rows: np.ndarray, i: int, row_bytes: int) -> None:
    """Tell the processor of a row that is added soon."""
    if i < rows.size and rows[i]:
        for line in range(0, row_bytes, _LINE):
            prefetch(rows[i] + line)
        prefetch(rows[i] + row_bytes - 1)


@inlined
def _add_floats(
    rows: np.ndarray, first: int, last: int, row_bytes: int, pooled: np.ndarray
) -> None:
    """Add rows of float32 as they lie, four at a time: in their order, as one by one."""
    dim, i = pooled.size, first
    while i + 4 <= last:
        for k in range(4):
            _tell_ahead(rows, i + k + _AHEAD, row_bytes)
        one, two = floats_at(rows[i], dim), floats_at(rows[i + 1], dim)
        three, four = floats_at(rows[i + 2], dim), floats_at(rows[i + 3], dim)
        for d in range(dim):
            pooled[d] = (((pooled[d] + one[d]) + two[d]) + three[d]) + four[d]
        i += 4
    while i < last:
        _tell_ahead(rows, i + _AHEAD, row_bytes)
        _add(floats_at(rows[i], dim), pooled)
        i += 1


@inlined
def _pool_bag(bags: np.ndarray, bag: int, ids: int) -> None:
    mode, codec, dim, row_bytes = bags[_MODE], bags[_CODEC], bags[_DIM], bags[_ROW_BYTES]
    first, last = bags[EDGES + bag], bags[EDGES + bag + 1]
    rows = words_at(bags[_ROWS_AT], ids)
    # As both, of which one is meant.
    single = floats_at(bags[_OUT] + 4 * bag * dim, dim)
    double = doubles_at(bags[_OUT] + 8 * bag * dim, dim)
    single_weights, double_weights = floats_at(bags[_WEIGHTS], ids), doubles_at(bags[_WEIGHTS], ids)
    room = floats_at(bags[_ROOM_AT], dim)
    for d in range(dim):
        if codec == DOUBLES:
            double[d] = 0
        else:
            single[d] = 0
    straight = mode <= MEAN and codec == _FLOAT32 and not bags[_SWAPPED]
    if straight:
        _add_floats(rows, first, last, row_bytes, single)
    for i in range(last if straight else first, last):
        _tell_ahead(rows, i + _AHEAD, row_bytes)
        at = rows[i]
        if bags[_SWAPPED]:
            turned = bags[_ROOM_AT] + (dim + 1) // 2 * 8
            at = _in_order(at, turned, row_bytes, bags[_SWAPPED])
        if codec == DOUBLES:
            _take_in(mode, i == first, doubles_at(at, dim), double_weights, i, double)
        else:
            row = floats_at(decoded(codec, at, row_bytes, room), dim)
            _take_in(mode, i == first, row, single_weights, i, single)
    if mode == MEAN and last > first:
        for d in range(dim):
            if codec == DOUBLES:
                double[d] /= np.float64(last - first)
            else:
                single[d] /= np.float32(last - first)


@inlined
def _set_aside(bags: np.ndarray, bag: int, ids: int) -> bool:
    """Return whether a row of a bag is not known; then copy aside those that are."""
    rows, row_bytes = words_at(bags[_ROWS_AT], ids), bags[_ROW_BYTES]
    first, last = bags[EDGES + bag], bags[EDGES + bag + 1]
    known = True
    for i in range(first, last):
        if rows[i] == 0:
            known = False
            break
    if known:
        return False
    for i in range(first, last):
        aside = bags[_ASIDE] + i * row_bytes
        if rows[i] and rows[i] != aside:
            copy(rows[i], aside, row_bytes)
            rows[i] = aside
    return True


@inlined
def pool(bags_at: int) -> int:
    """Pool the bags of which every row is known, and set aside what is of the others; return 0."""
    count = words_at(bags_at, EDGES)[_COUNT]
    bags = words_at(bags_at, EDGES + count + 1)
    ids = (bags[_LEFT_AT] - bags[_ROWS_AT]) // 8
    left = words_at(bags[_LEFT_AT], count)
    begun = bags[_LEFT] != _NOT_BEGUN
    kept = 0
    for k in range(bags[_LEFT] if begun else count):
        bag = left[k] if begun else k
        if _set_aside(bags, bag, ids):
            left[kept] = bag
            kept += 1
        else:
            _pool_bag(bags, bag, ids)
    bags[_LEFT] = kept
    return 0


@functools.cache
def pool_at() -> int:
    """Return the address of :func:`pool`, of which two more arguments are nothing."""

    @foreign(_int64(_int64, _int64, _int64))
    def called(bags_at: int, _first: int, _second: int) -> int:
        return pool(bags_at)

    address: int = called.address
    _kept.append(called)
    return address


_kept: list[Any] = []
