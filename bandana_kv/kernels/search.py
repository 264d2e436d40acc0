"""Looking for a number in sorted ones."""

from __future__ import annotations

import numpy as np

from bandana_kv.kernels.compile import inlined

__all__ = ["index_in"]


@inlined
def index_in(ordered: np.ndarray, value: int) -> int:
    """Return where `value` is, or would be, in sorted numbers."""
    low, high = 0, ordered.size
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low
