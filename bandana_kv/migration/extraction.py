"""The rows of one table out of a source with a row per key, checked, with their digests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.containers import container_of
from bandana_kv.adapters.rows import KeyedRows, shown_key
from bandana_kv.errors import InputError
from bandana_kv.kernels.checksum import xxh64
from bandana_kv.kernels.compile import copy_bytes, kernel

__all__ = ["Batch", "Reading", "digest", "digests"]

# As many as a table may have.
_MOST_ROWS = (1 << 31) - 1


class Batch(NamedTuple):
    """Rows as the source gave them.

    Attributes
    ----------
    ids : ndarray
        int64 (n,), each from 0 up; not in order, and perhaps not distinct.
    rows : ndarray
        uint8 (n, row_bytes), C-contiguous.
    last_key : bytes
        The key behind which the next batch begins.
    skipped : int
        Keys that were of no id.
    """

    ids: NDArray[np.int64]
    rows: NDArray[np.uint8]
    last_key: bytes
    skipped: int


@dataclass
class Reading:
    """How one table is read from its source.

    Attributes
    ----------
    source : KeyedRows
    table : str
    rows : int or None
        Ids from there up are refused.
    row_bytes : int or None
        What each value must be long; None: as the first.
    skip_others : bool
        Skip keys that are of no id, and count them.
    """

    source: KeyedRows
    table: str
    rows: int | None
    row_bytes: int | None
    skip_others: bool

    def batches(self, after: bytes | None = None) -> Iterator[Batch]:
        """Yield the rows behind the key `after`, in the order of their keys.

        Raises
        ------
        InputError
            Names the key that is of no id, or of one out of range, or whose value is no row: of
            another length, or at first a pickle, a file or something compressed.
        AdapterError
            The source failed.
        """
        is_first = True
        for keys, values in self.source.scan(self.table, after):
            last_key, found = keys[-1], len(keys)
            ids = self.source.ids_of(self.table, keys)
            is_id = (ids >= 0) & (ids < _MOST_ROWS)
            if not is_id.all():
                keys, values, ids = self._only_ids(keys, values, ids, is_id)
            if is_first and values:
                self._refuse_container(keys[0], values[0])
                is_first = False
            self._check(keys, values, ids)
            rows = self.source.numbers(values).view(np.uint8).reshape(ids.size, self.row_bytes or 0)
            yield Batch(ids, rows, last_key, found - ids.size)

    def _only_ids(
        self,
        keys: list[bytes],
        values: list[bytes],
        ids: NDArray[np.int64],
        is_id: NDArray[np.bool_],
    ) -> tuple[list[bytes], list[bytes], NDArray[np.int64]]:
        """Leave out keys of no id, or refuse the first of them."""
        if not self.skip_others:
            at = int(np.flatnonzero(~is_id)[0])
            raise InputError(
                f"table {self.table!r}: key {shown_key(keys[at])} is of no id by the key codec "
                f"{self.source.key!r}; name another codec or prefix, or skip such keys"
            )
        kept = np.flatnonzero(is_id).tolist()
        return [keys[at] for at in kept], [values[at] for at in kept], ids[is_id]

    def _refuse_container(self, key: bytes, value: bytes) -> None:
        found = container_of(value)
        if found is not None:
            raise InputError(
                f"table {self.table!r}: the value of key {shown_key(key)} is {found}, not the bare "
                "numbers of a row; write row.tobytes() under such keys, or read the rows with what "
                "wrote them and load the array"
            )

    def _check(self, keys: list[bytes], values: list[bytes], ids: NDArray[np.int64]) -> None:
        if self.row_bytes is None and values:
            self.row_bytes = len(values[0])
        itemsize = self.source.dtype.itemsize
        for at, value in enumerate(values):
            if len(value) != self.row_bytes or not value or len(value) % itemsize:
                raise InputError(
                    f"table {self.table!r}: the value of key {shown_key(keys[at])} (id {ids[at]}) "
                    f"is {len(value)} bytes long, not a row of {self.source.dtype} of "
                    f"{self.row_bytes} bytes as the others, or as asked for"
                )
        if self.rows is not None and ids.size and int(ids.max()) >= self.rows:
            at = int(np.argmax(ids))
            raise InputError(
                f"table {self.table!r}: key {shown_key(keys[at])} is of id {ids[at]}, and the "
                f"table has {self.rows} rows; is the key codec {self.source.key!r} the right one?"
            )


@kernel
def digest(
    scratch: np.ndarray, row_id: int, data: np.ndarray, first: int, row_bytes: int
) -> np.uint64:
    """Return the XXH64 of an id, 8 bytes little-endian, with the bytes of its row behind it.

    `scratch` is uint8 (8 + row_bytes,); the row begins at byte `first` of `data`.
    """
    scratch[:8].view(np.int64)[0] = row_id
    copy_bytes(data, first, scratch, 8, row_bytes)
    return xxh64(scratch)


@kernel
def _digests(ids: np.ndarray, rows: np.ndarray, row_bytes: int, out: np.ndarray) -> None:
    scratch = np.empty(8 + row_bytes, np.uint8)
    for i in range(ids.size):
        out[i] = digest(scratch, ids[i], rows, i * row_bytes, row_bytes)


def digests(ids: NDArray[np.int64], rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the digest of each id with its row, uint64 (n,); rows are uint8 (n, row_bytes)."""
    out = np.empty(ids.size, np.uint64)
    _digests(ids, rows, rows.shape[1], out)
    return out
