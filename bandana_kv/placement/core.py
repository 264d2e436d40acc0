"""What a placement is, and fanout, the measure of how good one is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel
from bandana_kv.errors import InputError
from bandana_kv.placement.storage import Stored, read_placement, write_placement

__all__ = ["Placement", "RequestLog", "fanout", "readable", "validated_log"]


class RequestLog(Protocol):
    """What placement needs of an access log: requests as slices of one array of ids."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64 (requests + 1,); request r looks up ``ids[offsets[r]:offsets[r + 1]]``."""

    @property
    def ids(self) -> NDArray[Any]:
        """Integer (lookups,); the looked-up ids of all requests."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Which position, and so which block, each row of a table has.

    Attributes
    ----------
    position_of_id
        uint32 (rows,). A permutation of 0 .. rows - 1: every block is exactly full, except
        the last one, which holds what remains. The block of an id is
        ``position_of_id[id] // rows_per_block``.
    rows_per_block
        Rows in a full block.
    method
        The name of the method that made it.
    replicas
        None: no row has a second copy.
    learned_from
        Share of the log's lookups that the method saw; below 1 if the log was sampled.
    """

    position_of_id: NDArray[np.uint32] = field(repr=False)
    rows_per_block: int
    method: str
    replicas: NDArray[np.uint32] | None = field(default=None, repr=False)
    learned_from: float = 1.0

    @property
    def rows(self) -> int:
        """Number of rows of the table."""
        return int(self.position_of_id.size)

    @property
    def blocks(self) -> int:
        """Number of blocks, the last of which may be part full."""
        return -(-self.rows // self.rows_per_block)

    def id_of_position(self) -> NDArray[np.uint32]:
        """Return the inverse, uint32 (rows,): the id of the row at each position.

        Cost: one pass over the rows; a new array each time.
        """
        inverse = np.empty_like(self.position_of_id)
        inverse[self.position_of_id] = np.arange(self.rows, dtype=np.uint32)
        return inverse

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the placement to a file, durably and in one step.

        Parameters
        ----------
        path
            A file; what is there is replaced once the new one is complete.

        Raises
        ------
        OSError
            The file cannot be written.

        Notes
        -----
        Cost: 4 bytes a row, read twice for the checksum. The format is described in
        :mod:`bandana_kv.placement.storage`.
        """
        replicas = np.zeros(0, np.uint32) if self.replicas is None else self.replicas
        write_placement(
            path,
            Stored(
                self.position_of_id, replicas, self.rows_per_block, self.learned_from, self.method
            ),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Map a placement that :meth:`save` wrote.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        Placement
            Its arrays are read-only and backed by the file.

        Raises
        ------
        FormatError
            Not a placement, damaged, or of a format that this release does not read.
        InputError
            The file cannot be read.

        Notes
        -----
        Cost: reads the file once, for its checksum.
        """
        stored = read_placement(path)
        return cls(
            stored.position_of_id,
            stored.rows_per_block,
            stored.method,
            stored.replicas if stored.replicas.size else None,
            stored.learned_from,
        )


def readable(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view as a plain array, so that kernels see one type whatever came in."""
    view = np.ascontiguousarray(np.asarray(array)).view()
    view.flags.writeable = False
    return view


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


@kernel
def _blocks_touched(
    offsets: NDArray[np.int64],
    ids: NDArray[Any],
    position_of_id: NDArray[np.uint32],
    rows_per_block: int,
) -> int:
    blocks = (position_of_id.size + rows_per_block - 1) // rows_per_block
    last_request = np.full(blocks, -1, np.int64)
    touched = 0
    for request in range(offsets.size - 1):
        for at in range(offsets[request], offsets[request + 1]):
            block = np.int64(position_of_id[ids[at]]) // rows_per_block
            if last_request[block] != request:
                last_request[block] = request
                touched += 1
    return touched


def fanout(log: RequestLog, placement: Placement) -> float:
    """Return the mean number of distinct blocks that a request of `log` touches.

    Parameters
    ----------
    log
        The requests to count, as a rule held-out ones. Empty requests count, with no block.
    placement
        A placement of the table that the log looks up.

    Returns
    -------
    float
        Blocks per request; 0.0 for a log without requests.

    Raises
    ------
    InputError
        The log looks up an id that the placement does not have.

    Notes
    -----
    Cost: two passes over the lookups, some 2 ns each, without the GIL; 8 bytes a block.
    """
    offsets, ids = validated_log(log, placement.rows)
    requests = offsets.size - 1
    if requests == 0:
        return 0.0
    count: Callable[..., int] = _blocks_touched
    touched = count(offsets, ids, readable(placement.position_of_id), placement.rows_per_block)
    return touched / requests
