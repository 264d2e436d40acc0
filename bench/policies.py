"""Every eviction with every admission, in hindsight: block reads on held-out requests.

    python bench/policies.py --log L.npz [--ordered] [--cache 0.05] [--json]

SHP from the training part, 32 rows a block; `gain` is over the baseline of
bench/effective_bandwidth.py, by full replay. What a plan chooses among, without its choice.
"""

from __future__ import annotations

from pathlib import Path

import click
from common import report, surroundings

from bandana_kv import AccessLog
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Policy
from bandana_kv.placement import place
from bandana_kv.simulate import lower_bound, replay
from bandana_kv.simulate.miniature import in_threads
from bandana_kv.simulate.race import candidates

WARM_SHARE, ROWS_PER_BLOCK = 0.2, 32


@click.command()
@click.option("--log", "path", type=Path, required=True)
@click.option("--ordered", is_flag=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True)
@click.option("--train", default=0.7, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    path: Path,
    ordered: bool,
    cache_fraction: float,
    train: float,
    seed: int,
    _json: bool,
    keep: bool,
) -> None:
    log = AccessLog.read(path)
    learn, test = log.split(train=train, ordered=ordered, seed=seed)
    capacity_rows = max(1, int(cache_fraction * log.rows))
    warm = int(WARM_SHARE * test.requests)
    shuffled = place(None, log.rows, ROWS_PER_BLOCK, "shuffled", seed=seed)
    baseline = replay(test, shuffled, capacity_rows, coalesce=False, warm_requests=warm)
    placement = place(learn, log.rows, ROWS_PER_BLOCK, "shp", seed=seed)
    heat = heat_by_position(learn.ids, placement.position_of_id)

    def reads(policy: Policy) -> int:
        counted = replay(
            test, placement, capacity_rows, policy=policy, heat=heat, warm_requests=warm
        )
        return counted.block_reads

    policies = candidates()
    counted = in_threads(reads, policies)
    bound = lower_bound(test, placement, capacity_rows, warm_requests=warm)
    result = {
        "bench": "policies",
        "log": path.stem,
        "cache_fraction": cache_fraction,
        "baseline_reads": baseline.block_reads,
        "lower_bound_reads": bound,
        "policies": [
            {
                "policy": str(policy),
                "reads": each,
                "gain": round(baseline.block_reads / max(1, each), 3),
                "over_lower_bound": round(each / max(1, bound), 2),
            }
            for policy, each in zip(policies, counted, strict=True)
        ],
        "surroundings": surroundings(seed),
    }
    report(result, f"policies-{path.stem}" if keep else None)


if __name__ == "__main__":
    main()
