"""Rows of 8-bit numbers, each row with a scale and a bias of float32 behind it.

The layout of ``quantized::embedding_bag_byte_prepack`` of PyTorch, byte for byte: numbers, scale,
bias. A row comes back as ``number * scale + bias``, rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bandana_kv.codecs.bits import float32_of, fused
from bandana_kv.codecs.contract import Numbers, Raw
from bandana_kv.codecs.unfit import refuse_rows
from bandana_kv.kernels.compile import brief, inlined, kernel

__all__ = ["Int8Rowwise", "bytes_of"]

_FEW_NUMBERS = 8192
_BEHIND_BYTES = 8
_STEPS, _LEAST_RANGE = np.float32(255.0), np.float32(1e-8)


@inlined
def _word(row: np.ndarray, at: int) -> float:
    bits = np.uint32(0)
    for k in range(4):
        bits |= np.uint32(row[at + k]) << np.uint32(8 * k)
    word: float = float32_of(np.uint32(bits))
    return word


@inlined
def bytes_of(row: np.ndarray, out: np.ndarray) -> None:
    """Put what a row, uint8 (row_bytes,), stands for into `out`, float32 (dim,)."""
    dim = out.size
    scale, bias = _word(row, dim), _word(row, dim + 4)
    for k in range(dim):
        out[k] = fused(np.float32(row[k]), scale, bias)


@inlined
def _decode(raw: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.shape[0]):
        bytes_of(raw[i], out[i])


@brief
def _decode_few(raw: np.ndarray, out: np.ndarray) -> None:
    _decode(raw, out)


@kernel
def _decode_many(raw: np.ndarray, out: np.ndarray) -> None:
    _decode(raw, out)


class Int8Rowwise:
    """256 steps from the least to the largest number of a row; only finite rows."""

    name = "int8-rowwise"
    exact: np.dtype[Any] | None = None

    def row_bytes(self, dim: int) -> int:
        """Return how many bytes a row takes."""
        return dim + _BEHIND_BYTES

    def dim_of(self, row_bytes: int) -> int:
        """Return of how many numbers a row is."""
        return max(0, row_bytes - _BEHIND_BYTES)

    def encode(self, rows: Numbers) -> Raw:
        """Return rows at the nearest steps, ties to even."""
        low, high = rows.min(axis=1), rows.max(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            span = high - low
        refuse_rows(~np.isfinite(span), self.name, "its numbers, or their range, are not finite")
        steps = _STEPS / (span + _LEAST_RANGE)
        raw = np.empty((len(rows), self.row_bytes(rows.shape[1])), np.uint8)
        raw[:, :-_BEHIND_BYTES] = np.rint((rows - low[:, None]) * steps[:, None])
        behind = np.stack([span / _STEPS, low], axis=1).astype("<f4")
        raw[:, -_BEHIND_BYTES:] = behind.view(np.uint8)
        return raw

    def decode(self, raw: Raw, out: Numbers) -> None:
        """Put what the steps stand for into `out`."""
        (_decode_few if out.size <= _FEW_NUMBERS else _decode_many)(raw, out)
