"""A log in files, placed in parts, against one machine: fanout, time, bytes, memory.

    python bench/placement_distributed.py --log L.npz --parts 4 --seeds 3 --json
    python bench/placement_distributed.py --rows 10000000 --pins 100000000 --workers 2 --json

A log given by path is split as bench/placement.py splits it; what is learned is written into
`--files` files. One that is generated is bench/placement_scale.py's, a part of it a file, and one
machine is compared with only where `--one-machine` says so. `--workers` asks for as many workers
of Ray, started for it on this machine; without it this process works on one share at a time.

`excess` is how much more blocks held-out requests touch than on one machine, as a share; of several
seeds, the mean. `worker_peak_bytes` is the most that a worker's process had resident, that of its
files and of Ray's shared arrays included; `worker_start_bytes` what it had before it was asked
anything. `pass_ns_a_pin` is the time of the cut for each of its passes and each pin of the log, by
the clock. The last line of the output is the result as JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from common import report, surroundings
from placement_scale import MEAN_LENGTH, generated

from bandana_kv import AccessLog
from bandana_kv.placement import fanout, place
from bandana_kv.placement.distributed import Figures, InProcess, OnRay, open_log, place_log
from bandana_kv.progress import Progress
from bandana_kv.units import parse_size

HELD_OUT_PART = 1 << 20  # of a generated log; no file has it


class Passes(Progress):
    """Counts the passes of the cut."""

    def __init__(self) -> None:
        self.count = 0
        self._units = ""

    def start(self, *stage: Any) -> None:
        self._units = stage[-1]

    def advance(self, count: int) -> None:
        self.count += count * (self._units == "passes")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--log", help="an access log; by default one is generated")
    parser.add_argument("--ordered", action="store_true", help="learn on the first part of the log")
    parser.add_argument("--train", type=float, default=0.7, help="share of the requests to learn")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of a generated log")
    parser.add_argument("--pins", type=int, default=10_000_000, help="of a generated log")
    parser.add_argument("--held-out", type=int, default=50_000, help="requests, of a generated log")
    parser.add_argument("--one-machine", action="store_true", help="of a generated log, too")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--workers", type=int, help="of Ray; without it: this process")
    parser.add_argument("--worker-memory", type=parse_size, default=parse_size("4GiB"))
    parser.add_argument("--work-dir", help="where files are written")
    parser.add_argument("--rows-per-block", type=int, default=32)
    parser.add_argument("--quality", default="balanced")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON")
    parser.add_argument("--keep", help="also keep the result as bench/results/KEEP.json")
    return parser.parse_args()


def write_files(arguments: argparse.Namespace, directory: Path) -> int:
    """Write what is learned into files, and what is held out; return the rows of the table."""
    count = arguments.files
    paths = [directory / f"log-{number:04}.npz" for number in range(count)]
    if arguments.log is None:
        for number, path in enumerate(paths):
            rows, pins = arguments.rows, arguments.pins
            generated(rows, pins // count, arguments.seed, number).write(path)
        held_out = MEAN_LENGTH * arguments.held_out
        test = generated(rows, held_out, arguments.seed, HELD_OUT_PART)
    else:
        log = AccessLog.read(arguments.log)
        rows = log.rows
        train, test = log.split(arguments.train, ordered=arguments.ordered, seed=arguments.seed)
        edges = [train.requests * number // count for number in range(count + 1)]
        for path, first, last in zip(paths, edges, edges[1:], strict=False):
            train.select(np.arange(first, last)).write(path)
    test.write(directory / "test.npz")
    return rows


def in_files(
    arguments: argparse.Namespace, directory: str, rows: int, seed: int, answer: Connection
) -> None:
    """Place in parts; runs in a process of its own, so that its memory is its own."""
    runner: Any = InProcess() if arguments.workers is None else OnRay(arguments.workers)
    files = sorted(Path(directory).glob("log-*.npz"))
    figures, passes = Figures(), Passes()
    small = Path(directory) / "small.npz"
    generated(4096, 20_000, 0, 0).write(small)
    with open_log([small], runner) as log:  # loads or compiles the kernels
        place_log(log, arguments.rows_per_block, runner=runner, parts=2)
    started = runner.peak_bytes()
    begin, before = time.perf_counter(), asdict(runner.moved)
    with open_log(
        files,
        runner,
        rows,
        worker_memory_bytes=arguments.worker_memory,
        work_dir=arguments.work_dir,
    ) as log:
        read = time.perf_counter() - begin
        placement = place_log(
            log,
            arguments.rows_per_block,
            runner=runner,
            parts=arguments.parts,
            quality=arguments.quality,
            seed=seed,
            progress=passes,
            figures=figures,
        )
        lookups, shares = log.lookups, len(log.shares)
    seconds = time.perf_counter() - begin
    test = AccessLog.read(Path(directory) / "test.npz")
    answer.send(
        {
            "seconds": round(seconds, 2),
            "seconds_of": {"read": round(read, 2), **figures.seconds},
            "pass_ns_a_pin": round(
                figures.seconds["cut"] * 1e9 / max(1, passes.count) / lookups, 2
            ),
            "passes": passes.count,
            "parts": figures.parts,
            "shares": shares,
            "pins": lookups,
            "moved": {name: value - before[name] for name, value in asdict(runner.moved).items()},
            "worker_start_bytes": started,
            "worker_peak_bytes": runner.peak_bytes(),
            "fanout_test": fanout(test, placement),
        }
    )
    if arguments.workers is not None:
        runner.close()


def one_machine(
    arguments: argparse.Namespace, directory: str, rows: int, seed: int, answer: Connection
) -> None:
    """Place as ever, the log in memory."""
    logs = [AccessLog.read(path) for path in sorted(Path(directory).glob("log-*.npz"))]
    lengths = np.concatenate([[0], *(np.diff(log.offsets) for log in logs)])
    whole = AccessLog(np.cumsum(lengths), np.concatenate([log.ids for log in logs]))
    begin = time.perf_counter()
    placement = place(
        whole, rows, arguments.rows_per_block, "shp", quality=arguments.quality, seed=seed
    )
    seconds = time.perf_counter() - begin
    test = AccessLog.read(Path(directory) / "test.npz")
    answer.send(
        {
            "seconds": round(seconds, 2),
            "peak_bytes": InProcess().peak_bytes()[0],
            "fanout_test": fanout(test, placement),
        }
    )


def apart(what: Any, *given: Any) -> dict[str, Any]:
    """Return what a function sends from a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=what, args=(*given, there))
    child.start()
    there.close()
    try:
        answer: dict[str, Any] = here.recv()
    except EOFError:
        raise SystemExit(f"{what.__name__} failed") from None
    child.join()
    return answer


