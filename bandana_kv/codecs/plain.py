"""Rows of float32 as they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from bandana_kv.codecs.contract import Numbers, Raw

__all__ = ["Float32"]


class Float32:
    """float32, little-endian."""

    name = "float32"
    exact: np.dtype[Any] | None = np.dtype(np.float32)

    def row_bytes(self, dim: int) -> int:
        """Return how many bytes a row takes."""
        return 4 * dim

    def dim_of(self, row_bytes: int) -> int:
        """Return of how many numbers a row is."""
        return row_bytes // 4

    def encode(self, rows: Numbers) -> Raw:
        """Return the rows themselves."""
        return np.ascontiguousarray(rows, "<f4").view(np.uint8)

    def decode(self, raw: Raw, out: Numbers) -> None:
        """Put the same numbers into `out`."""
        out.view(np.uint8)[...] = raw
