"""What recording costs: rows a second with and without it, in turns, from one open store.

    python bench/recorder.py --dir DIR --log L.npz [--threads 8] [--cache 0.05] --json

Eight threads serve the log's requests. Rounds without recording, with all requests recorded and
with a tenth of them follow each other, and begin anew with the other order; medians are compared.
`cached` is the same with DRAM for all rows, where nothing but the lookup itself hides the cost.
`read_back` says whether the last round that recorded everything holds the requests that were
served, as a multiset.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings

import bandana_kv
from bandana_kv import AccessLog

DIM = 32
SAMPLES = (None, 1.0, 0.1)


def served(store: bandana_kv.EmbeddingStore, log: AccessLog, threads: int, seconds: float) -> float:
    """Return rows a second; stops after all requests, or `seconds`."""
    numbers = itertools.count()
    gate = threading.Barrier(threads)

    def work(_: int) -> tuple[int, float, float]:
        gate.wait()
        begun = time.perf_counter()
        rows = 0
        while (number := next(numbers)) < log.requests:
            rows += len(store.multi_get("t", log.request(number)))
            if time.perf_counter() - begun > seconds:
                break
        return rows, begun, time.perf_counter()

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(work, range(threads)))
    elapsed = max(end for _, _, end in parts) - min(begun for _, begun, _ in parts)
    return sum(rows for rows, _, _ in parts) / elapsed


def compared(
    store: bandana_kv.EmbeddingStore,
    log: AccessLog,
    directory: Path,
    threads: int,
    seconds: float,
    rounds: int,
) -> dict[str, Any]:
    """Return the rates by sample, and each over that without recording."""
    rates: dict[float | None, list[float]] = {sample: [] for sample in SAMPLES}
    dropped = 0.0
    served(store, log, threads, seconds)  # warms
    for number in range(rounds):
        for sample in SAMPLES if number % 2 else reversed(SAMPLES):
            if sample is None:
                rates[None].append(served(store, log, threads, seconds))
                continue
            shutil.rmtree(directory, ignore_errors=True)
            with store.record(directory, sample=sample) as recorder:
                rates[sample].append(served(store, log, threads, seconds))
            dropped += next(
                metric.value
                for metric in recorder.metrics()
                if metric.name == "bandana_kv_recorder_dropped_requests"
                and isinstance(metric.value, (int, float))
            )
    plain = statistics.median(rates[None])
    # Neighbouring rounds see the same machine: the median of their ratios is steadier.
    ratios = {
        sample: statistics.median(
            with_it / without for with_it, without in zip(rates[sample], rates[None], strict=True)
        )
        for sample in (1.0, 0.1)
    }
    return {
        "rows_per_second": round(plain),
        "rows_per_second_recorded": round(statistics.median(rates[1.0])),
        "ratio_all_recorded": round(ratios[1.0], 4),
        "ratio_tenth_recorded": round(ratios[0.1], 4),
        "dropped_requests": dropped,
        "rounds": rounds,
    }


def read_back(store: bandana_kv.EmbeddingStore, log: AccessLog, directory: Path) -> bool:
    """Return whether what one thread asks for is what is recorded."""
    shutil.rmtree(directory, ignore_errors=True)
    asked = log.select(np.arange(min(log.requests, 20_000)))
    with store.record(directory):
        for number in range(asked.requests):
            store.multi_get("t", asked.request(number))
    found = AccessLog.read(directory)
    return np.array_equal(found.ids, asked.ids) and np.array_equal(
        np.diff(found.offsets), np.diff(asked.offsets)[np.diff(asked.offsets) > 0]
    )


@click.command()
@click.option("--dir", "directory", type=Path, required=True, help="On the device to measure.")
@click.option("--log", "path", type=Path, required=True)
@click.option("--threads", default=8, show_default=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / rows.")
@click.option("--adapter", default="blockfile", show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="Of a round, at most.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone, which it does anyway.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    directory: Path,
    path: Path,
    threads: int,
    cache_fraction: float,
    adapter: str,
    seconds: float,
    rounds: int,
    seed: int,
    as_json: bool,  # noqa: ARG001  # JSON is all it prints
    keep: bool,
) -> None:
    log = AccessLog.read(path)
    learn, test = log.split(train=0.7, seed=seed)
    home = directory / "recorder-bench"
    shutil.rmtree(home, ignore_errors=True)
    rows = np.random.default_rng(seed).random((log.rows, DIM), dtype=np.float32)
    try:
        bandana_kv.load(
            home / "store", tables={"t": rows}, logs={"t": learn}, adapter=adapter, seed=seed
        )
        results = {}
        for name, share in (("misses", cache_fraction), ("cached", 1.5)):
            with bandana_kv.open(home / "store", int(share * rows.nbytes)) as store:
                results[name] = compared(store, test, home / "log", threads, seconds, rounds)
                same = read_back(store, test, home / "log")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    result = {
        "log": path.stem,
        "adapter": adapter,
        "threads": threads,
        "cache_fraction": cache_fraction,
        **results["misses"],
        "cached": results["cached"],
        "read_back": same,
        "surroundings": surroundings(seed),
    }
    report(result, f"recorder-{path.stem}" if keep else None)


if __name__ == "__main__":
    main()
