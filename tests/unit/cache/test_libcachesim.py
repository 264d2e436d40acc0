"""Eviction against libcachesim, by the authors of S3-FIFO and SIEVE: equal to the miss.

One row a block and one id a request, so that there is nothing but eviction.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bandana_kv.cache.policy import Policy
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement import Placement
from bandana_kv.simulate import replay

libcachesim = pytest.importorskip("libcachesim")

ROWS, LOOKUPS = 3000, 12_000
PLACEMENT = Placement(np.arange(ROWS, dtype=np.uint32), 1, "identity")
THEIRS = {"lru": "LRU", "clock": "Clock", "sieve": "Sieve", "s3-fifo": "S3FIFO"}
# Of a tenth of the cache S3-FIFO makes its small queue; libcachesim holds nothing, or aborts,
# where that is less than two rows.
LEAST_S3_FIFO = 20


def streams() -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    scattered = rng.permutation(ROWS)
    skewed = scattered[np.minimum(rng.zipf(1.1, LOOKUPS), ROWS) - 1]
    loop = np.arange(LOOKUPS) % 1200
    drift = scattered[(np.arange(LOOKUPS) // 20 + rng.geometric(0.01, LOOKUPS)) % ROWS]
    return {
        "zipf": skewed,
        "uniform": rng.integers(0, ROWS, LOOKUPS),
        "loop": loop,
        "zipf and scans": np.where(np.arange(LOOKUPS) // 500 % 4 == 3, loop, skewed),
        "drift": drift,
    }


STREAMS = streams()


def their_misses(eviction: str, ids: NDArray[np.int64], capacity: int) -> int:
    cache = getattr(libcachesim, THEIRS[eviction])(cache_size=capacity, hashpower=14)
    request = libcachesim.Request()
    request.obj_size = 1
    misses = 0
    for number in ids.tolist():
        request.obj_id = number
        misses += not cache.get(request)
    return misses


def our_misses(eviction: str, ids: NDArray[np.int64], capacity: int) -> int:
    log = AccessLog(np.arange(ids.size + 1), ids)
    counted = replay(log, PLACEMENT, capacity, policy=Policy(eviction))
    assert counted.block_reads == counted.lookups - counted.hits
    return counted.block_reads


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("eviction", THEIRS)
def test_misses_are_those_of_libcachesim(eviction: str, name: str) -> None:
    ids = STREAMS[name]
    capacities = [1, 2, 10, 20, 29, 100, 333, 1000, 1201, ROWS]
    compared = [c for c in capacities if eviction != "s3-fifo" or c >= LEAST_S3_FIFO]
    ours = {capacity: our_misses(eviction, ids, capacity) for capacity in compared}
    theirs = {capacity: their_misses(eviction, ids, capacity) for capacity in compared}
    assert ours == theirs


def test_the_policies_differ_on_these_streams() -> None:
    """Else agreement would say little."""
    found = {eviction: our_misses(eviction, STREAMS["zipf and scans"], 333) for eviction in THEIRS}
    assert len(set(found.values())) == len(THEIRS), found


def test_a_small_queue_of_one_row_is_where_s3_fifo_differs() -> None:
    """There libcachesim refuses every row as too large for the queue; ours does not."""
    ids = STREAMS["zipf"]
    capacity = LEAST_S3_FIFO - 1
    assert their_misses("s3-fifo", ids, capacity) == LOOKUPS
    assert our_misses("s3-fifo", ids, capacity) < 1.1 * our_misses("lru", ids, capacity)
