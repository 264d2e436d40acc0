"""Block reads from miniature caches, as small as the error that is allowed lets them be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bandana_kv.cache.policy import Policy
from bandana_kv.kernels.layout import Layout
from bandana_kv.simulate.miniature import in_threads, miniature, rate_for
from bandana_kv.simulate.replay import Stream, run

__all__ = ["Estimate", "estimate"]

_LEAST_ROWS = 100
_SEEDS = 8


class Estimate(NamedTuple):
    """Block reads of a stream, as samples say.

    Attributes
    ----------
    block_reads : float
        Mean over the samples.
    standard_error : float
        Of that mean; 0 where the whole was replayed.
    rate : float
        Share of the blocks in a sample; 1: the whole, once.
    """

    block_reads: float
    standard_error: float
    rate: float


def estimate(
    stream: Stream,
    layout: Layout,
    policy: Policy,
    capacity_rows: int,
    *,
    error: float = 0.01,
    seed: int = 0,
) -> Estimate:
    """Estimate the block reads of `stream`.

    Parameters
    ----------
    stream, layout, policy, capacity_rows
        As :func:`bandana_kv.simulate.replay.run` takes them.
    error
        The standard error that is allowed, as a share of the reads. Samples grow until it is
        kept; where they would be more than half of the stream, or rows have second copies, the
        whole is replayed.
    seed
        Of the samples.

    Returns
    -------
    Estimate

    Notes
    -----
    How much samples differ depends on how few blocks are read for how many of the misses, which
    only the samples tell. Cost: eight samples at each rate tried, on all cores; with the
    smallest one, that leaves the cache a hundred rows, a fraction of a replay.
    """
    lookups = int(stream.offsets[-1] - stream.offsets[stream.warm_requests])
    rate = rate_for([capacity_rows], _LEAST_ROWS)
    while rate <= 0.5 and not layout.original_of.size:
        seeds = [seed + number for number in range(_SEEDS)]

        def count(each: int, rate: float = rate) -> float:
            small = miniature(stream, layout, rate, each)
            counted = run(small.stream, small.layout, policy, small.capacity(capacity_rows))
            return lookups * small.reads_per_lookup(counted)

        reads = np.array(in_threads(count, seeds))
        mean, standard_error = float(reads.mean()), float(reads.std(ddof=1) / _SEEDS**0.5)
        if standard_error <= error * mean:
            return Estimate(mean, standard_error, rate)
        rate *= 2
    return Estimate(float(run(stream, layout, policy, capacity_rows).block_reads), 0.0, 1.0)
