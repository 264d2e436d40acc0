"""Positions by id in as few bits as their number needs, and how kernels find one.

The index of ids is what a table costs in DRAM whatever the cache: for 128-byte rows and a
cache of 5 %, 32 bits a row would be as much as two thirds of it. Ten million rows need 24.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import inlined, kernel, signed

__all__ = ["bits_for", "pack", "position_at", "unpack", "words_for"]


@inlined
def bits_for(rows: int) -> int:
    """Return how many bits a position of a table of `rows` rows takes, 1 to 32."""
    bits = 1
    while (rows - 1) >> bits:
        bits += 1
    return bits


@inlined
def words_for(rows: int) -> int:
    """Return how many 64-bit words hold the positions of `rows` rows: one more than they fill.

    Two neighbouring words are read for each position.
    """
    return (rows * bits_for(rows) + 63) // 64 + 1


@inlined
def position_at(words: np.ndarray, bits: int, id: int) -> int:
    """Return the position of an id."""
    at = id * bits
    word, shift = at >> 6, np.uint64(at & 63)
    # A shift by 64 is not defined, so that the upper part is shifted twice.
    upper = (words[word + 1] << np.uint64(1)) << (np.uint64(63) - shift)
    both = (words[word] >> shift) | upper
    return signed(both & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1)))


@kernel
def _pack(positions: np.ndarray, bits: int, words: np.ndarray) -> None:
    for id in range(positions.size):
        at = id * bits
        word, shift = at >> 6, np.uint64(at & 63)
        words[word] |= np.uint64(positions[id]) << shift
        words[word + 1] |= (np.uint64(positions[id]) >> np.uint64(1)) >> (np.uint64(63) - shift)


@kernel
def _unpack(words: np.ndarray, bits: int, first: int, positions: np.ndarray) -> None:
    for i in range(positions.size):
        positions[i] = position_at(words, bits, first + i)


def pack(position_of_id: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return positions (rows,), each below `rows`, packed: uint64 (words_for(rows),)."""
    rows = position_of_id.size
    words = np.zeros(words_for(rows), np.uint64)
    _pack(position_of_id, bits_for(rows), words)
    return words


def unpack(
    words: NDArray[np.uint64], rows: int, first: int = 0, count: int | None = None
) -> NDArray[np.uint32]:
    """Return the positions of ids `first` to ``first + count``: uint32 (count,)."""
    positions = np.empty(rows - first if count is None else count, np.uint32)
    _unpack(words, bits_for(rows), first, positions)
    return positions