def main() -> None:
    arguments = parsed()
    runs = []
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as directory:
        rows = write_files(arguments, Path(directory))
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            run = {"seed": seed, "in_files": apart(in_files, arguments, directory, rows, seed)}
            if arguments.log is not None or arguments.one_machine:
                run["one_machine"] = apart(one_machine, arguments, directory, rows, seed)
                ratio = run["in_files"]["fanout_test"] / run["one_machine"]["fanout_test"]
                run["excess"] = round(ratio - 1, 5)
            runs.append(run)
            if not arguments.json:
                print(run, flush=True)
        test = AccessLog.read(Path(directory) / "test.npz")
        shuffled = fanout(test, place(None, rows, arguments.rows_per_block, "shuffled"))
    excess = [run["excess"] for run in runs if "excess" in run]
    summary = {
        "log": "generated" if arguments.log is None else Path(arguments.log).stem,
        "rows": rows,
        "rows_per_block": arguments.rows_per_block,
        "quality": arguments.quality,
        "files": arguments.files,
        "workers": arguments.workers,
        "on": "this process" if arguments.workers is None else "ray",
        "worker_memory_bytes": arguments.worker_memory,
        "fanout_test_shuffled": shuffled,
        "excess": round(float(np.mean(excess)), 5) if excess else None,
        "runs": runs,
        **surroundings(arguments.seed),
    }
    report(summary, arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
