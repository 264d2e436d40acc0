"""The rows of a table as numbers to compare, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bandana_kv.rows.files import RowSource

__all__ = ["Floats"]

_CHUNK_BYTES = 16 << 20
_LARGEST = 1e6  # of a scaled number; squares of it still add up in float32


class Floats:
    """Rows as float32, scaled by a power of two so that their squares stay in range.

    NaN counts as 0, complex numbers as two. Distances keep their order, for all numbers are
    scaled alike.

    Parameters
    ----------
    source
        The rows.
    sample
        Integer (n,): rows from which the scale is taken; numbers a million times the
        largest of them are cut.
    """

    def __init__(self, source: RowSource, sample: NDArray[np.integer]) -> None:
        self._source = source
        self._scale = np.float32(1)
        largest = max(
            (float(np.abs(part).max(initial=0)) for part in self.chunks(sample)), default=0
        )
        if largest > 0:
            self._scale = np.float32(2.0 ** -int(np.clip(np.frexp(largest)[1], -120, 120)))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as float32."""
        return 4 * self._source.dim * (2 if self._source.dtype.kind == "c" else 1)

    def chunks(self, ids: NDArray[np.integer]) -> Iterator[NDArray[np.float32]]:
        """Yield the rows of `ids`, float32 (some, dim), a chunk of at most 16 MiB at a time."""
        few = max(1, _CHUNK_BYTES // max(self.row_bytes, self._source.row_bytes))
        for begin in range(0, ids.size, few):
            yield self._read(ids[begin : begin + few])

    def read(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the rows of `ids`, float32 (n, dim)."""
        return np.concatenate(list(self.chunks(ids)))

    def _read(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        source = self._source
        raw = np.empty((ids.size, source.row_bytes), np.uint8)
        source.gather(ids, raw)
        numbers = raw.view(source.dtype)
        if source.dtype.kind == "c":
            numbers = numbers.view(numbers.real.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            floats: NDArray[np.float32] = numbers.astype(np.float32) * self._scale
        np.nan_to_num(floats, copy=False, nan=0.0)
        # until the scale is known there is nothing to cut
        limit = _LARGEST if self._scale != 1 else np.finfo(np.float32).max
        np.clip(floats, -limit, limit, out=floats)
        return floats
