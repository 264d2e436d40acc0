"""Live heat: how often a row was asked for lately, in one byte, learnt and forgotten.

Every row of the table has a byte, cached or not, seeded from the training log. A code
stands for ``(BASE**code - 1) / (BASE - 1)`` units of an eighth of a lookup; it rises by
chance, so that the expected value is exact (Morris, CACM 1978). All codes are halved once
in a half-life, a few at every request, so that no request waits for a sweep: what the
training log or a fashion left behind fades (ageing as in TinyLFU, Einziger et al., ACM
TOS 2017, which keeps a sketch; here the byte is exact in what it counts).

A hit is worth a lookup. Rows missed together in one block share a single lookup's worth:
they cost one read between them, so each earns less of DRAM than a row that causes a read
alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.heat import counts_of_heat
from bandana_kv.kernels.compile import inlined, kernel, signed

__all__ = ["age", "bump", "credit", "random32", "seeded"]

_BASE = 1.03
_UNITS = 8
_CODES = 256
_ONE = 2.0**32


def _split(codes: NDArray[np.floating[Any]]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Return each value's whole code below, and the chance of the next one, of 2**32."""
    values = _VALUES
    below = np.clip(np.searchsorted(values, codes, "right") - 1, 0, _CODES - 2)
    gap = values[below + 1] - values[below]
    chance = np.clip((codes - values[below]) / gap, 0.0, 1.0 - 1.0 / _ONE)
    return below.astype(np.uint8), (chance * _ONE).astype(np.uint32)


_VALUES = (_BASE ** np.arange(_CODES) - 1.0) / (_BASE - 1.0)
_HIT_CODE, _HIT_CHANCE = _split(_VALUES + _UNITS)
_HALF_CODE, _HALF_CHANCE = _split(_VALUES / 2.0)


def seeded(heat: NDArray[np.uint8], half_life_lookups: int, weight: float) -> NDArray[np.uint8]:
    """Return live heat as a training log of steady traffic would have left it.

    Parameters
    ----------
    heat
        uint8 (rows,), by position: :func:`bandana_kv.cache.heat.heat_of_counts` of the log's
        lookups.
    half_life_lookups
        Lookups after which a row that nobody asks for is half as hot.
    weight
        1: believe the log as if it had ended now; 0: not at all.

    Returns
    -------
    ndarray
        uint8 (rows,), private. Cost: a byte a row read and one written.
    """
    levels = counts_of_heat(np.arange(_CODES, dtype=np.uint8))
    rows_at = np.zeros(_CODES, np.int64)
    _count_levels(heat, rows_at)
    lookups = max(1.0, float(rows_at @ levels))
    steady = half_life_lookups / math.log(2)
    units = levels * (_UNITS * weight * steady / lookups)
    # In a table of many cold rows a fraction of a unit would be lost by rounding down.
    codes = np.abs(_VALUES[:, None] - units[None, :]).argmin(axis=0).astype(np.uint8)
    live = np.empty_like(heat)
    _translate(heat, codes, live)
    return live


@kernel
def _count_levels(heat: np.ndarray, rows_at: np.ndarray) -> None:
    for position in range(heat.size):
        rows_at[heat[position]] += 1


@kernel
def _translate(heat: np.ndarray, codes: np.ndarray, live: np.ndarray) -> None:
    for position in range(heat.size):
        live[position] = codes[heat[position]]


@inlined
def random32(number: int) -> int:
    """Return 32 bits that look random and depend on `number` alone (SplitMix64's finish)."""
    bits = np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return signed((bits ^ (bits >> np.uint64(31))) >> np.uint64(32))


@inlined
def bump(live: np.ndarray, position: int, number: int) -> None:
    """Add a lookup to a row's heat; `number` decides the chance."""
    code = live[position]
    raised = _HIT_CODE[code] + (random32(number) < np.int64(_HIT_CHANCE[code]))
    if raised != code:  # a line that is not written stays with all who read it
        live[position] = raised


@inlined
def credit(live: np.ndarray, position: int, together: int, number: int) -> None:
    """Add a row's part of the read that it shared with `together` missed rows, itself included."""
    code = np.int64(live[position])
    value = _VALUES[code] + _UNITS / together
    while code < _CODES - 2 and _VALUES[code + 1] <= value:
        code += 1
    chance = (value - _VALUES[code]) / (_VALUES[code + 1] - _VALUES[code])
    live[position] = code + (random32(number) < chance * _ONE)


@inlined
def age(live: np.ndarray, first: int, last: int) -> None:
    """Halve the heat of the rows that come next, from step `first` to `last` of the sweep."""
    rows = live.size
    for step in range(max(first, last - rows), last):
        code = live[step % rows]
        if code:
            lower = _HALF_CODE[code]
            live[step % rows] = lower + (random32(step) < np.int64(_HALF_CHANCE[code]))
