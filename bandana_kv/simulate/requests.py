"""What each request costs, where sums do not say enough: latencies come of single requests."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.batch import new_counters
from bandana_kv.layout import Layout
from bandana_kv.policy import Policy
from bandana_kv.simulate.replay import Stream, cold, replay_requests

__all__ = ["PerRequest", "per_request"]


class PerRequest(NamedTuple):
    """What a replay counted of each request, after those that only warmed the cache.

    Attributes
    ----------
    lookups, missed, block_reads : int32 (requests,)
        Rows looked up, those of them that DRAM did not hold, and blocks read for them.
    """

    lookups: NDArray[np.int32]
    missed: NDArray[np.int32]
    block_reads: NDArray[np.int32]


def per_request(stream: Stream, layout: Layout, policy: Policy, capacity_rows: int) -> PerRequest:
    """Count what each request of `stream` costs.

    Parameters
    ----------
    stream, layout
        The requests as positions, and how the rows lie.
    policy, capacity_rows
        Of the cache, which begins empty.

    Returns
    -------
    PerRequest
        Its sums are what :func:`bandana_kv.simulate.replay.run` counts.

    Notes
    -----
    Cost: as of a replay; 12 bytes a request.
    """
    state, warm = cold(policy, capacity_rows, layout), stream.warm_requests
    requests = stream.offsets.size - 1
    each = np.empty((requests, 2), np.int32)
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
        )
    lookups = np.diff(stream.offsets[warm:]).astype(np.int32)
    return PerRequest(lookups, each[warm:, 0].copy(), each[warm:, 1].copy())
