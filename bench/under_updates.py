"""Throughput and right answers while versions are switched and rows are updated.

    python bench/under_updates.py --dir DIR --seconds 60 --threads 16 --json [--adapter lmdb]

Threads ask for ids drawn from a Zipf distribution as fast as they can. In every other window a
further thread updates rows, --updates times a second, flushes them now and then, and switches
between two versions that were loaded before; in the windows between nothing is written.

`with_updates` and `without` are ids a second, the median of the windows; `ratio` is the one over
the other. Every row says its version, its id and its last update: `wrong_rows` have another id, or
an older update than was acknowledged before they were asked for; `mixed_answers` have rows of two
versions; `failed_calls` raised.
"""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings

import bandana_kv
from bandana_kv.cache.policy import Admission, Policy

DIM, IDS, EXPONENT = 32, 16, 1.1
STAMP, ID, UPDATE = 0, 1, 2
BATCH, FLUSH_EVERY, SWITCH_SECONDS, WARM_SECONDS = 16, 100, 3.0, 0.5
POLICY = Policy("tinylfu", Admission("none"))


class Asking:
    """Threads that ask, and what was acknowledged to whoever updates."""

    def __init__(self, store: bandana_kv.EmbeddingStore, requests: np.ndarray, rows: int) -> None:
        self.store = store
        self.requests = requests
        self.newest = np.zeros((3, rows), np.int32)  # by stamp, the last acknowledged update
        self.over = threading.Event()
        self.answered: list[int] = []
        self.wrong = self.mixed = self.failed = 0

    def start(self, threads: int) -> list[threading.Thread]:
        self.answered = [0] * threads
        running = [threading.Thread(target=self._ask, args=(n, threads)) for n in range(threads)]
        for thread in running:
            thread.start()
        return running

    def _ask(self, number: int, threads: int) -> None:
        at = number
        while not self.over.is_set():
            ids = self.requests[at % len(self.requests)]
            at += threads
            floors = self.newest[:, ids]
            try:
                rows = self.store.multi_get("t", ids)
            except Exception:
                self.failed += 1
                continue
            stamps = rows[:, STAMP]
            self.mixed += bool((stamps != stamps[0]).any())
            older = rows[:, UPDATE] < floors[stamps.clip(1, 2), np.arange(ids.size)]
            self.wrong += int((older | (rows[:, ID] != ids)).sum())
            self.answered[number] += ids.size


class Changing:
    """A thread that updates, flushes and switches while it is let."""

    def __init__(self, root: Path, asking: Asking, updates: float) -> None:
        self.root = root
        self.asking = asking
        self.updates = updates
        self.going = threading.Event()
        self.counts = {"updates": 0, "flushes": 0, "switches": 0}
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._run(np.random.default_rng(1))
        except BaseException as error:
            self.failure = error

    def _run(self, rng: np.random.Generator) -> None:
        store, switch_at, due = self.asking.store, 0.0, 0.0
        while not self.asking.over.is_set():
            if not self.going.wait(0.1):
                continue
            now = time.monotonic()
            if now > switch_at:
                bandana_kv.rollback(self.root, 3 - store.version)
                store.refresh(warm_seconds=WARM_SECONDS)
                self.counts["switches"] += 1
                switch_at = time.monotonic() + SWITCH_SECONDS
            ids = np.unique(self.asking.requests[rng.integers(len(self.asking.requests))])[:BATCH]
            self.counts["updates"] += 1
            rows = rows_of(store.version, ids, self.counts["updates"])
            stamp = store.version
            store.update("t", ids, rows)
            self.asking.newest[stamp, ids] = self.counts["updates"]
            if self.counts["updates"] % FLUSH_EVERY == 0:
                store.flush()
                self.counts["flushes"] += 1
            due = max(due + 1 / self.updates, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))


def rows_of(stamp: int, ids: np.ndarray, update: int) -> np.ndarray:
    rows = np.zeros((ids.size, DIM), np.int32)
    rows[:, STAMP], rows[:, ID], rows[:, UPDATE] = stamp, ids, update
    return rows


def draw_requests(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weights = np.arange(1, rows + 1) ** -EXPONENT
    ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random((1 << 16, IDS)))
    return rng.permutation(rows)[np.minimum(ranks, rows - 1)]


def windows(asking: Asking, changing: Changing, seconds: float, window: float) -> dict[str, Any]:
    """Return ids a second in windows with and without changes, in turn."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    until = time.monotonic() + seconds
    going = False
    while time.monotonic() < until:
        (changing.going.set if going else changing.going.clear)()
        time.sleep(0.2)  # the last update of the window before has ended
        before, begun = sum(asking.answered), time.monotonic()
        time.sleep(window)
        rates[going].append((sum(asking.answered) - before) / (time.monotonic() - begun))
        going = not going
    with_updates, without = (float(np.median(rates[each])) for each in (True, False))
    return {
        "windows": len(rates[True]),
        "with_updates": round(with_updates),
        "without": round(without),
        "ratio": round(with_updates / without, 3),
    }


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--window", default=3.0, show_default=True, help="Seconds of each.")
@click.option("--threads", default=16, show_default=True, help="That ask.")
@click.option("--rows", default=1 << 18, show_default=True)
@click.option("--cache", default=0.2, show_default=True, help="Share of the rows in DRAM.")
@click.option("--updates", default=100.0, show_default=True, help="Calls a second, 16 rows each.")
@click.option("--adapter", default="lmdb", show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    directory: Path,
    seconds: float,
    window: float,
    threads: int,
    rows: int,
    cache: float,
    updates: float,
    adapter: str,
    _json: bool,
    keep: bool,
) -> None:
    root = directory / f"under-updates-{adapter}"
    shutil.rmtree(root, ignore_errors=True)
    for stamp in (1, 2):
        table = rows_of(stamp, np.arange(rows), 0)
        bandana_kv.load(root, {"t": table}, adapter=adapter, placement="shuffled", policy=POLICY)
    try:
        with bandana_kv.open(root, int(cache * rows * DIM * 4)) as store:
            asking = Asking(store, draw_requests(rows, 0), rows)
            changing = Changing(root, asking, updates)
            running = asking.start(threads)
            running.append(threading.Thread(target=changing.run))
            running[-1].start()
            try:
                found = windows(asking, changing, seconds, window)
            finally:
                asking.over.set()
                for thread in running:
                    thread.join()
        if changing.failure is not None:
            raise changing.failure
    finally:
        shutil.rmtree(root, ignore_errors=True)
    result = {
        "adapter": adapter,
        "threads": threads,
        "rows": rows,
        "seconds": seconds,
        **found,
        **changing.counts,
        "wrong_rows": asking.wrong,
        "mixed_answers": asking.mixed,
        "failed_calls": asking.failed,
        "surroundings": surroundings(0),
    }
    report(result, f"under-updates-{adapter}" if keep else None)


if __name__ == "__main__":
    main()
