"""Rows of 16-bit numbers: IEEE halves, and the upper halves of float32."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from bandana_kv.codecs.bits import float32_of, half_of
from bandana_kv.codecs.contract import Numbers, Raw
from bandana_kv.codecs.unfit import refuse_rows
from bandana_kv.kernels.compile import brief, inlined, kernel

__all__ = ["Bfloat16", "Float16", "halves_of", "uppers_of"]

_FEW_NUMBERS = 8192


@inlined
def halves_of(row: np.ndarray, out: np.ndarray) -> None:
    """Put a row of halves, uint16 (dim,), into `out`, float32 (dim,)."""
    for k in range(out.size):
        out[k] = half_of(row[k])


@inlined
def uppers_of(row: np.ndarray, out: np.ndarray) -> None:
    """Put a row of upper halves, uint16 (dim,), into `out`, float32 (dim,)."""
    for k in range(out.size):
        out[k] = float32_of(np.uint32(np.uint32(row[k]) << np.uint32(16)))


@inlined
def _halves(raw: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.shape[0]):
        halves_of(raw[i], out[i])


@inlined
def _uppers(raw: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.shape[0]):
        uppers_of(raw[i], out[i])


@brief
def _few_halves(raw: np.ndarray, out: np.ndarray) -> None:
    _halves(raw, out)


@kernel
def _many_halves(raw: np.ndarray, out: np.ndarray) -> None:
    _halves(raw, out)


@brief
def _few_uppers(raw: np.ndarray, out: np.ndarray) -> None:
    _uppers(raw, out)


@kernel
def _many_uppers(raw: np.ndarray, out: np.ndarray) -> None:
    _uppers(raw, out)


class Float16:
    """IEEE 754 halves; finite numbers from 65,520 up are refused, infinities and NaN kept."""

    name = "float16"
    exact: np.dtype[Any] | None = np.dtype(np.float16)
    _most = "65504 is the largest half"
    _number = np.dtype(np.float16)

    def row_bytes(self, dim: int) -> int:
        """Return how many bytes a row takes."""
        return 2 * dim

    def dim_of(self, row_bytes: int) -> int:
        """Return of how many numbers a row is."""
        return row_bytes // 2

    def encode(self, rows: Numbers) -> Raw:
        """Return rows rounded to the nearest, ties to even."""
        with np.errstate(over="ignore", invalid="ignore"):  # a NaN may be a signalling one
            rounded = rows.astype(self._number)
        lost = np.asarray((np.isinf(rounded) & ~np.isinf(rows)).any(axis=1))
        refuse_rows(lost, self.name, f"a number in it is too large; {self._most}")
        return rounded.view(np.uint8)

    def decode(self, raw: Raw, out: Numbers) -> None:
        """Put the same numbers into `out`."""
        few = out.size <= _FEW_NUMBERS
        (_few_halves if few else _many_halves)(raw.view(np.uint16), out)


class Bfloat16(Float16):
    """The upper half of float32: its range, and two to three digits."""

    name = "bfloat16"
    exact = np.dtype(ml_dtypes.bfloat16)
    _most = "3.39e38 is the largest bfloat16"
    _number = np.dtype(ml_dtypes.bfloat16)

    def decode(self, raw: Raw, out: Numbers) -> None:
        """Put the same numbers into `out`."""
        few = out.size <= _FEW_NUMBERS
        (_few_uppers if few else _many_uppers)(raw.view(np.uint16), out)
