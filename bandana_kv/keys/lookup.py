"""Keys to ids, compiled, many at a time.

An index is for kernels one array of words (:mod:`bandana_kv.kernels.addresses` says why). Slots lie
where memory is slow to come from, so those of keys some way ahead are asked for, and for each key a
few slots are compared without a branch: how far from home a key lies the processor cannot foresee.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.addresses import prefetch, uint32s_at, word_anywhere
from bandana_kv.kernels.compile import brief, inlined, kernel, signed
from bandana_kv.keys.slots import EMPTY, HALVES, SPARE_SLOTS, home, rank, rank_at, second_at

__all__ = ["FEW", "ids_of_few", "ids_of_many", "words_of_index"]

FEW = 100
"""Up to so many keys are looked up with the GIL kept: to give it away would cost more."""

# Indices into the words of an index.
_ADDRESS, _SLOTS, _HOMES, _KEYS, _SEED, _WIDE = range(6)

_AHEAD = 24
_LINE = 64
# Slots that are compared at once: those of the lines that were asked for.
_WINDOW, _BROAD_WINDOW = 8, 6
_EMPTY = np.int64(EMPTY)
_NARROW, _BROAD = HALVES[1], HALVES[2]


def words_of_index(
    slots: NDArray[np.uint32], width: int, homes: int, keys: int, seed: int
) -> NDArray[np.int64]:
    """Return what kernels know an index by; whoever has it keeps `slots` alive.

    Parameters
    ----------
    slots
        uint32 (slots * ``HALVES[width]``,), C-contiguous.
    width
        Words of 64 bits a key.
    homes, keys, seed
        As the index was built.
    """
    words = np.zeros(6, np.int64)
    words[_ADDRESS] = slots.ctypes.data
    words[_SLOTS] = slots.size // HALVES[width]
    words[_HOMES], words[_KEYS], words[_WIDE] = homes, keys, int(width == 2)
    words.view(np.uint64)[_SEED] = seed
    return words


@inlined
def _first_not_less(address: int, halves: int, count: int, at: int, wanted: np.uint64) -> int:
    """Return the first slot from `at` on whose rank is not less; -1: the file is damaged."""
    window = _WINDOW if halves == _NARROW else _BROAD_WINDOW
    while at + SPARE_SLOTS <= count:
        less, first = 0, address + 4 * halves * at
        for i in range(window):
            less += 1 if word_anywhere(first + 4 * halves * i) < wanted else 0
        at += less
        if less < window:
            return at
    return -1


@inlined
def _rank_of(words: np.ndarray, i: int, wide: bool, seed: np.uint64) -> np.uint64:
    if wide:
        return rank(words[2 * i], words[2 * i + 1], True, seed)
    return rank(words[i], words[i], False, seed)


@inlined
def _expect(index: np.ndarray, halves: int, wanted: np.uint64) -> np.uint64:
    """Have the slots ready that will be compared with a rank, which is returned."""
    first = index[_ADDRESS] + 4 * halves * home(wanted, index[_HOMES])
    prefetch(first)
    prefetch(first + _LINE)
    prefetch(first + 2 * _LINE)
    return wanted


@inlined
def _ids_of(index: np.ndarray, words: np.ndarray, ids: np.ndarray, wide: bool, halves: int) -> int:
    count, homes, keys = index[_SLOTS], index[_HOMES], index[_KEYS]
    seed = np.uint64(index[_SEED])
    slots = uint32s_at(index[_ADDRESS], halves * count)
    for i in range(min(_AHEAD, ids.size)):
        ids[i] = signed(_expect(index, halves, _rank_of(words, i, wide, seed)))
    damaged = 0
    for i in range(ids.size):
        coming = i + _AHEAD
        if coming < ids.size:
            # Until there is an id its place holds the rank.
            ids[coming] = signed(_expect(index, halves, _rank_of(words, coming, wide, seed)))
        wanted = np.uint64(ids[i])
        at = halves * _first_not_less(index[_ADDRESS], halves, count, home(wanted, homes), wanted)
        if wide:
            # Ranks of two keys may be the same here, though hardly ever are.
            while at >= 0 and rank_at(slots, at) == wanted and signed(slots[at + 4]) != _EMPTY:
                if second_at(slots, at) == words[2 * i + 1]:
                    break
                at = at + halves if at + halves < halves * count else -1
        ids[i] = -1
        if at < 0:
            damaged = 1
        elif rank_at(slots, at) == wanted:
            found = signed(slots[at + halves - 1])
            if found < keys:
                ids[i] = found
            elif found != _EMPTY:
                damaged = 1
    return damaged


@inlined
def _look_up(index: np.ndarray, words: np.ndarray, ids: np.ndarray) -> int:
    if index[_WIDE]:
        return _ids_of(index, words, ids, True, _BROAD)
    return _ids_of(index, words, ids, False, _NARROW)


@brief
def ids_of_few(index: np.ndarray, words: np.ndarray, ids: np.ndarray) -> int:
    """Put the id of each key into `ids`, -1 where there is none; keeps the GIL.

    Parameters
    ----------
    index
        int64 (6,), of :func:`words_of_index`.
    words
        uint64 (n,), or (2 n,) with both words of a key together.
    ids
        int64 (n,).

    Returns
    -------
    int
        0, or 1 if the file turned out to be damaged.
    """
    return _look_up(index, words, ids)


@kernel
def ids_of_many(index: np.ndarray, words: np.ndarray, ids: np.ndarray) -> int:
    """Do what :func:`ids_of_few` does, without the GIL."""
    return _look_up(index, words, ids)
