"""Where a key lies among the slots of an index: for kernels that build it, and that look up.

A key's *rank* is its bits, stirred: a bijection of 64 bits, so that of two integers none has the
rank of the other. Slots are in the order of ranks, and a key's *home* is the slot at which its rank
would lie if ranks were spread evenly: ``rank * homes / 2**64``. It lies there or at the first free
slot behind. So whoever looks up goes on from the home as long as ranks are less: a key that is not
there is missed after as few steps as one that is there is found.

A slot is words of 32 bits: two of the rank, two of the second word where a key has one, and the id.
One that is empty has all bits set, and is met as a rank that is greater.
"""

from __future__ import annotations

import numpy as np

from bandana_kv.kernels.compile import inlined, signed

__all__ = ["EMPTY", "HALVES", "SPARE_SLOTS", "first_of", "home", "rank", "rank_at", "second_at"]

HALVES = (0, 3, 5)
"""Words of 32 bits that a slot takes, by the 64-bit words of a key."""

EMPTY = 0xFFFFFFFF
"""The id of a slot that has none."""

SPARE_SLOTS = 8
"""Empty slots behind the last one, so that as many can be looked at without asking for the end."""

_STIR = 0x9E3779B97F4A7C15
_STIR_AGAIN = 0xD6E8FEB86659FD93
_FIRST, _SECOND = np.uint64(_STIR), np.uint64(_STIR_AGAIN)
_FIRST_BACK = np.uint64(pow(_STIR, -1, 1 << 64))
_SECOND_BACK = np.uint64(pow(_STIR_AGAIN, -1, 1 << 64))
_HALF = np.uint64(32)


@inlined
def _stirred(word: np.uint64, seed: np.uint64) -> np.uint64:
    half = (word ^ seed) * _FIRST
    return (half ^ (half >> _HALF)) * _SECOND


@inlined
def _stirred_back(word: np.uint64, seed: np.uint64) -> np.uint64:
    half = word * _SECOND_BACK
    return ((half ^ (half >> _HALF)) * _FIRST_BACK) ^ seed


@inlined
def rank(first: np.uint64, second: np.uint64, wide: bool, seed: np.uint64) -> np.uint64:
    """Return the rank of a key, all uint64; `second` counts only if `wide`.

    The second word is stirred into the first, so that keys that have the first in common are
    spread, too.
    """
    if wide:
        first ^= _stirred(second, seed)
    return _stirred(first, seed)


@inlined
def first_of(rank: np.uint64, second: np.uint64, wide: bool, seed: np.uint64) -> np.uint64:
    """Return the first word of the key that has a rank."""
    first = _stirred_back(rank, seed)
    if wide:
        first ^= _stirred(second, seed)
    return first


@inlined
def home(rank: np.uint64, homes: int) -> int:
    """Return at which slot of `homes`, at most 2^32, a rank is at home."""
    return signed(((rank >> _HALF) * np.uint64(homes)) >> _HALF)


@inlined
def rank_at(slots: np.ndarray, at: int) -> np.uint64:
    """Return the rank in the slot that begins at ``slots[at]``, uint32."""
    return np.uint64(slots[at]) | (np.uint64(slots[at + 1]) << _HALF)


@inlined
def second_at(slots: np.ndarray, at: int) -> np.uint64:
    """Return the second word in the slot that begins at ``slots[at]``, where keys have one."""
    return np.uint64(slots[at + 2]) | (np.uint64(slots[at + 3]) << _HALF)
