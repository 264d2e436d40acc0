"""How many blocks each request touches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel
from bandana_kv.layout import Layout, cover
from bandana_kv.placement.core import Placement, RequestLog, readable, validated_log

__all__ = ["blocks_per_request", "layout_of"]


def layout_of(placement: Placement, heat: NDArray[np.uint8]) -> Layout:
    """Return a placement as the kernels take it.

    Parameters
    ----------
    placement
        Of the table.
    heat
        uint8 (rows,), by position.
    """
    original_of = np.zeros(0, np.uint32)
    if placement.replicas is not None:
        original_of = placement.position_of_id[placement.replicas]
    by_position = np.argsort(original_of).astype(np.uint32)
    return Layout(placement.rows_per_block, heat, original_of, by_position)


@kernel
def _count(
    offsets: NDArray[np.int64],
    ids: NDArray[Any],
    position_of_id: NDArray[np.uint32],
    layout: Layout,
) -> NDArray[np.int64]:
    counts = np.zeros(offsets.size - 1, np.int64)
    for request in range(offsets.size - 1):
        wanted = ids[offsets[request] : offsets[request + 1]]
        positions = np.empty(wanted.size, np.int64)
        for i in range(wanted.size):
            positions[i] = position_of_id[wanted[i]]
        positions = np.unique(positions)
        places = np.empty(positions.size, np.int64)
        counts[request] = cover(positions, layout, places).size
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
    layout = layout_of(placement, np.zeros(placement.rows, np.uint8))
    return _count(offsets, ids, readable(placement.position_of_id), layout)
