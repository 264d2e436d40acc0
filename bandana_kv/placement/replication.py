"""Second copies of rows that requests find alone, in blocks with other neighbours.

A row can lie beside only one set of neighbours; a row that several groups of requests look up
costs the others a block read each. MaxEmbed (ASPLOS 2024) therefore replicates rows that cross
blocks most. Here a lookup counts as lonely where its request has few other rows in the same
block. The rows with most lonely lookups are placed once more, on their own, and from their
lonely lookups alone: what the first placement left over decides the second.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.placement import Placement
from bandana_kv.errors import InputError
from bandana_kv.kernels.compile import kernel
from bandana_kv.kernels.views import readable
from bandana_kv.logs.requests import RequestLog, validated_log
from bandana_kv.placement.counts import lookups_of_id
from bandana_kv.placement.registry import place
from bandana_kv.placement.subset import kept_lookups, without_rows
from bandana_kv.progress import Progress

__all__ = ["replicate"]

# Lookups that share a block with up to an eighth of its rows are lonely.
_LONELY_SHARE = 8


@kernel
def _lonely(
    offsets: NDArray[np.int64],
    ids: NDArray[Any],
    position_of_id: NDArray[np.uint32],
    rows_per_block: int,
) -> NDArray[np.bool_]:
    """Return which lookups find few lookups of their request in their block: bool (lookups,)."""
    few = max(1, rows_per_block // _LONELY_SHARE)
    in_block = np.zeros(position_of_id.size // rows_per_block + 1, np.int32)
    lonely = np.zeros(ids.size, np.bool_)
    for request in range(offsets.size - 1):
        first, last = offsets[request], offsets[request + 1]
        for at in range(first, last):
            in_block[position_of_id[ids[at]] // rows_per_block] += 1
        for at in range(first, last):
            lonely[at] = in_block[position_of_id[ids[at]] // rows_per_block] <= few
        for at in range(first, last):
            in_block[position_of_id[ids[at]] // rows_per_block] = 0
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
    Cost: a placement of the chosen rows, and up to 25 bytes a lookup of memory. Each copy
    costs a row on the device, and 8 bytes of memory when the table is served.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"the share of extra blocks must be within 0 and 1, not {fraction}")
    offsets, ids = validated_log(log, placement.rows)
    lonely = _lonely(offsets, ids, readable(placement.position_of_id), placement.rows_per_block)
    left_over = kept_lookups(offsets, ids, lonely)
    score = lookups_of_id(left_over, placement.rows)
    most = int(fraction * placement.blocks) * placement.rows_per_block
    chosen = np.argsort(-score, kind="stable")[:most]
    chosen = np.sort(chosen[score[chosen] > 0])
    if chosen.size == 0:
        return replace(placement, replicas=None)
    keep = np.zeros(placement.rows, np.bool_)
    keep[chosen] = True
    copies = place(
        without_rows(left_over, keep),
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
