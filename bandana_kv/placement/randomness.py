"""Random numbers that depend on a seed and a place in the work, not on who does it when."""

from __future__ import annotations

import numpy as np

from bandana_kv.kernels.compile import kernel

__all__ = ["salted", "scramble"]


@kernel
def scramble(word: np.uint64) -> np.uint64:
    """Return 64 well mixed bits of `word` (the finaliser of splitmix64, Steele et al. 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def salted(seed: int, number: int) -> np.uint64:
    """Return a seed of its own for piece `number` of the work, for use outside kernels."""
    word = (seed + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    return np.uint64(scramble(np.uint64(word)))
