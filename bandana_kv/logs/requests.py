"""The requests of a log as plain arrays, checked, for whoever learns from them or counts them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.compile import kernel
from bandana_kv.kernels.views import readable

__all__ = ["RequestLog", "copy_requests", "validated_log"]


class RequestLog(Protocol):
    """An access log: requests as slices of one array of ids."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64 (requests + 1,); request r looks up ``ids[offsets[r]:offsets[r + 1]]``."""

    @property
    def ids(self) -> NDArray[Any]:
        """Integer (lookups,); the looked-up ids of all requests."""


@kernel
def copy_requests(
    offsets: np.ndarray, ids: np.ndarray, numbers: np.ndarray, ends: np.ndarray, out: np.ndarray
) -> None:
    """Copy requests by number to `out`: where each begins and ends there, `ends` says."""
    for i in range(numbers.size):
        first = offsets[numbers[i]]
        begin = ends[i]
        for k in range(ends[i + 1] - begin):
            out[begin + k] = ids[first + k]


@kernel
def _extremes(values: NDArray[Any]) -> tuple[int, int]:
    low = high = int(values[0])
    for value in values:
        low = min(low, int(value))
        high = max(high, int(value))
    return low, high


def validated_log(log: RequestLog, rows: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the log's offsets and ids, read-only, after checking them against the table.

    Raises
    ------
    InputError
        An id outside the table, or offsets that do not fit the ids.
    """
    offsets = readable(np.asarray(log.offsets, dtype=np.int64))
    ids = readable(log.ids)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise InputError(
            f"the log's ids must be a one-dimensional integer array, not {ids.dtype} {ids.shape}"
        )
    if offsets.ndim != 1 or offsets.size == 0 or offsets[0] != 0 or offsets[-1] != ids.size:
        raise InputError("the log's offsets must begin with 0 and end with the number of ids")
    if np.any(offsets[1:] < offsets[:-1]):
        raise InputError("the log's offsets must not fall")
    if ids.size:
        low, high = _extremes(ids)
        if low < 0:
            raise InputError(f"the log looks up id {low}, which is negative")
        if high >= rows:
            raise InputError(
                f"the log looks up id {high}, but the table has only {rows} rows "
                f"(ids 0 to {rows - 1})"
            )
    return offsets, ids
