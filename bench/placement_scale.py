"""Time and memory of placement on a generated log of any size.

    python bench/placement_scale.py --rows 10000000 --pins 100000000 --json

The log has planted, overlapping communities and a Zipf tail. Rows are dealt at random into
communities of 16 to 255 rows (the number drawn evenly in its logarithm), and a tenth of the
rows belong to a second community as well. Each request draws its length from a geometric
distribution of mean 20 (2 to 400), a home community from a Zipf law (exponent 0.8) and, with
probability 0.3, a second one. Each of its rows comes from the home with probability 0.6 and
from the second, if there is one, with probability 0.2, in both cases skewed towards the
community's first rows; else from the whole table by a Zipf law (exponent 0.9), whose order
has nothing to do with the communities. So every row has neighbours worth finding, one lookup
in three or so is noise, and some rows are never looked up. Repeats inside a request happen.

`seconds` is the call of `place`, kernels compiled before; `peak_rss_bytes` the whole process,
the log in memory included. Fanout is counted on the learned log, and on `--held-out` more
requests from the same generator. The last line of the output is the result as JSON.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np
from common import report, surroundings
from numpy.typing import NDArray

from bandana_kv import AccessLog
from bandana_kv.kernels.compile import kernel
from bandana_kv.placement import fanout, methods, place
from bandana_kv.placement.randomness import scramble

MEAN_LENGTH = 20


@kernel
def uniform(state: np.uint64) -> tuple[np.uint64, float]:
    state = scramble(state + np.uint64(0x9E3779B97F4A7C15))
    return state, float(state >> np.uint64(11)) / (1 << 53)


@kernel
def zipf_rank(point: float, count: int, exponent: float) -> int:
    """Return the rank, from 0, below which a share `point` of a Zipf law's weight lies."""
    rest = 1.0 - exponent
    whole = (count + 1.0) ** rest - 1.0
    return min(int((point * whole + 1.0) ** (1.0 / rest)) - 1, count - 1)


@kernel
def request_lengths(pins: int, state: np.uint64) -> NDArray[np.int64]:
    """Return the lengths of requests with about `pins` lookups in all."""
    lengths = np.empty(pins // 2 + 1, np.int64)
    total = 0
    count = 0
    while total < pins:
        state, point = uniform(state)
        length = 2 + int(np.log(1.0 - point) / np.log(1.0 - 1.0 / (MEAN_LENGTH - 1)))
        lengths[count] = min(length, 400)
        total += lengths[count]
        count += 1
    return lengths[:count].copy()


@kernel
def fill_requests(
    offsets: NDArray[np.int64],
    ends: NDArray[np.int64],
    members: NDArray[np.int32],
    by_popularity: NDArray[np.int32],
    state: np.uint64,
    ids: NDArray[np.int32],
) -> None:
    communities = ends.size - 1
    for request in range(offsets.size - 1):
        state, point = uniform(state)
        home = zipf_rank(point, communities, 0.8)
        state, point = uniform(state)
        second = -1
        if point < 0.3:
            second = zipf_rank(point / 0.3, communities, 0.8)
        for at in range(offsets[request], offsets[request + 1]):
            state, kind = uniform(state)
            state, point = uniform(state)
            community = home if kind < 0.6 else second if kind < 0.8 else -1
            if community >= 0:
                size = ends[community + 1] - ends[community]
                ids[at] = members[ends[community] + int(point * point * size)]
            else:
                ids[at] = by_popularity[zipf_rank(point, by_popularity.size, 0.9)]


def planted(rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the communities: ends and members."""
    rng = np.random.default_rng(seed)
    twice = rng.choice(rows, rows // 10, replace=False)
    members = rng.permutation(np.concatenate([np.arange(rows), twice])).astype(np.int32)
    sizes = np.exp(rng.uniform(np.log(16), np.log(256), members.size // 16 + 1)).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    ends = ends[ends < members.size]
    return np.append(ends, members.size), members


def generated(rows: int, pins: int, seed: int, part: int) -> AccessLog:
    """Return a log; parts of the same seed share communities and popularity."""
    ends, members = planted(rows, seed)
    by_popularity = np.random.default_rng(seed + 1).permutation(rows).astype(np.int32)
    lengths = request_lengths(pins, np.uint64(2 * seed + 1000 * part))
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.empty(offsets[-1], np.int32)
    state = np.uint64(2 * seed + 1000 * part + 1)
    fill_requests(offsets, ends, members, by_popularity, state, ids)
    return AccessLog(offsets, ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pins", type=int, default=10_000_000)
    parser.add_argument("--held-out", type=int, default=50_000, help="requests, about")
    parser.add_argument("--rows-per-block", type=int, default=32)
    parser.add_argument("--method", default="shp", choices=methods())
    parser.add_argument("--quality", default="balanced", choices=("fast", "balanced", "best"))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON")
    parser.add_argument("--keep", help="also keep the result as bench/results/KEEP.json")
    arguments = parser.parse_args()
    options = {"quality": arguments.quality, "threads": arguments.threads}
    place(generated(4096, 20_000, 0, 0), 4096, 32, arguments.method, **options)
    log = generated(arguments.rows, arguments.pins, arguments.seed, 0)
    begin, busy = time.perf_counter(), time.process_time()
    placement = place(
        log,
        arguments.rows,
        arguments.rows_per_block,
        arguments.method,
        seed=arguments.seed,
        **options,
    )
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    test = generated(arguments.rows, MEAN_LENGTH * arguments.held_out, arguments.seed, 1)
    shuffled = place(None, arguments.rows, arguments.rows_per_block, "shuffled")
    result = {
        "rows": arguments.rows,
        "pins": int(log.lookups),
        "requests": log.requests,
        "rows_per_block": arguments.rows_per_block,
        "method": arguments.method,
        "quality": arguments.quality,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_rss_bytes": peak,
        "fanout_train": fanout(log, placement),
        "fanout_test": fanout(test, placement),
        "fanout_test_shuffled": fanout(test, shuffled),
        **surroundings(arguments.seed),
    }
    if not arguments.json:
        print(
            f"{result['seconds']} s, {peak / 2**30:.2f} GiB, held-out fanout"
            f" {result['fanout_test']:.3f} (shuffled {result['fanout_test_shuffled']:.3f})"
        )
    report(result, arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
