"""Interactions, one (request, id, time) each, to requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.compile import kernel
from bandana_kv.logs.formats.growable import Growing
from bandana_kv.logs.formats.names import Interner

__all__ = ["Gathered", "Interactions"]


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


class RowTimes(Protocol):
    """Times of rows: of which kind, whole units int64 (n,), and billionths int32 (n,)."""

    @property
    def kind(self) -> int:
        """Numbers, or dates."""

    @property
    def whole(self) -> NDArray[np.int64]:
        """Whole units."""

    @property
    def nanos(self) -> NDArray[np.int32]:
        """Billionths."""


class Gathered:
    """Gathers rows of one id or several, with a name or without one, from one file or several.

    Parameters
    ----------
    path
        What messages call the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kind: tuple[bool, bool] | None = None
        self._time_kind = 0
        self._unnamed = 0
        self._ids = Growing(np.int32)
        self._sizes = Growing(np.int64)
        self._rows = Interactions()
        self._requests = Interner()

    def begin(self, source: str, named: bool, timed: bool) -> None:
        """Say what the rows to come have: names of requests, times.

        Raises
        ------
        InputError
            The rows before had other things.
        """
        if self._kind not in {None, (named, timed)}:
            raise InputError(
                f"{source}: its rows name requests, or have times, where those before do not, "
                "or the other way round; read them apart"
            )
        self._kind = (named, timed)

    def add(
        self,
        ids: NDArray[np.int32],
        sizes: NDArray[np.int64] | None,
        names: tuple[NDArray[np.uint8], NDArray[np.int64]] | None,
        times: RowTimes | None,
    ) -> None:
        """Add n rows.

        Parameters
        ----------
        ids
            int32, of all rows.
        sizes
            int64 (n,): how many of them each row has; None: one.
        names
            Names of requests end to end, and where each ends: int64 (n + 1,). None: each row is a
            request.
        times
            Of the rows, if they have one.

        Raises
        ------
        InputError
            Numbers and dates are mixed.
        """
        if times is not None and times.whole.size:
            if self._time_kind not in {0, times.kind}:
                raise InputError(
                    f"{self._path}: numbers and dates are mixed; write all times in one way"
                )
            self._time_kind = times.kind
        if names is None and times is None and sizes is not None:
            self._ids.append(ids)
            self._sizes.append(sizes)
            return
        if names is None:
            many = ids.size if sizes is None else sizes.size
            numbers = np.arange(self._unnamed, self._unnamed + many, dtype=np.int32)
            self._unnamed += many
        else:
            numbers = self._requests.numbers(*names)
        whole, nanos = (None, None) if times is None else (times.whole, times.nanos)
        if sizes is not None:
            numbers = np.repeat(numbers, sizes)
            if times is not None:
                whole, nanos = np.repeat(times.whole, sizes), np.repeat(times.nanos, sizes)
        self._rows.add(numbers, ids, whole, nanos)

    def done(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return `offsets` and `ids` of all requests."""
        if self._sizes.size or self._kind == (False, False):
            sizes = self._sizes.done()
            offsets = np.zeros(sizes.size + 1, np.int64)
            np.cumsum(sizes, out=offsets[1:])
            return offsets, self._ids.done()
        return self._rows.grouped(self._requests.names + self._unnamed)
