"""What each request costs, where sums do not say enough: latencies come of single requests."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.policy import Policy
from bandana_kv.cache.request import new_counters
from bandana_kv.errors import InputError
from bandana_kv.kernels.layout import Layout
from bandana_kv.simulate.crowd import crowd_of
from bandana_kv.simulate.replay import NOT_NOTED, Stream, cold, replay_requests

__all__ = ["PerRequest", "per_request"]


class PerRequest(NamedTuple):
    """What a replay counted of each request, after those that only warmed the cache.

    Attributes
    ----------
    lookups, missed, block_reads : int32 (requests,)
        Rows looked up, those of them that DRAM did not hold, and blocks read for them.
    joined : int32 (requests,)
        Blocks waited for that another caller was reading.
    """

    lookups: NDArray[np.int32]
    missed: NDArray[np.int32]
    block_reads: NDArray[np.int32]
    joined: NDArray[np.int32]


def per_request(
    stream: Stream, layout: Layout, policy: Policy, capacity_rows: int, *, callers: int = 1
) -> PerRequest:
    """Count what each request of `stream` costs.

    Parameters
    ----------
    stream, layout
        The requests as positions, and how the rows lie.
    policy, capacity_rows
        Of the cache, which begins empty.
    callers
        Who ask at the same time. A block that one of them is reading is not read again by
        the others, which small tables show; see :mod:`bandana_kv.simulate.crowd`.

    Returns
    -------
    PerRequest
        With one caller its sums are what :func:`bandana_kv.simulate.replay.run` counts.

    Notes
    -----
    Of several callers it is an estimate: who is where when is not known. Rows enter the cache
    at once, so that what another caller is about to bring counts as a hit. Cost: as of a
    replay; 16 bytes a request, and 16 a block with several callers.
    """
    if callers < 1:
        raise InputError(f"callers {callers}: at least one must ask")
    state, warm = cold(policy, capacity_rows, layout), stream.warm_requests
    requests = stream.offsets.size - 1
    blocks = -(-layout.heat.size // layout.rows_per_block)
    crowd = crowd_of(callers, blocks + -(-layout.original_of.size // layout.rows_per_block))
    each = np.empty((requests, 3), np.int32)
    for first, last in ((0, warm), (warm, requests)):
        replay_requests(
            state,
            stream.offsets,
            stream.positions,
            first,
            last,
            layout,
            True,
            new_counters(),
            each[first:last],
            NOT_NOTED,
            crowd,
        )
    lookups = np.diff(stream.offsets[warm:]).astype(np.int32)
    return PerRequest(lookups, *each[warm:].T.copy())
