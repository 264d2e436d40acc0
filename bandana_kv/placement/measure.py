"""How many blocks each request touches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel
from bandana_kv.layout import NO_COPY, cover
from bandana_kv.placement.core import Placement, RequestLog, readable, validated_log

__all__ = ["blocks_per_request", "copies_by_position"]


def copies_by_position(placement: Placement) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return where copies lie, as :class:`bandana_kv.layout.Layout` takes it.

    Returns
    -------
    copy_of : ndarray
        uint32 (rows,), or (0,) without copies.
    original_of : ndarray
        uint32 (copies,).
    """
    if placement.replicas is None or placement.replicas.size == 0:
        return np.zeros(0, np.uint32), np.zeros(0, np.uint32)
    original_of = placement.position_of_id[placement.replicas]
    first_place = placement.blocks * placement.rows_per_block
    copy_of = np.full(placement.rows, NO_COPY, np.uint32)
    copy_of[original_of] = first_place + np.arange(original_of.size, dtype=np.uint32)
    return copy_of, original_of


@kernel
def _count(
    offsets: NDArray[np.int64],
    ids: NDArray[Any],
    position_of_id: NDArray[np.uint32],
    copy_of: NDArray[np.uint32],
    rows_per_block: int,
) -> NDArray[np.int64]:
    counts = np.zeros(offsets.size - 1, np.int64)
    for request in range(offsets.size - 1):
        wanted = ids[offsets[request] : offsets[request + 1]]
        positions = np.empty(wanted.size, np.int64)
        for i in range(wanted.size):
            positions[i] = position_of_id[wanted[i]]
        positions = np.unique(positions)
        places = np.empty(positions.size, np.int64)
        counts[request] = cover(positions, copy_of, rows_per_block, places).size
    return counts


def blocks_per_request(log: RequestLog, placement: Placement) -> NDArray[np.int64]:
    """Return how many blocks each request must read where nothing is in DRAM.

    Parameters
    ----------
    log
        The requests.
    placement
        Of the table; rows with a second copy are read from whichever block serves more.

    Returns
    -------
    ndarray
        int64 (requests,).

    Raises
    ------
    InputError
        The log looks up an id that the placement does not have.
    """
    offsets, ids = validated_log(log, placement.rows)
    copy_of, _ = copies_by_position(placement)
    return _count(
        offsets,
        ids,
        readable(placement.position_of_id),
        readable(copy_of),
        placement.rows_per_block,
    )
