"""A switch of versions under constant traffic: latency while it lasts, and the hit rate after it.

    python bench/switch.py --dir DIR [--adapter rocksdb] [--keep --picture docs/switch.png] --json

Two versions of a table lie in one store, each with other rows. Threads ask for ids drawn from
a Zipf distribution, at a fixed rate together; meanwhile the store goes from one version to the
other and back, by turns with cold caches and with warmed ones. Before each switch the caches
are filled by 5,000 requests at full speed without other traffic, and the page cache forgets the
files of the version to come.

Latency
    From the moment that a request was due, so that those that had to wait count in full.
    `quiet` are the last seconds before a switch, `switch` is the window of `refresh`: opening,
    warming, switching, closing; over all switches. `p99_ratios` are, switch by switch, the p99 in
    its window over that in the quiet seconds before it, `p99_ratio` their median; a window of a
    cold switch is short, and has few requests.

Hit rate
    From the store's counters, ten times a second, 0 at the switch; mean of all switches of a
    kind.

Checked
    Each row says its version and its id: `wrong_rows` have another id, `mixed_answers` rows of
    two versions, `failed_calls` raised.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings

import bandana_kv
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.device.page_cache import drop_page_cache

ADAPTERS = ("blockfile", "lmdb", "rocksdb")
DIM, IDS, EXPONENT = 32, 16, 1.1
CHUNK_ROWS = 1 << 18
FILL_REQUESTS = 5000
TICK_SECONDS = 0.1
SHOWN_BEFORE, SHOWN_AFTER = 2.0, 10.0
POLICY = Policy("tinylfu", Admission("none"))


def write_rows(path: Path, rows: int, stamp: int) -> None:
    table = np.lib.format.open_memmap(path, "w+", np.int32, (rows, DIM))
    for first in range(0, rows, CHUNK_ROWS):
        part = table[first : first + CHUNK_ROWS]
        part[:] = stamp
        part[:, 1] = np.arange(first, first + len(part))
    table.flush()


def draw_requests(rows: int, seed: int) -> np.ndarray:
    """Return ids (requests, IDS), Zipf over a permutation of the rows."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, rows + 1) ** -EXPONENT
    ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random((1 << 17, IDS)))
    return rng.permutation(rows)[np.minimum(ranks, rows - 1)]


@dataclass
class Traffic:
    """Threads that ask at a fixed rate, and what they saw."""

    store: bandana_kv.EmbeddingStore
    requests: np.ndarray
    threads: int
    rate: float
    over: threading.Event = field(default_factory=threading.Event)
    going: threading.Event = field(default_factory=threading.Event)
    due: list[list[float]] = field(default_factory=list)
    latency: list[list[float]] = field(default_factory=list)
    failed: int = 0
    wrong: int = 0
    mixed: int = 0
    ticks: list[tuple[float, int, int, int]] = field(default_factory=list)

    def start(self) -> list[threading.Thread]:
        running = [threading.Thread(target=self._count)]
        for number in range(self.threads):
            self.due.append([])
            self.latency.append([])
            running.append(threading.Thread(target=self._ask, args=(number,)))
        for thread in running:
            thread.start()
        return running

    def _ask(self, number: int) -> None:
        step = self.threads / self.rate
        due = time.perf_counter() + step * number / self.threads
        at = number
        while not self.over.is_set():
            if not self.going.is_set():
                self.going.wait()
                due = time.perf_counter() + step * number / self.threads
            wait = due - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            ids = self.requests[at % len(self.requests)]
            try:
                rows = self.store.multi_get("t", ids)
            except Exception:
                self.failed += 1
            else:
                self.due[number].append(due)
                self.latency[number].append(time.perf_counter() - due)
                self.wrong += int((rows[:, 1] != ids).sum())
                self.mixed += bool((rows[:, 0] != rows[0, 0]).any())
            at += self.threads
            due += step

    def _count(self) -> None:
        while not self.over.wait(TICK_SECONDS):
            version = self.store.version
            counts = self.store.stats()["t"]
            if version == self.store.version:
                now = time.perf_counter()
                self.ticks.append((now, version, counts["lookups"], counts["hits"]))

    def within(self, windows: list[tuple[float, float]]) -> np.ndarray:
        """Return the latencies of requests that were due in one of `windows`."""
        due = np.concatenate([np.array(each) for each in self.due])
        latency = np.concatenate([np.array(each) for each in self.latency])
        inside = np.zeros(due.size, np.bool_)
        for begun, ended in windows:
            inside |= (due >= begun) & (due < ended)
        return latency[inside]

    def hit_rates(self, at: list[float]) -> dict[str, list[float]]:
        """Return hit rates by time from the switches `at`, mean of all of them."""
        seconds, rates = [], []
        for before, after in zip(self.ticks, self.ticks[1:], strict=False):
            since = before if before[1] == after[1] else (before[0], after[1], 0, 0)
            lookups = after[2] - since[2]
            if lookups > 0:
                seconds.append(after[0])
                rates.append((after[3] - since[3]) / lookups)
        when, rate = np.array(seconds), np.array(rates)
        edges = np.arange(-SHOWN_BEFORE, SHOWN_AFTER, TICK_SECONDS)
        curve: dict[str, list[float]] = {"seconds": [], "hit_rate": []}
        for edge in edges:
            inside = np.zeros(when.size, np.bool_)
            for moment in at:
                inside |= (when - moment >= edge) & (when - moment < edge + TICK_SECONDS)
            if inside.any():
                curve["seconds"].append(round(float(edge), 3))
                curve["hit_rate"].append(round(float(rate[inside].mean()), 4))
        return curve


