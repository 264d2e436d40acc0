"""Rows of 4-bit numbers, each row with a scale and a bias of float16 behind it.

The layout of ``quantized::embedding_bag_4bit_prepack`` of PyTorch, byte for byte: numbers, the even
column in the low half of a byte; scale; bias. A row comes back as ``number * scale + bias``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bandana_kv.codecs.bits import fused, half_of
from bandana_kv.codecs.contract import Numbers, Raw
from bandana_kv.codecs.unfit import refuse_rows
from bandana_kv.kernels.compile import brief, inlined, kernel

__all__ = ["Int4Rowwise", "nibbles_of"]

_FEW_NUMBERS = 8192
_BEHIND_BYTES = 4
_STEPS, _ONE = np.float32(15.0), np.float32(1.0)


@inlined
def _word(row: np.ndarray, at: int) -> float:
    return half_of(np.uint32(row[at]) | (np.uint32(row[at + 1]) << np.uint32(8)))


@inlined
def nibbles_of(row: np.ndarray, out: np.ndarray) -> None:
    """Put what a row, uint8 (row_bytes,), stands for into `out`, float32 (dim,)."""
    dim = out.size
    behind = (dim + 1) // 2
    scale, bias = _word(row, behind), _word(row, behind + 2)
    for k in range(dim // 2):
        both = row[k]
        out[2 * k] = fused(np.float32(both & np.uint8(15)), scale, bias)
        out[2 * k + 1] = fused(np.float32(both >> np.uint8(4)), scale, bias)
    if dim & 1:
        out[dim - 1] = fused(np.float32(row[behind - 1] & np.uint8(15)), scale, bias)


@inlined
def _decode(raw: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.shape[0]):
        nibbles_of(raw[i], out[i])


@brief
def _decode_few(raw: np.ndarray, out: np.ndarray) -> None:
    _decode(raw, out)


@kernel
def _decode_many(raw: np.ndarray, out: np.ndarray) -> None:
    _decode(raw, out)


class Int4Rowwise:
    """16 steps from the least to the largest number of a row; only rows that halves can span."""

    name = "int4-rowwise"
    exact: np.dtype[Any] | None = None

    def row_bytes(self, dim: int) -> int:
        """Return how many bytes a row takes."""
        return (dim + 1) // 2 + _BEHIND_BYTES

    def dim_of(self, row_bytes: int) -> int:
        """Return of how many numbers a row is, at most; it may be one less."""
        return 2 * max(0, row_bytes - _BEHIND_BYTES)

    def encode(self, rows: Numbers) -> Raw:
        """Return rows at the nearest steps, ties to even."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            bias = rows.min(axis=1).astype("<f2")
            low = bias.astype(np.float32)
            span = rows.max(axis=1) - low
            scale = np.where(span == 0, _ONE, span / _STEPS).astype("<f2")
            bad = ~np.isfinite(bias) | ~np.isfinite(span) | ~np.isfinite(scale)
            refuse_rows(bad, self.name, "its numbers, or their range, are beyond those of halves")
            wide = scale.astype(np.float32)
            # A scale that a half cannot hold, or whose inverse is infinite: all is one number.
            wide[(wide == 0) | np.isinf(_ONE / wide)] = _ONE
            numbers = np.rint((rows - low[:, None]) * (_ONE / wide)[:, None])
        numbers = np.clip(numbers, 0, 15).astype(np.uint8)
        raw = np.zeros((len(rows), self.row_bytes(rows.shape[1])), np.uint8)
        data = raw[:, :-_BEHIND_BYTES]
        data[:] = numbers[:, ::2]
        data[:, : rows.shape[1] // 2] |= numbers[:, 1::2] << np.uint8(4)
        behind = np.stack([wide.astype("<f2"), bias], axis=1)
        raw[:, -_BEHIND_BYTES:] = behind.view(np.uint8)
        return raw

    def decode(self, raw: Raw, out: Numbers) -> None:
        """Put what the steps stand for into `out`."""
        (_decode_few if out.size <= _FEW_NUMBERS else _decode_many)(raw, out)
