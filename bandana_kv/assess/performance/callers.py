"""Threads that ask a store one request after the other, and how long it takes."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.serve.store import EmbeddingStore

__all__ = ["Asked", "ask"]


class Asked(NamedTuple):
    """How requests were answered.

    Attributes
    ----------
    requests : int
    wall_us, processor_us : float
        For one request, of all threads together.
    lookups, missed, block_reads : float
        Of one request.
    """

    requests: int
    wall_us: float
    processor_us: float
    lookups: float
    missed: float
    block_reads: float


def ask(
    store: EmbeddingStore,
    table: str,
    requests: list[NDArray[np.int64]],
    out: NDArray[Any],
    seconds: float,
) -> Asked:
    """Ask `requests` in turn, for `seconds` at most.

    Parameters
    ----------
    store, table
        Whom, and what for.
    requests
        The ids of each.
    out
        (threads, most, dim), of the table's dtype: room for the answers of each thread. So many
        ask, each the next request as soon as it has the answer.
    seconds
        After which none is begun.
    """
    served = store.stats()[table]
    numbers, gate = itertools.count(), threading.Barrier(len(out) + 1)

    def work(mine: NDArray[Any]) -> int:
        gate.wait()
        until, done = time.perf_counter() + seconds, 0
        while (number := next(numbers)) < len(requests) and time.perf_counter() < until:
            ids = requests[number]
            store.multi_get(table, ids, out=mine[: ids.size])
            done += 1
        return done

    with ThreadPoolExecutor(len(out)) as pool:
        working = [pool.submit(work, mine) for mine in out]
        gate.wait()
        begun, busy = time.perf_counter(), time.process_time()
        count = sum(each.result() for each in working)
        wall, busy = time.perf_counter() - begun, time.process_time() - busy
    counted = {key: value - served[key] for key, value in store.stats()[table].items()}
    return Asked(
        count,
        1e6 * wall / count,
        1e6 * busy / count,
        counted["lookups"] / count,
        (counted["lookups"] - counted["hits"]) / count,
        counted["block_reads"] / count,
    )
