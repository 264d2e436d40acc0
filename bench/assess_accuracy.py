"""What was predicted of a log, and what came when it was served: reads, throughput, latency.

    python bench/assess_accuracy.py --dir DIR --log L.npz [--ordered] [--profile device.json] \
        [--adapter blockfile] [--threads 8] [--cache 0.05] [--row-bytes 128] --json

Learns on the first 70 % of the requests (by position with --ordered, else of a permutation) and
serves the rest, of which the first fifth warms and is not counted. A store is loaded with what
`choose_plan` makes of the training part alone, with DRAM for --cache of the table's bytes, and
served as bench/serve.py serves: in a process of its own, every row compared with its source; but
the page cache is free, so that LMDB finds there what it has read before.

predicted_reads
    Block reads by miniature simulation, on the requests that are then served: samples of the
    blocks, as large as it takes until their standard error is 1 % (`standard_error`, at
    `sample_rate`); times the share that is left where several callers miss a block at the same
    time and read it once, by :mod:`bandana_kv.simulate.crowd`.
measured_reads
    Of --threads callers, as in the throughput. `relative_error` is (predicted - measured) /
    measured. `one_caller`: the same without that share, and what one caller read who asks in the
    log's order; `replayed_reads` is what a replay of the whole counts, which should be equal.
predicted_rows_per_second, predicted_p50_us, predicted_p99_us
    By :mod:`bandana_kv.assess.performance`: the costs of this machine, measured by asking a small
    store of the same engine in the same directory; the device's curve; what a replay says each
    request needs. Costs are measured and requests served in turn, --rounds times, since other
    programs slow both down; the medians are compared. Both run before other programs where that is
    allowed. What the bench's clients take for a request, beside the answer, is part of either
    (`client_us_per_request`).
predicted_cpu_us_per_lookup
    Processor time; measured with what comparing the rows takes.
from_training
    What the training part says of later traffic, with the spread in which it should lie
    (:mod:`bandana_kv.plan.outlook`), and whether what came did. `plan_low` and `plan_high` are
    the least and most over the parts by which the plan was judged. All of one caller.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from common import report, surroundings
from serve import TRAIN, Bench, Planned
from serving import OURS, WARM_SHARE

from bandana_kv import AccessLog
from bandana_kv.assess.performance import Costs, Load, calibrate, predict
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.state import capacity_for
from bandana_kv.device import DeviceProfile, profile
from bandana_kv.device.priority import preferred
from bandana_kv.disk.placement import layout_of
from bandana_kv.plan.choose import Subject
from bandana_kv.plan.outlook import outlook
from bandana_kv.progress import Progress
from bandana_kv.simulate import Estimate, PerRequest, estimate, per_request
from bandana_kv.simulate.replay import stream_of

NO_END = float("inf")


def simulated(
    bench: Bench, planned: Planned, test: AccessLog, adapter: str, threads: int, seed: int
) -> tuple[Estimate, PerRequest, PerRequest]:
    """Return what `test` will cost one caller: by samples, by request; and what `threads`."""
    placement, policy = planned.placement, planned.choice.policy
    stream = stream_of(test, placement, int(WARM_SHARE * test.requests))
    layout = layout_of(placement, heat_by_position(planned.learn.ids, placement.position_of_id))
    capacity_rows = capacity_for(policy, bench.cache_bytes(adapter), 4 * bench.dim, bench.rows)
    return (
        estimate(stream, layout, policy, capacity_rows, seed=seed),
        per_request(stream, layout, policy, capacity_rows),
        per_request(stream, layout, policy, capacity_rows, callers=threads),
    )


def serve(bench: Bench, adapter: str, threads: int) -> dict[str, Any]:
    run: dict[str, Any] = bench.run(OURS + adapter, {}, threads, NO_END)
    if "failed" in run:
        raise click.ClickException(f"serving: {run['failed']}")
    return run


def in_turn(
    bench: Bench, adapter: str, threads: int, rounds: int, seed: int
) -> tuple[list[Costs], list[dict[str, Any]]]:
    """Measure costs and serve, in turn."""

    def costs(number: int) -> Costs:
        row_bytes, place = 4 * bench.dim, bench.directory
        return calibrate(
            row_bytes, threads=threads, adapter=adapter, directory=place, seed=seed + number
        )

    found, served = [costs(0)], []
    for number in range(rounds):
        served.append(serve(bench, adapter, threads))
        found.append(costs(number + 1))
    return found, served


def median_one(rates: list[float]) -> int:
    """Return which of the rates is in the middle."""
    return int(np.argsort(rates)[len(rates) // 2])


def with_client(costs: Costs, client_us: float) -> Costs:
    """Add what clients do with each answer, which is Python too: compare it, and keep the time."""
    parts = {
        name: msgspec.structs.replace(part, request=part.request + client_us)
        for name in ("alone", "crowded", "serial")
        for part in [getattr(costs, name)]
    }
    return msgspec.structs.replace(costs, **parts)


def processor_us(costs: list[Costs], load: Load) -> float:
    """Return the processor time of a lookup, which other programs hardly change."""
    each = [float(one.crowded.of(load).sum()) for one in costs]
    return sorted(each)[len(each) // 2] / max(1, int(load.lookups.sum()))


def from_training(bench: Bench, planned: Planned, came: float, seed: int) -> dict[str, Any]:
    """Return what the training part says of later traffic, against what came of it."""
    subject = Subject(
        "t", bench.rows, 4 * bench.dim, bench.rows_per_block, planned.learn, seed, Progress()
    )
    ahead, judged = outlook(subject, planned.choice), planned.choice.predicted
    return {
        "reads_per_lookup": ahead.reads_per_lookup,
        "low": ahead.low,
        "high": ahead.high,
        "measured": came,
        "covers": ahead.low <= came <= ahead.high,
        "learning": ahead.learning,
        "plan_low": judged.low,
        "plan_high": judged.high,
        "plan_covers": judged.low <= came <= judged.high,
    }


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--log", "path", type=Path, required=True)
@click.option("--ordered", is_flag=True, help="In order of time: learn on the start.")
@click.option("--adapter", default="blockfile", show_default=True)
@click.option("--threads", default=8, show_default=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / table.")
@click.option("--row-bytes", default=128, show_default=True)
@click.option("--profile", "profiled", type=Path, help="By default DIR is measured quickly.")
@click.option("--rounds", default=3, show_default=True, help="Of measuring costs and serving.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    directory: Path,
    path: Path,
    ordered: bool,
    adapter: str,
    threads: int,
    cache_fraction: float,
    row_bytes: int,
    profiled: Path | None,
    rounds: int,
    seed: int,
    _json: bool,
    keep: bool,
) -> None:
    log = AccessLog.read(path)
    learn, test = log.split(train=TRAIN, ordered=ordered, seed=seed)
    device = DeviceProfile.read(profiled) if profiled else profile(directory, quick=True)
    work = directory / f"assess-accuracy-{os.getpid()}"
    work.mkdir(parents=True)
    dram_bytes = int(cache_fraction * log.rows * row_bytes)
    bench = Bench(work, log.rows, 1, row_bytes // 4, dram_bytes, limits=False)
    try:
        bench.write_requests(test, ordered=ordered, seed=seed)
        planned = bench.plan(learn, seed)
        bench.build([OURS + adapter], planned)
        expected, one_caller, each = simulated(bench, planned, test, adapter, threads, seed)
        load_before = os.getloadavg()
        with preferred():
            costs, served = in_turn(bench, adapter, threads, rounds, seed)
            alone = serve(bench, adapter, 1)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    client_us = float(np.median([run["client_us_per_request"] for run in served]))
    costs = [with_client(one, client_us) for one in costs]
    performances = [predict(one, device, Load.of(each), threads=threads) for one in costs]
    at = median_one([one.rows_per_second for one in performances])
    predicted = performances[at]
    by_one = predict(costs[at], device, Load.of(one_caller), threads=1)
    # Callers who miss a block together read it once: of samples that cannot be seen.
    left = int(each.block_reads.sum()) / max(1, int(one_caller.block_reads.sum()))
    predicted_reads = left * expected.block_reads
    measured = served[median_one([run["rows_per_second"] for run in served])]
    result = {
        "log": path.stem,
        "adapter": adapter,
        "threads": threads,
        "cache_fraction": cache_fraction,
        "row_bytes": row_bytes,
        "predicted_reads": round(predicted_reads),
        "measured_reads": measured["block_reads"],
        "relative_error": predicted_reads / max(1, measured["block_reads"]) - 1,
        "one_caller": {
            "predicted_reads": round(expected.block_reads),
            "measured_reads": alone["block_reads"],
            "relative_error": expected.block_reads / max(1, alone["block_reads"]) - 1,
            "replayed_reads": int(one_caller.block_reads.sum()),
            "predicted_rows_per_second": round(by_one.rows_per_second),
            "measured_rows_per_second": alone["rows_per_second"],
            "measured_cpu_us_per_lookup": alone["cpu_us_per_lookup"],
        },
        "predicted_rows_per_second": round(predicted.rows_per_second),
        "measured_rows_per_second": measured["rows_per_second"],
        "rows_per_second_error": predicted.rows_per_second / measured["rows_per_second"] - 1,
        "predicted_p50_us": round(predicted.p50_us, 1),
        "measured_p50_us": measured["p50_us"],
        "predicted_p99_us": round(predicted.p99_us, 1),
        "measured_p99_us": measured["p99_us"],
        "predicted_cpu_us_per_lookup": round(processor_us(costs, Load.of(each)), 2),
        "measured_cpu_us_per_lookup": measured["cpu_us_per_lookup"],
        "bound_by": predicted.bound_by,
        "standard_error": expected.standard_error / max(1.0, expected.block_reads),
        "sample_rate": expected.rate,
        "lookups": int(each.lookups.sum()),
        "measured_lookups": measured["lookups"],
        "wrong_rows": sum(run["wrong_rows"] for run in [*served, alone]),
        "from_training": from_training(
            bench, planned, alone["block_reads"] / max(1, alone["lookups"]), seed
        ),
        "rows_per_second_by_round": [run["rows_per_second"] for run in served],
        "predicted_by_calibration": [round(one.rows_per_second) for one in performances],
        "costs": msgspec.to_builtins(costs[at]),
        "plan": planned.summary(),
        "ordered": ordered,
        "client_us_per_request": client_us,
        "load_averages": {"before": load_before, "after": os.getloadavg()},
        "surroundings": surroundings(seed),
    }
    report(result, f"assess-accuracy-{path.stem}-{adapter}" if keep else None)


if __name__ == "__main__":
    main()
