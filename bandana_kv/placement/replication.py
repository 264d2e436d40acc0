"""Second copies of rows that requests find alone, in blocks with other neighbours.

A row can lie beside only one set of neighbours; a row that several groups of requests look up
costs the others a block read each. MaxEmbed (ASPLOS 2024) therefore replicates rows that cross
blocks most. Here the rows are chosen by how often a request finds them with at most one other
of its rows in their block, and then placed once more, on their own, by the method that placed
the table: what is left over from the first placement decides the second.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel
from bandana_kv.errors import InputError
from bandana_kv.placement.core import Placement, RequestLog, readable, validated_log
from bandana_kv.placement.registry import place
from bandana_kv.placement.subset import without_rows
from bandana_kv.progress import Progress

__all__ = ["replicate"]

_FEW = 2


@kernel
def _lonely_lookups(
    offsets: NDArray[np.int64],
    ids: NDArray[Any],
    position_of_id: NDArray[np.uint32],
    rows_per_block: int,
) -> NDArray[np.int64]:
    """Return how often each id's request finds at most `_FEW` of its lookups in the id's block."""
    in_block = np.zeros(position_of_id.size // rows_per_block + 1, np.int32)
    lonely = np.zeros(position_of_id.size, np.int64)
    for request in range(offsets.size - 1):
        wanted = ids[offsets[request] : offsets[request + 1]]
        for row in wanted:
            in_block[position_of_id[row] // rows_per_block] += 1
        for row in wanted:
            if in_block[position_of_id[row] // rows_per_block] <= _FEW:
                lonely[row] += 1
        for row in wanted:
            in_block[position_of_id[row] // rows_per_block] = 0
    return lonely


def replicate(
    log: RequestLog,
    placement: Placement,
    fraction: float,
    *,
    quality: str = "balanced",
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Placement:
    """Add up to a share of extra blocks with second copies of rows.

    Parameters
    ----------
    log
        The access log that the placement was learned from.
    placement
        Of the table; it stays as it is.
    fraction
        Extra blocks / blocks, 0 to 1. Fewer are added where fewer rows would gain.
    quality, seed, threads, progress
        As for :func:`~bandana_kv.placement.place`, which places the copies.

    Returns
    -------
    Placement
        With `replicas`, or with None where there is nothing to gain.

    Raises
    ------
    InputError
        A fraction out of range, or a log that does not fit the placement.

    Notes
    -----
    Cost: a placement of the chosen rows, and 8 bytes a row. Each copy costs a row on the
    device, and the table 4 bytes a row and 4 a copy of memory when it is served.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"the share of extra blocks must be within 0 and 1, not {fraction}")
    offsets, ids = validated_log(log, placement.rows)
    lonely = _lonely_lookups(
        offsets, ids, readable(placement.position_of_id), placement.rows_per_block
    )
    most = int(fraction * placement.blocks) * placement.rows_per_block
    chosen = np.argsort(-lonely, kind="stable")[:most]
    chosen = np.sort(chosen[lonely[chosen] > 0])
    if chosen.size == 0:
        return replace(placement, replicas=None)
    keep = np.zeros(placement.rows, np.bool_)
    keep[chosen] = True
    copies = place(
        without_rows(log, keep),
        rows=chosen.size,
        rows_per_block=placement.rows_per_block,
        method="shp",
        quality=quality,
        seed=seed + 1,
        threads=threads,
        progress=progress,
    )
    replicas = np.empty(chosen.size, np.uint32)
    replicas[copies.position_of_id] = chosen
    return replace(placement, replicas=replicas)
