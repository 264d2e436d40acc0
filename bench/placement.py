"""Fanout, time and memory of placement methods on one log, each in a process of its own.

    python bench/placement.py --log L.npz --rows-per-block 32 --methods shp-fast,shuffled --json

Methods are those of `bandana_kv.placement.methods()`; `shp-fast`, `shp-balanced` and `shp-best`
are `shp` in that quality. Seconds are wall-clock after compilation, the best of `--repeats`; a
method is first run on a small log, which loads or compiles its kernels. Peak memory is the
whole process's, the log included; an outside partitioner's child is counted if it needs more.
`kmeans` looks at row values, which a log does not have: it gets a truncated singular value
decomposition of the training part, not timed. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from common import report, surroundings

from bandana_kv import AccessLog
from bandana_kv.placement import fanout, methods, place
from bandana_kv.placement.registry import QUALITIES, needs_values

VALUES_DIM = 32


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--log", required=True, help="an access log in any format the library reads"
    )
    parser.add_argument("--rows-per-block", type=int, default=32)
    parser.add_argument("--methods", default="shp-fast,shp-balanced,popularity,shuffled")
    parser.add_argument("--ordered", action="store_true", help="learn on the first part of the log")
    parser.add_argument(
        "--train", type=float, default=0.7, help="share of the requests to learn from"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON")
    parser.add_argument("--keep", help="also keep the result as bench/results/KEEP.json")
    return parser.parse_args()


def named(name: str) -> tuple[str, str]:
    """Return method and quality that a name on the command line stands for."""
    if name in methods():
        return name, "balanced"
    method, _, quality = name.rpartition("-")
    if method in methods() and quality in QUALITIES:
        return method, quality
    raise SystemExit(f"unknown method {name!r}; there are {', '.join(methods())}")


def values_of(log: AccessLog, rows: int, seed: int) -> np.ndarray:
    """Return vectors (rows, VALUES_DIM) in which rows requested together lie close together."""
    from scipy.sparse import csr_matrix
    from sklearn.utils.extmath import randomized_svd

    ones = np.ones(log.lookups, np.float32)
    requests = csr_matrix((ones, log.ids, log.offsets), (log.requests, rows))
    _, scale, axes = randomized_svd(requests, min(VALUES_DIM, rows - 1), random_state=seed)
    return np.ascontiguousarray((scale[:, None] * axes).T, np.float32)


def measure(name: str, arguments: argparse.Namespace, answer: Connection) -> None:
    """Place, and send back what it took; runs in a process of its own."""
    method, quality = named(name)
    log = AccessLog.read(arguments.log)
    train, test = log.split(arguments.train, ordered=arguments.ordered, seed=arguments.seed)
    options: dict[str, Any] = {"quality": quality, "threads": arguments.threads}
    small = AccessLog(np.arange(0, 4097, 4, dtype=np.int64), np.arange(4096).astype(log.ids.dtype))
    if needs_values(method):
        small_values = np.random.default_rng(0).random((4096, VALUES_DIM), np.float32)
        place(small, 4096, arguments.rows_per_block, method, values=small_values, **options)
        options["values"] = values_of(train, log.rows, arguments.seed)
    else:
        place(small, 4096, arguments.rows_per_block, method, **options)
    seconds = []
    for _ in range(arguments.repeats):
        begin = time.perf_counter()
        placement = place(
            train, log.rows, arguments.rows_per_block, method, seed=arguments.seed, **options
        )
        seconds.append(time.perf_counter() - begin)
    peak_kib = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    answer.send(
        {
            "method": name,
            "seconds": round(min(seconds), 3),
            "peak_rss_bytes": peak_kib * 1024,
            "fanout_train": fanout(train, placement),
            "fanout_test": fanout(test, placement),
        }
    )


def main() -> None:
    arguments = parsed()
    names = arguments.methods.split(",")
    for name in names:
        named(name)
    context = multiprocessing.get_context("spawn")
    results = []
    for name in names:
        here, there = context.Pipe()
        child = context.Process(target=measure, args=(name, arguments, there))
        child.start()
        there.close()
        try:
            result = here.recv()
        except EOFError:
            raise SystemExit(f"method {name!r} failed") from None
        child.join()
        results.append(result)
        if not arguments.json:
            print(
                f"{result['method']:24} {result['seconds']:9.3f} s"
                f" {result['peak_rss_bytes'] / 2**20:8.0f} MiB"
                f"   training {result['fanout_train']:8.3f}  held-out {result['fanout_test']:8.3f}",
                flush=True,
            )
    log = AccessLog.read(arguments.log)
    summary = {
        "log": Path(arguments.log).stem,
        "rows": log.rows,
        "pins": int(log.lookups),
        "rows_per_block": arguments.rows_per_block,
        "train": arguments.train,
        "ordered": arguments.ordered,
        "results": results,
        **surroundings(arguments.seed),
    }
    report(summary, arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
