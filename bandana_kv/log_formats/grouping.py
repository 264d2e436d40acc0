"""Interactions, one (request, id, time) each, to requests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel
from bandana_kv.log_formats.growing import Growing

__all__ = ["Interactions"]


@kernel
def _decreases(whole: np.ndarray, nanos: np.ndarray) -> bool:
    for i in range(1, whole.size):
        if whole[i] < whole[i - 1] or (whole[i] == whole[i - 1] and nanos[i] < nanos[i - 1]):
            return True
    return False


@kernel
def _renumber(requests: np.ndarray, new_number: np.ndarray) -> None:
    """Give requests new numbers, in the order in which they now appear."""
    named = 0
    for i in range(requests.size):
        request = requests[i]
        if new_number[request] < 0:
            new_number[request] = named
            named += 1
        requests[i] = new_number[request]


@kernel
def _gather(requests: np.ndarray, ids: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """Bring the ids of a request together, in the order in which they appear."""
    for request in requests:
        offsets[request + 1] += 1
    for request in range(offsets.size - 1):
        offsets[request + 1] += offsets[request]
    place = offsets[:-1].copy()
    for i in range(requests.size):
        request = requests[i]
        out[place[request]] = ids[i]
        place[request] += 1


class Interactions:
    """Collects interactions in chunks and groups them by request at the end.

    Notes
    -----
    Memory: 12 bytes an interaction, 24 with a time, and as much again while sorting by time.
    """

    def __init__(self) -> None:
        self._requests = Growing(np.int32)
        self._ids = Growing(np.int32)
        self._whole = Growing(np.int64)
        self._nanos = Growing(np.int32)

    def add(
        self,
        requests: NDArray[np.int32],
        ids: NDArray[np.int32],
        whole: NDArray[np.int64] | None,
        nanos: NDArray[np.int32] | None,
    ) -> None:
        """Add n interactions.

        Parameters
        ----------
        requests
            int32 (n,); numbered in the order of first appearance.
        ids
            int32 (n,).
        whole, nanos
            int64 and int32 (n,): times, as whole units and billionths of one; None if
            there are none, in every call.
        """
        self._requests.append(requests)
        self._ids.append(ids)
        if whole is not None and nanos is not None:
            self._whole.append(whole)
            self._nanos.append(nanos)

    def grouped(self, requests: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return `offsets` and `ids` of the `requests` requests.

        Requests come in the order of their first time, ids inside a request by time;
        what has the same time, or no time, comes as it was added.
        """
        numbers, ids = self._requests.done(), self._ids.done()
        whole, nanos = self._whole.done(), self._nanos.done()
        if whole.size and _decreases(whole, nanos):
            order = np.lexsort((nanos, whole)) if nanos.any() else np.argsort(whole, kind="stable")
            del whole, nanos
            numbers, ids = numbers[order], ids[order]
            del order
            _renumber(numbers, np.full(requests, -1, np.int32))
        offsets = np.zeros(requests + 1, np.int64)
        out = np.empty_like(ids)
        _gather(numbers, ids, offsets, out)
        return offsets, out
