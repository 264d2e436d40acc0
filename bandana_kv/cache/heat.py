"""Heat: how often the training log looked a row up, in one byte.

Counts up to 128 are kept exactly; above, sixteen levels a doubling reach past 30,000.
The order of counts is kept, so "looked up more than t times" is one byte compared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ALL",
    "NONE",
    "count_lookups",
    "counts_of_heat",
    "heat_by_position",
    "heat_of_counts",
    "least_heat",
]

# Constants of kernels.
ALL = 0
NONE = 256
_EXACT = 128
_LEVELS_PER_DOUBLING = 16
_CHUNK = 1 << 18


def count_lookups(ids: NDArray[np.integer], rows: int) -> NDArray[np.int64]:
    """Return how often each of `rows` ids occurs in `ids`: int64 (rows,).

    Cost: 8 bytes a row, and chunks of the log, which may be memory-mapped.
    """
    counts = np.zeros(rows, np.int64)
    chunk = 1 << 24
    for start in range(0, ids.size, chunk):
        counts += np.bincount(ids[start : start + chunk], minlength=rows)
    return counts


def heat_of_counts(counts: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the heat of each count: uint8 (n,), of `counts` (n,).

    Cost: a byte a count, and a few dozen MiB however many there are.
    """
    heat = np.empty(counts.size, np.uint8)
    for start in range(0, counts.size, _CHUNK):
        part = counts[start : start + _CHUNK]
        above = np.maximum(part, _EXACT).astype(np.float64) / _EXACT
        levels = _EXACT + np.floor(_LEVELS_PER_DOUBLING * np.log2(above))
        heat[start : start + _CHUNK] = np.where(part < _EXACT, part, np.minimum(levels, 255))
    return heat


def heat_by_position(
    ids: NDArray[np.integer], position_of_id: NDArray[np.uint32]
) -> NDArray[np.uint8]:
    """Return how hot a training log's lookups `ids` make each position: uint8 (rows,)."""
    heat = np.empty(position_of_id.size, np.uint8)
    heat[position_of_id] = heat_of_counts(count_lookups(ids, position_of_id.size))
    return heat


def counts_of_heat(heat: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return about the count behind each heat, the least that has it: float64 (n,)."""
    levels = np.maximum(heat.astype(np.float64) - _EXACT, 0.0)
    counts = np.minimum(heat, _EXACT) * 2.0 ** (levels / _LEVELS_PER_DOUBLING)
    return np.asarray(counts)


def least_heat(threshold: int) -> int:
    """Return the least heat of rows looked up more than `threshold` times.

    Exact up to 128; above, the threshold acts as the next level of heat does.
    """
    return int(heat_of_counts(np.array([threshold]))[0]) + 1
