"""Requests of an event loop: how many a second, and what each costs, beside threads that wait.

    python bench/async_path.py --dir DIR --json

requests
    Requests of so many ids by clients of one event loop, each of which asks again when it was
    answered: `pending` of them, all in one process, with ``multi_get_async``. `hit`: rows are all
    cached. `miss`: random rows of a table 20 times the cache, blocks cold: what the system has in
    its page cache is dropped whenever half of the blocks were read. `requests_per_second` and
    `cpu_us_per_request` (of the process, kernel included) are medians over turns; `threads` is how
    many threads there were at most; `p50_us` and `p99_us` are what one request takes, from its
    call to its rows.
loop
    The same with nothing asked: clients that let the loop go round once instead, what asyncio
    itself takes.
threads
    The same requests by ``multi_get`` in 8 threads, of the same store.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings
from numpy.typing import NDArray
from request_path import PLAIN

import bandana_kv
from bandana_kv.device.page_cache import drop_page_cache

ROWS, DIM, ROWS_PER_BLOCK = 1_000_000, 32, 31
ROW_BYTES = 4 * DIM
PENDING = (1, 64, 10_000)
THREADS = 8
Requests = NDArray[np.int64]
Measured = dict[str, float]


@click.command()
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path))
@click.option("--adapters", default="blockfile,lmdb", show_default=True)
@click.option("--ids", default="1,10", show_default=True, help="Ids of a request.")
@click.option("--requests", default=20_000, show_default=True, help="Of a turn, at most.")
@click.option("--turns", default=5, show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(
    directory: Path,
    adapters: str,
    ids: str,
    requests: int,
    turns: int,
    _json: bool,
    keep: bool,
    seed: int,
) -> None:
    work = directory / "async-path"
    work.mkdir(parents=True)
    try:
        rng = np.random.default_rng(seed)
        rows = rng.random((ROWS, DIM), np.float32)
        result: dict[str, Any] = {"requests": []}
        for adapter in adapters.split(","):
            path = work / adapter
            bandana_kv.load(path, {"t": rows}, adapter=adapter, placement="shuffled")
            for each in map(int, ids.split(",")):
                for what in ("hit", "miss"):
                    found = _by_turns(path, what, each, requests, turns, rng)
                    result["requests"] += [{"adapter": adapter, **one} for one in found]
            shutil.rmtree(path)
        result["surroundings"] = surroundings(seed)
        report(result, "async-path" if keep else None)
    finally:
        shutil.rmtree(work)


def _by_turns(
    path: Path, what: str, ids: int, requests: int, turns: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Measure all ways in turns, on one store."""
    hit = what == "hit"
    among = ROWS // 20 if hit else ROWS
    most = requests if hit else min(requests, ROWS // ROWS_PER_BLOCK // 2 // ids)
    cache = ROWS * ROW_BYTES // (5 if hit else 20)
    ways: dict[str, list[Measured]] = {}
    with bandana_kv.open(path, cache, policy=PLAIN) as store:
        for first in range(0, among, 8192):  # in random order; the cache is full from here on
            del first
            store.multi_get("t", rng.integers(0, among, 8192))
        if hit:
            for first in range(0, among, 8192):
                store.multi_get("t", np.arange(first, min(among, first + 8192)))

        def go_round(one: Requests) -> Awaitable[object]:
            del one
            return asyncio.sleep(0)

        def ask(one: Requests) -> Awaitable[object]:
            return store.multi_get_async("t", one)

        for _ in range(turns):
            for pending in PENDING:
                for way, call in (("async", ask), ("loop", go_round)):
                    drawn = _cold(path, hit, rng, among, most, ids)
                    measured = asyncio.run(_clients(call, drawn, pending))
                    ways.setdefault(f"{way} {pending}", []).append(measured)
            drawn = _cold(path, hit, rng, among, most, ids)
            measured = _in_threads(lambda one: store.multi_get("t", one), drawn)
            ways.setdefault(f"threads {THREADS}", []).append(measured)
    found = []
    for name, measures in ways.items():
        way, count = name.split()
        medians = {key: statistics.median(each[key] for each in measures) for key in measures[0]}
        figures = {key: round(value, 1) for key, value in medians.items()}
        found.append({"what": what, "ids": ids, "way": way, "pending": int(count), **figures})
    return found


def _cold(
    path: Path, hit: bool, rng: np.random.Generator, among: int, most: int, ids: int
) -> Requests:
    if not hit:
        drop_page_cache(path)
    return rng.integers(0, among, (most, ids))


async def _clients(
    call: Callable[[Requests], Awaitable[object]], drawn: Requests, pending: int
) -> Measured:
    """Have so many clients share the requests; each asks the next when it was answered."""
    left, took = iter(drawn), np.zeros(len(drawn))
    numbers, threads = itertools.count(), 0

    async def client() -> None:
        nonlocal threads
        for one in left:
            begun = time.perf_counter()
            await call(one)
            number = next(numbers)
            took[number] = time.perf_counter() - begun
            if number % 256 == 0:
                threads = max(threads, threading.active_count())

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(min(pending, len(drawn)))))
    return _figures(len(drawn), wall, cpu, took) | {"threads": threads}


def _in_threads(call: Callable[[Requests], object], drawn: Requests) -> Measured:
    took = np.zeros(len(drawn))

    def work(first: int) -> None:
        for number in range(first, len(drawn), THREADS):
            begun = time.perf_counter()
            call(drawn[number])
            took[number] = time.perf_counter() - begun

    running = [threading.Thread(target=work, args=(first,)) for first in range(THREADS)]
    wall, cpu = time.perf_counter(), time.process_time()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return _figures(len(drawn), wall, cpu, took) | {"threads": THREADS + 1}


def _figures(requests: int, wall: float, cpu: float, took: NDArray[np.float64]) -> Measured:
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "requests_per_second": requests / wall,
        "cpu_us_per_request": 1e6 * cpu / requests,
        "p50_us": 1e6 * float(np.quantile(took, 0.5)),
        "p99_us": 1e6 * float(np.quantile(took, 0.99)),
    }


if __name__ == "__main__":
    main()
