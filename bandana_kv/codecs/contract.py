"""What a codec of rows must offer.

A codec stands in a file of its own and is named in :mod:`bandana_kv.codecs.registry`. Its layout of
bytes is for ever: a table names its codec, and another layout takes another name.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Codec", "Numbers", "Raw"]

Raw = NDArray[np.uint8]
"""Rows as they lie: (n, row_bytes), C-contiguous."""

Numbers = NDArray[np.float32]
"""Rows as they are meant: (n, dim), C-contiguous."""


class Codec(Protocol):
    """Rows of float32 as bytes, each row by itself, and all of one length.

    Attributes
    ----------
    name : str
        As :func:`bandana_kv.load` takes it for `store_as`.
    exact : dtype or None
        Numbers that come back as they went in; None: rows come back near to what they were.
    """

    name: str
    exact: np.dtype[Any] | None

    def row_bytes(self, dim: int) -> int:
        """Return how many bytes a row of `dim` numbers takes."""

    def dim_of(self, row_bytes: int) -> int:
        """Return of how many numbers a row of so many bytes is, at most; 0: of none."""

    def encode(self, rows: Numbers) -> Raw:
        """Return rows as they are stored.

        Raises
        ------
        UnfitError
            Names the first row that the codec cannot hold, and why.
        """

    def decode(self, raw: Raw, out: Numbers) -> None:
        """Put rows into `out`, (n, dim). *Cost*: one compiled pass; many give the GIL away."""
