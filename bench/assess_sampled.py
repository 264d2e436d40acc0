"""What an assessment by a sample of the blocks says, against one of the whole log.

    python bench/assess_sampled.py --log L.npz [--rates 0.25,0.125,0.0625] [--cache 0.05] --json

The log is written as --files files; `bandana_kv.placement.distributed.sample` draws a share of the
blocks from them, as `assess` does for logs that no machine holds. Both logs are then judged as
`assess` judges: learnt from the requests to learn from, with DRAM for --cache of the table's
bytes, and counted on the others, which were drawn by the seed.

gain
    The plain row cache's block reads over the plan's. `relative_error` is the sample's over the
    whole log's, less 1.
baseline, plan, lower_bound
    Block reads a request.
mean_length, p99_length, p99_block_reads
    Lookups a request, and block reads of the request that 99 of 100 stay below.
lookups_share
    Lookups of the sample over `rate` times those of the log.

All are counts: they do not depend on the machine, but for `seconds`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings

from bandana_kv import AccessLog
from bandana_kv.assess import TRAIN, Block
from bandana_kv.assess.gain import Learnt
from bandana_kv.placement.distributed import InProcess, Sample, open_log, sample
from bandana_kv.plan.choose import Subject
from bandana_kv.progress import Progress


def judged(log: AccessLog, rows: int, row_bytes: int, cache: float, parts: Sample | None) -> Any:
    """Return what the plan gains on the requests that judge."""
    begun = time.perf_counter()
    if parts is None:
        learn, judge = log.split(train=TRAIN, seed=0)
    else:
        learn, judge = parts.split()
    block = Block.of("t", row_bytes)
    subject = Subject("t", rows, row_bytes, block.rows, learn, 0, Progress())
    learnt = Learnt(subject, judge, parts)
    found = learnt.gained(int(cache * rows * row_bytes))
    baseline, plan = (sum(each.block_reads for each in of) for of in (found.baseline, found.plan))
    load = learnt.load_of(found.seen, found.choice.policy, found.capacity_rows, 1)
    return {
        "rows": rows,
        "requests": round(learnt.requests),
        "gain": round(baseline / max(1, plan), 4),
        "baseline": round(baseline / learnt.requests, 4),
        "plan": round(plan / learnt.requests, 4),
        "lower_bound": round(found.lower_bound / learnt.requests, 4),
        "mean_length": round(float(load.lookups.mean()), 3),
        "p99_length": round(float(np.percentile(load.lookups, 99)), 1),
        "p99_block_reads": round(float(np.percentile(load.block_reads, 99)), 1),
        "policy": str(found.choice.policy),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def drawn(files: Path, rows: int, row_bytes: int, rate: float, seed: int) -> Sample:
    runner = InProcess()
    with open_log([files], runner, rows, train=TRAIN, seed=seed) as log:
        return sample(runner, log, Block.of("t", row_bytes).rows, rate, seed=seed)


@click.command()
@click.option("--log", "path", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--rates", default="0.25,0.125,0.0625", show_default=True)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--files", default=4, show_default=True, type=click.IntRange(1))
@click.option("--cache", default=0.05, show_default=True, type=click.FloatRange(0, 1))
@click.option("--row-bytes", default=128, show_default=True, type=click.IntRange(1))
@click.option("--json", is_flag=True, expose_value=False, help="Accepted: JSON is all there is.")
@click.option("--keep", help="Keep the result in bench/results under this name.")
def main(
    path: Path,
    rates: str,
    seeds: int,
    files: int,
    cache: float,
    row_bytes: int,
    keep: str | None,
) -> None:
    """Compare samples of a log with the log."""
    log = AccessLog.read(path)
    whole = judged(log, log.rows, row_bytes, cache, None)
    samples = []
    with tempfile.TemporaryDirectory(prefix="bandana-kv-sampled-") as directory:
        edges = np.linspace(0, log.requests, files + 1).astype(int)
        for number in range(files):
            part = log.select(np.arange(edges[number], edges[number + 1]))
            part.write(Path(directory) / f"{number}.npz")
        for rate in map(float, rates.split(",")):
            for seed in range(seeds):
                found = drawn(Path(directory), log.rows, row_bytes, rate, seed)
                said = judged(found.log, found.rows, row_bytes, cache, found)
                samples.append(
                    {
                        "rate": rate,
                        "seed": seed,
                        "lookups_share": round(found.log.lookups / log.lookups / rate, 4),
                        "relative_error": round(said["gain"] / whole["gain"] - 1, 4),
                        **said,
                    }
                )
                click.echo(f"{rate} {seed}: {samples[-1]['relative_error']:+.1%}", err=True)
    report(
        {
            "log": path.stem,
            "lookups": log.lookups,
            "cache": cache,
            "row_bytes": row_bytes,
            "whole": whole,
            "samples": samples,
            "worst": [
                {"rate": rate, "relative_error": max(errors, key=abs)}
                for rate in dict.fromkeys(each["rate"] for each in samples)
                for errors in [[each["relative_error"] for each in samples if each["rate"] == rate]]
            ],
            "surroundings": surroundings(0),
        },
        keep,
    )


if __name__ == "__main__":
    main()
