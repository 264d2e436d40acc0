"""The rows of a table by id, wherever they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError

__all__ = ["BFLOAT16", "RowSource"]

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
"""The upper half of float32, which numpy itself has not."""

_KINDS = "biufc"


class RowSource(ABC):
    """Rows by id; a context manager.

    Attributes
    ----------
    rows, dim
        Shape of the table.
    dtype
        Of its numbers.
    """

    rows: int
    dim: int
    dtype: np.dtype[Any]
    _keys: NDArray[Any] | None = None

    @abstractmethod
    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes)."""

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Release what is held open."""

    @property
    def keys(self) -> NDArray[Any] | None:
        """What users call the rows, (rows,): int64, uint64, or objects, str or bytes.

        None: they have no keys. Read when it is first asked for.
        """
        if self._keys is None:
            self._keys = self._read_keys()
        return self._keys

    @keys.setter
    def keys(self, keys: NDArray[Any] | None) -> None:
        self._keys = keys

    def _read_keys(self) -> NDArray[Any] | None:
        return None

    def _describe(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if dtype.hasobject or (dtype.kind not in _KINDS and dtype != BFLOAT16):
            raise InputError(f"{name}: dtype {dtype} is not numeric; tables hold numbers")
        if len(shape) != 2:
            raise InputError(f"{name}: shape {shape} is not (rows, dim); reshape it")
        if shape[0] < 1 or shape[1] < 1:
            raise InputError(f"{name}: shape {shape} holds no row")
        if shape[0] >= 1 << 31:
            raise InputError(f"{name}: {shape[0]} rows; a table holds less than 2**31")
        self.rows, self.dim = shape
        self.dtype = dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(self.dim * self.dtype.itemsize)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