def load_versions(store: Path, table: Path, rows: int, adapter: str) -> None:
    for stamp in (1, 2):
        write_rows(table, rows, stamp)
        bandana_kv.load(
            store, {"t": table}, adapter=adapter, placement="shuffled", seed=stamp, policy=POLICY
        )
    bandana_kv.rollback(store)


def fill(store: bandana_kv.EmbeddingStore, requests: np.ndarray) -> None:
    for ids in requests[-FILL_REQUESTS:]:
        store.multi_get("t", ids)


def percentiles(latency: np.ndarray) -> dict[str, float]:
    micros = np.percentile(latency, (50, 99, 100)) * 1e6
    return {
        name: round(float(value), 1)
        for name, value in zip(("p50_us", "p99_us", "most_us"), micros, strict=True)
    }


def measure(
    path: Path,
    requests: np.ndarray,
    cache_bytes: int,
    threads: int,
    rate: float,
    seconds: float,
    switches: int,
) -> dict[str, Any]:
    windows: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    quiet: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    with bandana_kv.open(path, cache_bytes=cache_bytes) as store:
        traffic = Traffic(store, requests, threads, rate)
        running = traffic.start()
        for number in range(2 * switches):
            kind = "warm" if number % 2 else "cold"
            target = 3 - store.version
            traffic.going.clear()
            fill(store, requests)
            drop_page_cache(path / "segments" / f"{target:06d}")
            traffic.going.set()
            time.sleep(seconds)
            bandana_kv.rollback(path, target)
            begun = time.perf_counter()
            assert store.refresh(warm_seconds=60.0 if kind == "warm" else 0) == target
            windows[kind].append((begun, time.perf_counter()))
            quiet[kind].append((begun - seconds / 2, begun))
            time.sleep(SHOWN_AFTER)
        traffic.over.set()
        for thread in running:
            thread.join()
    result: dict[str, Any] = {
        "requests": sum(map(len, traffic.due)),
        "quiet": percentiles(traffic.within(quiet["cold"] + quiet["warm"])),
        "failed_calls": traffic.failed,
        "wrong_rows": traffic.wrong,
        "mixed_answers": traffic.mixed,
    }
    for kind, found in windows.items():
        ratios = [
            percentiles(traffic.within([window]))["p99_us"]
            / percentiles(traffic.within([before]))["p99_us"]
            for window, before in zip(found, quiet[kind], strict=True)
        ]
        lasted = [ended - begun for begun, ended in found]
        result[kind] = {
            "switches": len(found),
            "switch": percentiles(traffic.within(found)),
            "p99_ratio": round(float(np.median(ratios)), 2),
            "p99_ratios": [round(ratio, 2) for ratio in ratios],
            "switch_seconds": round(float(np.median(lasted)), 3),
            "hit_rates": traffic.hit_rates([ended for _, ended in found]),
        }
    return result


def draw(path: Path, results: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    (adapter, result), *_ = results.items()
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    for kind, colour in (("cold", "#9aa5b1"), ("warm", "#d1495b")):
        curve = result[kind]["hit_rates"]
        label = "cold caches" if kind == "cold" else "warmed before the switch"
        axes.plot(curve["seconds"], curve["hit_rate"], color=colour, label=label)
    axes.axvline(0, color="#6f9fc8", linewidth=1)
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds from the switch to another version")
    axes.set_ylabel("hit rate")
    axes.set_title(f"A switch under traffic ({adapter})", loc="left")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


@click.command()
@click.option("--dir", "directory", type=Path, required=True, help="On the device to measure.")
@click.option("--adapter", type=click.Choice(ADAPTERS), help="[default: all of them]")
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dram-fraction", default=0.05, show_default=True, help="Of the rows' bytes.")
@click.option("--threads", default=4, show_default=True)
@click.option("--rate", default=1000.0, show_default=True, help="Requests a second, all threads.")
@click.option("--seconds", default=5.0, show_default=True, help="Of quiet before each switch.")
@click.option("--switches", default=5, show_default=True, help="Of each kind.")
@click.option("--seed", default=0, show_default=True)
@click.option("--picture", type=Path, help="Draw the hit rates of the first adapter.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
def main(
    directory: Path,
    adapter: str | None,
    rows: int,
    dram_fraction: float,
    threads: int,
    rate: float,
    seconds: float,
    switches: int,
    seed: int,
    picture: Path | None,
    keep: bool,
    _json: bool,
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    requests = draw_requests(rows, seed)
    results = {}
    for name in [adapter] if adapter else ADAPTERS:
        store, table = directory / f"switch-{name}", directory / "switch-rows.npy"
        shutil.rmtree(store, ignore_errors=True)
        try:
            load_versions(store, table, rows, name)
            cache_bytes = int(dram_fraction * rows * 4 * DIM)
            results[name] = measure(store, requests, cache_bytes, threads, rate, seconds, switches)
        finally:
            shutil.rmtree(store, ignore_errors=True)
            table.unlink(missing_ok=True)
    if picture is not None:
        draw(picture, results)
    result = {
        "bench": "switch",
        "rows": rows,
        "row_bytes": 4 * DIM,
        "dram_fraction": dram_fraction,
        "ids_a_request": IDS,
        "zipf_exponent": EXPONENT,
        "threads": threads,
        "rate_per_second": rate,
        "adapters": results,
        "surroundings": surroundings(seed),
    }
    report(result, f"switch-{adapter or 'all'}" if keep else None)


if __name__ == "__main__":
    main()
