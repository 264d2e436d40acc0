"""An array that grows at its end, for readers that learn the length at the end of the file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Growing"]

_FIRST_ITEMS = 1024


class Growing:
    """A one-dimensional array that grows in place.

    Parameters
    ----------
    dtype
        Of the items.

    Notes
    -----
    Lists of chunks would be joined at the end, with two copies in memory; growing in
    place moves pages instead of bytes.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._array: NDArray[Any] = np.empty(_FIRST_ITEMS, dtype)
        self.size = 0

    def append(self, values: NDArray[Any]) -> None:
        """Copy `values` (n,) to the end."""
        end = self.size + values.size
        if end > self._array.size:
            self._resize(max(end, self._array.size * 3 // 2))
        self._array[self.size : end] = values
        self.size = end

    def done(self) -> NDArray[Any]:
        """Return the array, cut to what was appended; nothing may be appended later."""
        self._resize(self.size)
        return self._array

    def _resize(self, items: int) -> None:
        # No reference check: views of the array never leave append().
        self._array.resize(items, refcheck=False)
