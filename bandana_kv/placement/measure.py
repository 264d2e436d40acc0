"""How good a placement is: how many blocks each request touches, and fanout, their mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.placement import Placement, layout_of
from bandana_kv.kernels.compile import kernel
from bandana_kv.kernels.layout import Layout, cover
from bandana_kv.kernels.views import readable
from bandana_kv.logs.requests import RequestLog, validated_log

__all__ = ["blocks_per_request", "fanout", "layout_of"]


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
