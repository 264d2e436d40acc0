"""How fast rows in DRAM are answered, against `np.take` on a plain array.

    python bench/hit_path.py --json [--policy tinylfu]

A table of a million rows of 128 bytes, all of it cached, so that every lookup is a hit; ids
are drawn at random, different ones each time. `np_take` is ``np.take(table, ids, axis=0,
out=...)`` on the same rows as a plain array; both answer into an array that is there already.
`np_take_clip` is the same with ``mode="clip"``, which checks no id and needs no buffer.
Batches and systems take turns, and each figure is the median of several. Two threads call
`multi_get` on one table of one store, at the largest batch; their speed-up is over one
thread doing the same calls.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path

import click
import numpy as np
from common import report, surroundings
from numpy.typing import NDArray

import bandana_kv
from bandana_kv.cache.policy import Admission, Policy

ROWS, DIM = 1_000_000, 32
BATCHES = (1, 16, 256, 1024, 4096, 16384)
ROUNDS, SECONDS = 7, 0.15


@click.command()
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--policy", "eviction", default="tinylfu", show_default=True)
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(_json: bool, eviction: str, keep: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.random((ROWS, DIM), dtype=np.float32)
    policy = Policy(eviction, Admission("all"))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as directory:
        store_path = Path(directory) / "store"
        bandana_kv.load(store_path, {"t": table}, adapter="memory", policy=policy)
        with bandana_kv.open(store_path, 256 << 20) as store:
            for first in range(0, ROWS, 50_000):
                store.multi_get("t", np.arange(first, min(ROWS, first + 50_000)))
            before = store.stats()["t"]["block_reads"]
            result = _measure(store, table, rng)
            assert store.stats()["t"]["block_reads"] == before, "a lookup missed"
    result = {
        **result,
        "rows": ROWS,
        "row_bytes": 4 * DIM,
        "policy": str(policy),
        "surroundings": surroundings(seed),
    }
    report(result, "hit-path" if keep else None)


def _measure(
    store: bandana_kv.EmbeddingStore, table: NDArray[np.float32], rng: np.random.Generator
) -> dict[str, object]:
    ours: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    theirs: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    unchecked: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for _ in range(ROUNDS):
        for batch in BATCHES:
            ids = rng.integers(0, ROWS, (max(2, 65536 // batch), batch))
            out = np.empty((batch, DIM), np.float32)
            ours[batch].append(
                _rate(ids, lambda one, o=out: store.multi_get("t", one, out=o))  # type: ignore[misc]
            )
            theirs[batch].append(
                _rate(ids, lambda one, o=out: np.take(table, one, axis=0, out=o))  # type: ignore[misc]
            )
            unchecked[batch].append(
                _rate(ids, lambda one, o=out: np.take(table, one, 0, o, "clip"))  # type: ignore[misc]
            )
    speedups = [_two_threads(store, rng) for _ in range(ROUNDS)]
    per_second = [statistics.median(ours[batch]) for batch in BATCHES]
    take = [statistics.median(theirs[batch]) for batch in BATCHES]
    clip = [statistics.median(unchecked[batch]) for batch in BATCHES]
    return {
        "batch": list(BATCHES),
        "rows_per_second": [round(each) for each in per_second],
        "np_take_rows_per_second": [round(each) for each in take],
        "ratio": [round(a / b, 3) for a, b in zip(per_second, take, strict=True)],
        "np_take_clip_rows_per_second": [round(each) for each in clip],
        "ratio_clip": [round(a / b, 3) for a, b in zip(per_second, clip, strict=True)],
        "two_thread_speedup": round(statistics.median(speedups), 3),
    }


def _rate(ids: NDArray[np.int64], answer: object) -> float:
    """Return rows a second of answering one request of `ids` (requests, batch) after another."""
    done, begun = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begun) < SECONDS:
        for one in ids[:64]:
            answer(one)  # type: ignore[operator]
            done += one.size
        ids = np.roll(ids, -64, axis=0)
    return done / seconds


def _two_threads(store: bandana_kv.EmbeddingStore, rng: np.random.Generator) -> float:
    """Return how much faster two threads answer twice the requests than one answers one."""
    requests = [rng.integers(0, ROWS, (200, BATCHES[-1])) for _ in range(2)]

    def answer(ids: NDArray[np.int64]) -> None:
        out = np.empty((BATCHES[-1], DIM), np.float32)
        for one in ids:
            store.multi_get("t", one, out=out)

    begun = time.perf_counter()
    answer(requests[0])
    alone = time.perf_counter() - begun
    threads = [threading.Thread(target=answer, args=(ids,)) for ids in requests]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 2 * alone / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
