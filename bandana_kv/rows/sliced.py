"""Rows of whatever has a shape and gives an array for ``given[a:b]``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import BandanaError, InputError
from bandana_kv.kernels.views import refuse_masked
from bandana_kv.rows.staged import StagedRows

__all__ = ["Sliced", "SlicedRows"]


@runtime_checkable
class Sliced(Protocol):
    """A dataset of h5py, an array of zarr, and the like."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, dim)."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return some rows, or what numpy makes an array of."""


class SlicedRows(StagedRows):
    """Rows of an object with a shape and slicing, read in order into a temporary file, once.

    Parameters
    ----------
    name
        As messages name it.
    given
        Stays its owner's to close.

    Raises
    ------
    InputError
        Not two-dimensional, empty, or not numeric.
    """

    def __init__(self, name: str, given: Sliced) -> None:
        self._given = given
        self._name = name
        shape = tuple(int(each) for each in given.shape)
        dtype = getattr(given, "dtype", None)
        if not isinstance(dtype, np.dtype):  # one of torch's, for example
            dtype = self._read(0, min(1, shape[0] if shape else 0)).dtype
        self._describe_staged(name, shape, dtype)

    def _read(self, first: int, end: int) -> NDArray[Any]:
        try:
            given = self._given[first:end]
            refuse_masked(self._name, given)
            return np.asarray(given)
        except BandanaError:
            raise
        except Exception as error:
            # It is somebody else's code, and may raise anything.
            raise InputError(
                f"{self._name}: rows {first} to {end - 1} cannot be read "
                f"({type(error).__name__}: {error})"
            ) from error

    def _parts(self, most_rows: int) -> Iterator[NDArray[Any]]:
        chunks = getattr(self._given, "chunks", None)
        of_chunk = chunks[0] if isinstance(chunks, tuple) and chunks else 1
        # Whole chunks: a part of one takes as long to unpack.
        of_chunk = of_chunk if isinstance(of_chunk, int) and of_chunk > 0 else 1
        step = max(1, most_rows // of_chunk) * of_chunk
        for first in range(0, self.rows, step):
            yield self._read(first, min(first + step, self.rows))
