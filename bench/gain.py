"""Block reads per lookup on held-out requests: baseline, popularity order, SHP.

    python bench/gain.py --log L.npz [--ordered] [--cache 0.05] [--keep]

By replay through the cache kernels that serve (a test shows that live counts are equal).
The baseline is an LRU of rows in shuffled order, one block read for each missed row; with
coalescing it reads a block once for a request. `tuned` is the admission that `load` chooses
from the training part alone; `hindsight` is the best one on the held-out part itself. The
first fifth of the held-out requests warms the cache and is not counted.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings

from bandana_kv import AccessLog
from bandana_kv.heat import count_lookups, heat_of_counts
from bandana_kv.placement import Placement, fanout, place
from bandana_kv.simulate.replay import replay
from bandana_kv.simulate.tune import LEARN_SHARE, sweep, tune

WARM_SHARE = 0.2


@click.command()
@click.option("--log", "path", type=Path, required=True)
@click.option("--ordered", is_flag=True)
@click.option("--cache", default=0.05, show_default=True)
@click.option("--rows-per-block", default=31, show_default=True, help="31 of 128 bytes fit 4 KiB.")
@click.option("--train", default=0.7, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    path: Path,
    ordered: bool,
    cache: float,
    rows_per_block: int,
    train: float,
    seed: int,
    keep: bool,
) -> None:
    log = AccessLog.read(path)
    learn, test = log.split(train=train, ordered=ordered, seed=seed)
    capacity_rows = max(1, int(cache * log.rows))
    warm = int(WARM_SHARE * test.requests)

    def placed(method: str, requests: AccessLog) -> Placement:
        return place(
            requests, rows=log.rows, rows_per_block=rows_per_block, method=method, seed=seed
        )

    shuffled = placed("shuffled", learn)
    rowwise = replay(test, shuffled, capacity_rows, coalesce=False, warm_requests=warm)
    coalesced = replay(test, shuffled, capacity_rows, warm_requests=warm)
    methods = {}
    for method in ("popularity", "shp"):
        begun = time.perf_counter()
        placement = placed(method, learn)
        seconds = time.perf_counter() - begun
        figures = _figures(
            learn,
            test,
            placement,
            lambda part, m=method: placed(m, part),
            cache,
            capacity_rows,
            warm,
            seed,
        )
        for name in ("tuned", "hindsight"):
            reads = figures[name]["reads_per_lookup"]
            figures[name]["gain"] = rowwise.reads_per_lookup / reads
            figures[name]["gain_over_coalesced"] = coalesced.reads_per_lookup / reads
        methods[method] = {
            "seconds": round(seconds, 3),
            "fanout_train": fanout(learn, placement),
            "fanout_test": fanout(test, placement),
            **figures,
        }
    result = {
        "bench": "gain",
        "log": path.stem,
        "ordered": ordered,
        "requests": log.requests,
        "rows": log.rows,
        "lookups": log.lookups,
        "rows_per_block": rows_per_block,
        "cache_fraction": cache,
        "baseline_reads_per_lookup": rowwise.reads_per_lookup,
        "baseline_coalesced_reads_per_lookup": coalesced.reads_per_lookup,
        "methods": methods,
        "surroundings": surroundings(seed),
    }
    report(result, f"gain-{path.stem}" if keep else None)


def _figures(
    learn: AccessLog,
    test: AccessLog,
    placement: Placement,
    placed: Any,
    cache: float,
    capacity_rows: int,
    warm: int,
    seed: int,
) -> dict[str, Any]:
    counts = count_lookups(learn.ids, placement.rows)
    heat = np.empty(placement.rows, np.uint8)
    heat[placement.position_of_id] = heat_of_counts(counts)
    first, last = learn.split(train=LEARN_SHARE, ordered=True)
    chosen = tune(first, last, placed(first), seed=seed).admission_at(cache)
    tuned = replay(
        test, placement, capacity_rows, heat=heat, least_heat=chosen.least_heat, warm_requests=warm
    )
    best, hindsight = min(
        sweep(test, placement, counts, capacity_rows, warm), key=lambda pair: pair[1].block_reads
    )
    return {
        "tuned": {"admission": str(chosen), "reads_per_lookup": tuned.reads_per_lookup},
        "hindsight": {"admission": str(best), "reads_per_lookup": hindsight.reads_per_lookup},
    }


if __name__ == "__main__":
    main()
