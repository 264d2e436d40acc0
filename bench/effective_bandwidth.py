"""Block reads on requests that nothing has seen: baseline, the paper's recipe, our plan.

    python bench/effective_bandwidth.py --log L.npz [--ordered] --rows-per-block 32 \
        --cache 0.05 --train 0.7 --seed 0 [--replicate 0.2] [--store-as int8-rowwise] --json

Learns on the first 70 % alone, serves the rest, and does not count its first fifth. By replay
through the cache's own kernels (a test shows that a store counts the same).

baseline
    LRU of rows, ids shuffled, one block read for each missed row; `coalesced` reads a block
    once for a request.
paper_recipe
    SHP as published, knowing no cache, LRU, and neighbours by the training-count threshold
    that is best in hindsight on the test part.
reads
    What the plan needs that `choose_plan` makes of the training part alone.

With --store-as, `reads` are those of rows that are stored so, with as many bytes of DRAM as the
baseline takes for rows and for finding them, and blocks as full as a page holds them with its
header; the others stay float32.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import msgspec
from common import report, surroundings

from bandana_kv import AccessLog
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.cache.state import cache_bytes_of, capacity_for
from bandana_kv.codecs import codec_named, codec_names
from bandana_kv.disk import blocks
from bandana_kv.placement import place
from bandana_kv.placement.replication import replicate as add_copies
from bandana_kv.plan.choose import Subject, choose
from bandana_kv.progress import Progress
from bandana_kv.simulate import lower_bound, replay
from bandana_kv.simulate.miniature import in_threads

WARM_SHARE = 0.2
THRESHOLDS = (0, 1, 2, 3, 5, 8, 13, 20, 30, 50, 80, 120, 200, 300, 500, 800, 1200, 2000, 5000)
ROW_BYTES, PAGE_BYTES = 128, 4096


@click.command()
@click.option("--log", "path", type=Path, required=True)
@click.option("--ordered", is_flag=True, help="In order of time: learn on the start.")
@click.option("--rows-per-block", default=32, show_default=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / rows.")
@click.option("--train", default=0.7, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--replicate", default=0.0, show_default=True, help="Share of extra blocks.")
@click.option("--store-as", type=click.Choice(codec_names()), help="How our rows are stored.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone, which it does anyway.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    path: Path,
    ordered: bool,
    rows_per_block: int,
    cache_fraction: float,
    train: float,
    seed: int,
    replicate: float,
    store_as: str | None,
    as_json: bool,  # noqa: ARG001  # JSON is all it prints
    keep: bool,
) -> None:
    log = AccessLog.read(path)
    learn, test = log.split(train=train, ordered=ordered, seed=seed)
    capacity_rows = max(1, int(cache_fraction * log.rows))
    warm = int(WARM_SHARE * test.requests)
    subject = Subject("log", log.rows, ROW_BYTES, rows_per_block, learn, seed, Progress())

    shuffled = subject.placed(learn, "shuffled", 0)
    rowwise = replay(test, shuffled, capacity_rows, coalesce=False, warm_requests=warm)
    coalesced = replay(test, shuffled, capacity_rows, warm_requests=warm)
    paper_reads, threshold = _paper(
        learn, test, log.rows, rows_per_block, capacity_rows, warm, seed
    )

    stored_bytes, plain_rows = ROW_BYTES, capacity_rows

    def room(policy: Policy) -> int:
        if store_as is None:
            return plain_rows
        # What finds rows takes DRAM, too, and of short rows a larger part.
        budget_bytes = cache_bytes_of(Policy(), plain_rows, ROW_BYTES, log.rows)
        return capacity_for(policy, budget_bytes, stored_bytes, log.rows)

    if store_as is not None:
        stored_bytes = codec_named(store_as).row_bytes(ROW_BYTES // 4)
        rows_per_block = blocks.rows_per_block(PAGE_BYTES, stored_bytes)
        subject = Subject("log", log.rows, stored_bytes, rows_per_block, learn, seed, Progress())
    begun = time.perf_counter()
    choice = choose(subject, room)
    capacity_rows = room(choice.policy)
    placement = subject.placed(learn, choice.placement, choice.resident_rows)
    if replicate:
        placement = add_copies(learn, placement, replicate, seed=seed)
    plan_seconds = time.perf_counter() - begun
    served = replay(
        test,
        placement,
        capacity_rows,
        policy=choice.policy,
        heat=heat_by_position(learn.ids, placement.position_of_id),
        warm_requests=warm,
    )
    bound = None
    if placement.replicas is None:
        bound = lower_bound(test, placement, capacity_rows, warm_requests=warm)
    result = {
        "log": path.stem,
        "rows": log.rows,
        "lookups": rowwise.lookups,
        "cache_fraction": cache_fraction,
        "baseline_reads": rowwise.block_reads,
        "baseline_coalesced_reads": coalesced.block_reads,
        "paper_recipe_reads": paper_reads,
        "paper_recipe_threshold": threshold,
        "reads": served.block_reads,
        "chosen": msgspec.to_builtins(choice),
        "gain": rowwise.block_reads / max(1, served.block_reads),
        "gain_over_paper_recipe": paper_reads / max(1, served.block_reads),
        "lower_bound_reads": bound,
        "plan_seconds": round(plan_seconds, 3),
        "ordered": ordered,
        "rows_per_block": rows_per_block,
        "store_as": store_as,
        "stored_row_bytes": stored_bytes,
        "capacity_rows": capacity_rows,
        "replicate": replicate,
        "surroundings": surroundings(seed),
    }
    copies = (f"-r{replicate:g}" if replicate else "") + (f"-{store_as}" if store_as else "")
    name = f"effective-bandwidth-{path.stem}-{cache_fraction:g}{copies}"
    report(result, name if keep else None)


def _paper(
    learn: AccessLog,
    test: AccessLog,
    rows: int,
    rows_per_block: int,
    capacity_rows: int,
    warm: int,
    seed: int,
) -> tuple[int, int]:
    """Return the reads of the paper's recipe, and the threshold that was best on `test`."""
    placement = place(learn, rows, rows_per_block, "shp-plain", seed=seed)
    heat = heat_by_position(learn.ids, placement.position_of_id)

    def reads(threshold: int) -> int:
        policy = Policy("lru", Admission("threshold", threshold))
        return replay(
            test, placement, capacity_rows, policy=policy, heat=heat, warm_requests=warm
        ).block_reads

    return min(zip(in_threads(reads, THRESHOLDS), THRESHOLDS, strict=True))


if __name__ == "__main__":
    main()
