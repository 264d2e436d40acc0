"""Rows on their way into blocks: encoded as they stream, and what that costs them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.codecs import Codec
from bandana_kv.codecs.unfit import encoded
from bandana_kv.disk.manifest import Loss
from bandana_kv.errors import InputError
from bandana_kv.rows.table import RowSource

__all__ = ["EncodedRows", "StoredRows"]

_CHUNK_BYTES = 32 << 20
_WORST = 10


class EncodedRows(RowSource):
    """Rows that were encoded before, as numbers: (rows, dim) of float32.

    Raises
    ------
    InputError
        They are no bytes, or too few for a row.
    """

    def __init__(self, name: str, source: RowSource, codec: Codec) -> None:
        dim = codec.dim_of(source.row_bytes)
        if source.dtype != np.uint8 or dim < 1 or codec.row_bytes(dim) != source.row_bytes:
            raise InputError(
                f"{name}: {source.dim} {source.dtype} a row are no rows of {codec.name}, whose "
                "bytes are uint8 (rows, row_bytes)"
            )
        self.rows, self.dim, self.dtype = source.rows, dim, np.dtype(np.float32)
        self._source, self._codec = source, codec

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Decode the rows of `ids` (n,) into `out`, uint8 (n, row_bytes)."""
        raw = np.empty((ids.size, self._source.row_bytes), np.uint8)
        self._source.gather(ids, raw)
        self._codec.decode(raw, out.view(np.float32))

    def _read_keys(self) -> NDArray[Any] | None:
        return self._source.keys


class StoredRows(RowSource):
    """Rows of a source as a codec stores them; `gather` gives their bytes.

    Parameters
    ----------
    name
        For messages.
    source
        Of floats.
    codec
        How they are stored.

    Raises
    ------
    InputError
        The rows are no floats.
    """

    def __init__(self, name: str, source: RowSource, codec: Codec) -> None:
        if source.dtype.kind != "f" and source.dtype != codec.exact:
            raise InputError(
                f"{name}: rows of {source.dtype} cannot be stored as {codec.name}; floats can, and "
                f"uint8 that are {codec.name} already as Rows(values, encoded={codec.name!r})"
            )
        self.rows, self.dim, self.dtype = source.rows, source.dim, np.dtype(np.float32)
        self._name, self._source, self._codec = name, source, codec
        self._lost = _Lost()

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is stored."""
        return self._codec.row_bytes(self.dim)

    @property
    def loss(self) -> Loss:
        """What the rows that were gathered have lost."""
        return self._lost.total()

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Put the rows of `ids` (n,), encoded, into `out`, uint8 (n, row_bytes).

        Raises
        ------
        InputError
            Names the first row that the codec cannot hold.
        """
        step = max(1, _CHUNK_BYTES // max(4 * self.dim, self._source.row_bytes))
        for first in range(0, ids.size, step):
            part = ids[first : first + step]
            numbers = self._numbers(part)
            raw = encoded(self._codec, self._name, part, numbers)
            out[first : first + part.size] = raw
            back = np.empty_like(numbers)
            self._codec.decode(raw, back)
            self._lost.note(part, numbers, back)

    def _numbers(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        held = np.empty((ids.size, self._source.row_bytes), np.uint8)
        self._source.gather(ids, held)
        given: NDArray[Any] = held.view(self._source.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = np.ascontiguousarray(given, np.float32)
        if given.dtype.itemsize > 4:
            bad = (np.isfinite(given) & ~np.isfinite(numbers)).any(axis=1)
            if bad.any():
                raise InputError(
                    f"{self._name}: the row of id {int(ids[bad.argmax()])} has a number beyond "
                    f"those of float32, and cannot be stored as {self._codec.name}"
                )
        return numbers


class _Lost:
    """Adds up what encoding costs, part by part."""

    def __init__(self) -> None:
        self._max = self._squares = self._cosines = 0.0
        self._numbers = self._directed = 0
        self._worst: list[tuple[float, int]] = []

    def note(
        self, ids: NDArray[np.integer], rows: NDArray[np.float32], back: NDArray[np.float32]
    ) -> None:
        """Count rows (n, dim) of `ids`, and what came back of them."""
        with np.errstate(invalid="ignore"):  # infinities and NaN, where a codec keeps them
            error = np.nan_to_num(back.astype(np.float64) - rows, nan=0.0, posinf=0.0, neginf=0.0)
        self._max = max(self._max, float(np.abs(error).max(initial=0.0)))
        self._squares += float(np.square(error).sum())
        self._numbers += error.size
        whole = np.isfinite(rows).all(axis=1) & rows.any(axis=1)
        a, b = rows[whole].astype(np.float64), back[whole].astype(np.float64)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = np.einsum("ij,ij->i", a, b) / np.where(lengths > 0, lengths, 1.0)
        cosines = np.minimum(cosines, 1.0)
        self._cosines += float(cosines.sum())
        self._directed += cosines.size
        least = np.argsort(cosines, kind="stable")[:_WORST]
        found = zip(cosines[least].tolist(), ids[whole][least].tolist(), strict=True)
        # Copies of rows are counted like others, but named once.
        self._worst = sorted({*self._worst, *found})[:_WORST]

    def total(self) -> Loss:
        """Return what all of them have lost."""
        return Loss(
            max_error=self._max,
            rms_error=(self._squares / max(1, self._numbers)) ** 0.5,
            mean_cosine=self._cosines / self._directed if self._directed else 1.0,
            least_cosine=self._worst[0][0] if self._worst else 1.0,
            worst_rows=tuple(id for _, id in self._worst),
        )
