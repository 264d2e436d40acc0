"""All candidate policies, replayed in full and raced in miniature: is the choice as good, sooner?

    python bench/miniature.py --log L.npz [--ordered] --rows-per-block 32 --cache 0.05 \
        --train 0.7 --seed 0 --json

The placement is learnt on the first 70 % of the requests; the complete log then is simulated,
with its first fifth to warm the caches, so that a log of a million lookups is one here, too.
Full and miniature see the same stream, on as many threads.

seconds_full, seconds_miniature
    Of a replay of every candidate, and of :func:`bandana_kv.simulate.race.race`, its sampling
    included. Other work on the machine slows down both; `cpu_seconds_*` are processor time.
chosen_reads_over_best
    Block reads of the race's choice over those of the best candidate, both in full.
curve_mean_abs_error
    Mean over DRAM sizes of |miniature - full| / full, reads per lookup, of `curve` at its default
    rate under the chosen policy; `curve_mean_abs_error_lru` under LRU without neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from common import report, surroundings
from numpy.typing import NDArray

from bandana_kv import AccessLog
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Policy
from bandana_kv.disk.placement import layout_of
from bandana_kv.kernels.layout import Layout
from bandana_kv.placement import Placement, place
from bandana_kv.simulate import curve, replay
from bandana_kv.simulate.miniature import in_threads, rate_for
from bandana_kv.simulate.race import candidates, race
from bandana_kv.simulate.replay import Stream, run, stream_of

WARM_SHARE = 0.2
# Smaller caches are replayed nearly whole on logs of this size, which shows nothing.
CURVE_FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.5)
T = TypeVar("T")


@click.command()
@click.option("--log", "path", type=Path, required=True)
@click.option("--ordered", is_flag=True, help="In order of time: learn on the start.")
@click.option("--rows-per-block", default=32, show_default=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / rows.")
@click.option("--train", default=0.7, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone, which it does anyway.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    path: Path,
    ordered: bool,
    rows_per_block: int,
    cache_fraction: float,
    train: float,
    seed: int,
    as_json: bool,  # noqa: ARG001  # JSON is all it prints
    keep: bool,
) -> None:
    log = AccessLog.read(path)
    learn, _ = log.split(train=train, ordered=ordered, seed=seed)
    log, _ = log.split(train=1.0, ordered=ordered, seed=seed)
    placement = place(learn, log.rows, rows_per_block, seed=seed)
    heat = heat_by_position(learn.ids, placement.position_of_id)
    warm = int(WARM_SHARE * log.requests)
    stream, layout = stream_of(log, placement, warm), layout_of(placement, heat)
    policies = candidates()
    capacity_rows = max(1, int(cache_fraction * log.rows))
    capacities = dict.fromkeys(policies, capacity_rows)

    _compile(stream, layout, policies, seed)
    full, seconds_full, cpu_full = _timed(
        lambda: in_threads(lambda each: run(stream, layout, each, capacity_rows), policies)
    )
    ranked, seconds_race, cpu_race = _timed(
        lambda: race(stream, layout, policies, capacities, seed)
    )
    reads = {policy: each.block_reads for policy, each in zip(policies, full, strict=True)}
    best, chosen = min(reads, key=lambda each: reads[each]), ranked[0].policy
    sizes = [max(1, round(fraction * log.rows)) for fraction in CURVE_FRACTIONS]
    errors = {
        policy: _curve_error(log, placement, heat, policy, sizes, warm)
        for policy in (chosen, Policy())
    }
    result = {
        "log": path.stem,
        "rows": log.rows,
        "lookups": log.lookups,
        "cache_fraction": cache_fraction,
        "configurations": len(policies),
        "sample_rate": ranked[0].rate,
        "seconds_full": round(seconds_full, 4),
        "seconds_miniature": round(seconds_race, 4),
        "speedup": seconds_full / seconds_race,
        "cpu_seconds_full": round(cpu_full, 4),
        "cpu_seconds_miniature": round(cpu_race, 4),
        "cpu_speedup": cpu_full / cpu_race,
        "chosen": str(chosen),
        "chosen_reads": reads[chosen],
        "best": str(best),
        "best_reads": reads[best],
        "plain_lru_reads": reads[Policy()],
        "chosen_reads_over_best": reads[chosen] / max(1, reads[best]),
        "curve_rows": sizes,
        "curve_rate": rate_for(sizes),
        "curve_mean_abs_error": errors[chosen],
        "curve_mean_abs_error_lru": errors[Policy()],
        "ordered": ordered,
        "rows_per_block": rows_per_block,
        "surroundings": surroundings(seed),
    }
    report(result, f"miniature-{path.stem}-{cache_fraction:g}" if keep else None)


def _compile(stream: Stream, layout: Layout, policies: tuple[Policy, ...], seed: int) -> None:
    """Load the compiled kernels, so that neither side pays for it."""
    few = stream._replace(offsets=stream.offsets[:11], warm_requests=0)
    run(few, layout, policies[0], 10)
    race(few, layout, policies[:2], dict.fromkeys(policies[:2], 1000), seed)


def _timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """Return what `work` returns, and its seconds by the wall clock and of processor time."""
    begun, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - begun, time.process_time() - cpu


def _curve_error(
    log: AccessLog,
    placement: Placement,
    heat: NDArray[np.uint8],
    policy: Policy,
    sizes: list[int],
    warm: int,
) -> float:
    options: dict[str, Any] = {"policy": policy, "heat": heat, "warm_requests": warm}
    small = curve(log, placement, sizes, **options)
    full = [replay(log, placement, rows, **options).reads_per_lookup for rows in sizes]
    return float(np.mean(np.abs(small.reads_per_lookup - full) / full))


if __name__ == "__main__":
    main()
