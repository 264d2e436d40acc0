"""Rows of arrays in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.rows.table import RowSource

__all__ = ["ArrayRows"]


class ArrayRows(RowSource):
    """Rows of an array (rows, dim) in memory, however it lies there; it is not copied.

    Raises
    ------
    InputError
        Not two-dimensional, empty, or not numeric.
    """

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._describe(name, array.shape, array.dtype)
        self._array = array

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes)."""
        out.view(self.dtype)[...] = self._array[ids]
