"""What recording costs: rows a second with and without it, in turns, from one open store.

    python bench/recorder.py --dir DIR --log L.npz [--threads 8] [--cache 0.05] --json

Eight threads serve the log's requests. Rounds without recording, with all requests recorded and
with a tenth of them follow each other, and begin anew with the other order; medians are compared.
The `cpu_ratio`s compare rows by second of CPU instead, of all threads, which neighbours on the
machine disturb less. `cached` is the same with DRAM for all rows, where nothing but the lookup
itself hides the cost.
`replayed_tenth` is how well a tenth of the requests stands for all, by the length of bursts: block
reads a lookup of the held-out requests in a miniature, over those of all of them, each from a cold
cache and with the first fifth not counted. It is 1 where a sample tells the truth; the median
of several samples. Lengths that the log is too short for are left out.
`read_back` says whether the last round that recorded everything holds the requests that were
served, as a multiset.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from common import report, surroundings

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.logs.recording.bursts import Bursts
from bandana_kv.placement import place
from bandana_kv.simulate import replay

DIM = 32
BURSTS = (1, 64, 1024, 4096, 16384, 65536)
SAMPLED_TIMES, WARM_SHARE = 5, 0.2
SAMPLES = (None, 1.0, 0.1)


class Served(NamedTuple):
    """Rows, and the seconds of clock and CPU that they took."""

    rows: int
    seconds: float
    cpu_seconds: float


def served(
    store: bandana_kv.EmbeddingStore, log: AccessLog, threads: int, seconds: float
) -> Served:
    """Serve requests of the log, again and again, for `seconds`."""
    numbers = itertools.count()
    gate = threading.Barrier(threads)

    def work(_: int) -> tuple[int, float, float]:
        gate.wait()
        begun = time.perf_counter()
        rows = 0
        while time.perf_counter() - begun < seconds:
            rows += len(store.multi_get("t", log.request(next(numbers) % log.requests)))
        return rows, begun, time.perf_counter()

    cpu = time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(work, range(threads)))
    elapsed = max(end for _, _, end in parts) - min(begun for _, begun, _ in parts)
    return Served(sum(rows for rows, _, _ in parts), elapsed, time.process_time() - cpu)


def recorded(
    store: bandana_kv.EmbeddingStore, directory: Path, sample: float, serve: Callable[[], Served]
) -> tuple[Served, float]:
    """Serve while recording, to the last byte; return also how many requests were dropped."""
    shutil.rmtree(directory, ignore_errors=True)
    cpu = time.process_time()
    with store.record(directory, sample=sample) as recorder:
        found = serve()
    values = {each.name: each.value for each in recorder.metrics()}
    dropped = values["bandana_kv_recorder_dropped_requests"]
    assert isinstance(dropped, (int, float))
    return found._replace(cpu_seconds=time.process_time() - cpu), dropped


def compared(
    store: bandana_kv.EmbeddingStore,
    log: AccessLog,
    directory: Path,
    threads: int,
    seconds: float,
    rounds: int,
) -> dict[str, Any]:
    """Return rows a second of clock and of CPU, and what recording leaves of them."""
    found: dict[float | None, list[Served]] = {sample: [] for sample in SAMPLES}
    dropped = 0.0

    def serve() -> Served:
        return served(store, log, threads, seconds)

    serve()  # warms
    for number in range(rounds):
        for sample in SAMPLES if number % 2 else reversed(SAMPLES):
            if sample is None:
                found[None].append(serve())
            else:
                one, lost = recorded(store, directory, sample, serve)
                found[sample].append(one)
                dropped += lost

    def left(sample: float, rate: Callable[[Served], float]) -> float:
        # Neighbouring rounds see the same machine: the median of their ratios is steadier.
        pairs = zip(found[sample], found[None], strict=True)
        return round(statistics.median(rate(each) / rate(without) for each, without in pairs), 4)

    return {
        "rows_per_second": round(statistics.median(map(by_clock, found[None]))),
        "rows_per_second_recorded": round(statistics.median(map(by_clock, found[1.0]))),
        "ratio_all_recorded": left(1.0, by_clock),
        "ratio_tenth_recorded": left(0.1, by_clock),
        "cpu_ratio_all_recorded": left(1.0, by_cpu),
        "cpu_ratio_tenth_recorded": left(0.1, by_cpu),
        "dropped_requests": dropped,
        "rounds": rounds,
    }


def by_clock(found: Served) -> float:
    return found.rows / found.seconds


def by_cpu(found: Served) -> float:
    return found.rows / found.cpu_seconds


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


def replayed(learn: AccessLog, test: AccessLog, cache_fraction: float) -> dict[int, float]:
    """Return block reads of a tenth of `test` over those of all, by the length of bursts."""
    rows = max(learn.rows, test.rows)
    placement = place(learn, rows, DIM - 1, quality="fast")
    policy = Policy("tinylfu", Admission("none"))

    def reads(log: AccessLog) -> float:
        warm, cached = int(WARM_SHARE * log.requests), round(cache_fraction * rows)
        found = replay(log, placement, cached, policy=policy, warm_requests=warm)
        return found.reads_per_lookup

    def sampled(burst: int, seed: int) -> AccessLog:
        bursts = Bursts(0.1, burst, seed)
        return test.select([n for n in range(test.requests) if bursts.takes(n)])

    everything = reads(test)
    return {
        burst: round(
            statistics.median(reads(sampled(burst, seed)) for seed in range(SAMPLED_TIMES))
            / everything,
            3,
        )
        for burst in BURSTS
        if 10 * burst <= test.requests
    }


@click.command()
@click.option("--dir", "directory", type=Path, required=True, help="On the device to measure.")
@click.option("--log", "path", type=Path, required=True)
@click.option("--threads", default=8, show_default=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / rows.")
@click.option("--adapter", default="blockfile", show_default=True)
@click.option("--ordered", is_flag=True, help="The log is in order of time.")
@click.option("--seconds", default=4.0, show_default=True, help="Of a round.")
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
    ordered: bool,
    seconds: float,
    rounds: int,
    seed: int,
    as_json: bool,  # noqa: ARG001  # JSON is all it prints
    keep: bool,
) -> None:
    log = AccessLog.read(path)
    learn, test = log.split(train=0.7, ordered=ordered, seed=seed)
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
        "replayed_tenth": replayed(learn, test, cache_fraction),
        "surroundings": surroundings(seed),
    }
    report(result, f"recorder-{path.stem}" if keep else None)


if __name__ == "__main__":
    main()
