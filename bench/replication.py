"""What second copies of rows save: block reads on held-out requests, at equal DRAM.

    python bench/replication.py --log L.npz [--ordered] [--cache 0.05] [--json]

For each share of extra blocks the admission is tuned on the training part alone, as `load`
does. A copy costs 8 bytes of memory when it is served; `equal_memory` takes that out of the
cache, so that a table with copies has a smaller one. The first fifth of the held-out requests
warms the cache and is not counted.
"""

from __future__ import annotations

from pathlib import Path

import click
from common import report, surroundings

from bandana_kv import AccessLog
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Policy
from bandana_kv.cache.state import cache_bytes_of, capacity_for
from bandana_kv.placement import Placement, fanout, place
from bandana_kv.placement.measure import blocks_per_request
from bandana_kv.placement.replication import replicate
from bandana_kv.plan.points import LEARN_SHARE, judged, scaled
from bandana_kv.simulate.race import candidates, race
from bandana_kv.simulate.replay import replay

WARM_SHARE = 0.2
ROW_BYTES = 128
COPY_BYTES = 8


def reads(
    learn: AccessLog, test: AccessLog, placement: Placement, part: Placement, capacity_rows: int
) -> float:
    """Reads per lookup with the policy that `part`, made without the validation, advises."""
    first, last = learn.split(train=LEARN_SHARE, ordered=True)
    policies = candidates()
    capacities = dict.fromkeys(policies, capacity_rows)
    chosen = scaled(race(*judged(first, last, part), policies, capacities, 0)[0].policy)
    return replay(
        test,
        placement,
        capacity_rows,
        policy=chosen,
        heat=heat_by_position(learn.ids, placement.position_of_id),
        warm_requests=int(WARM_SHARE * test.requests),
    ).reads_per_lookup


@click.command()
@click.option("--log", "path", type=Path, required=True)
@click.option("--ordered", is_flag=True)
@click.option("--cache", default=0.05, show_default=True)
@click.option("--rows-per-block", default=32, show_default=True)
@click.option("--shares", default="0,0.1,0.2,0.4", show_default=True)
@click.option("--train", default=0.7, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    path: Path,
    ordered: bool,
    cache: float,
    rows_per_block: int,
    shares: str,
    train: float,
    seed: int,
    _json: bool,
    keep: bool,
) -> None:
    log = AccessLog.read(path)
    learn, test = log.split(train=train, ordered=ordered, seed=seed)
    first, _ = learn.split(train=LEARN_SHARE, ordered=True)
    whole = place(learn, log.rows, rows_per_block, seed=seed)
    part = place(first, log.rows, rows_per_block, seed=seed)
    capacity_rows = max(1, int(cache * log.rows))
    cache_bytes = cache_bytes_of(Policy(), capacity_rows, ROW_BYTES, log.rows)
    results = []
    for share in (float(each) for each in shares.split(",")):
        copied = replicate(learn, whole, share, seed=seed) if share else whole
        advised = replicate(first, part, share, seed=seed) if share else part
        copies = 0 if copied.replicas is None else copied.replicas.size
        smaller = capacity_for(Policy(), cache_bytes - COPY_BYTES * copies, ROW_BYTES, log.rows)
        results.append(
            {
                "share": share,
                "copies": copies,
                "fanout_test": float(blocks_per_request(test, copied).mean()),
                "reads_per_lookup": reads(learn, test, copied, advised, capacity_rows),
                "reads_per_lookup_equal_memory": reads(learn, test, copied, advised, smaller),
            }
        )
    result = {
        "bench": "replication",
        "log": path.stem,
        "ids_per_request": log.lookups / log.requests,
        "rows": log.rows,
        "rows_per_block": rows_per_block,
        "cache_fraction": cache,
        "fanout_test_without": fanout(test, whole),
        "results": results,
        "surroundings": surroundings(seed),
    }
    report(result, f"replication-{path.stem}" if keep else None)


if __name__ == "__main__":
    main()
