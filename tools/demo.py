"""What bandana_kv gains on an access log: place, load, serve, check, compare."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.cache.policy import Policy
from bandana_kv.cache.state import cache_bytes_of
from bandana_kv.device.page_cache import device_bytes_read, drop_page_cache
from bandana_kv.errors import InputError
from bandana_kv.logs.options import LogOptions
from bandana_kv.progress import Progress
from bandana_kv.tools.console import Bar, errors_named, json_option, out
from bandana_kv.tools.logs import NamedPath, log_options, named_path, read_named
from bandana_kv.tools.pictures import pyplot
from bandana_kv.tools.stdlib_log import stdlib_log

__all__ = ["Served", "main"]

ADAPTERS = ("lmdb", "rocksdb")
# Placement and how it is served. The first is what a store without any of this would do:
# rows in arbitrary order, no neighbour kept, one block read for each missed row.
BASELINE = "shuffled"
PLACEMENTS = (BASELINE, "popularity", "shp")
DIM = 32
WARM_SHARE = 0.2


@dataclass(frozen=True)
class Served:
    """What one way of serving the held-out requests cost; a line of ``result.json``."""

    adapter: str
    placement: str
    eviction: str
    admission: str
    threshold: int | None
    block_reads: int
    lookups: int
    gain: float
    device_bytes: int
    hit_rate: float
    rows_per_second: float
    wrong_rows: int


@click.command()
@click.option(
    "--log",
    "given",
    type=click.Path(path_type=Path),
    callback=named_path,
    help="Access log: .npz, .parquet, .csv or .txt.",
)
@click.option("--ordered", is_flag=True, help="The log is in order of time: learn on its start.")
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / rows.")
@click.option("--train", default=0.7, show_default=True, help="Share of requests to learn from.")
@click.option("--seed", default=0, show_default=True, help="Of split, placement and rows.")
@click.option(
    "--out",
    "directory",
    default="demo",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results go; stores are made there too, on the device to be measured.",
)
@json_option
@log_options
@errors_named
def main(
    given: NamedPath | None,
    ordered: bool,
    cache_fraction: float,
    train: float,
    seed: int,
    directory: Path,
    as_json: bool,
    how: LogOptions,
) -> None:
    """Serve the held-out part of an access log in three ways on two engines.

    Without --log the log is made from the standard library's source: each top-level
    definition looks up its identifiers.
    """
    bar = Bar()
    pyplot()  # said before minutes of work, should it be missing
    log = stdlib_log(bar) if given is None else read_named(given, how)
    if not 0 < cache_fraction <= 1:
        raise InputError(f"--cache {cache_fraction} is not a share of the rows above 0, up to 1")
    learn, test = log.split(train=train, ordered=ordered, seed=seed)
    rows = np.random.default_rng(seed).random((log.rows, DIM), dtype=np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    results = []
    for adapter in ADAPTERS:
        store = directory / f"store-{adapter}"
        try:
            results += _compare(store, adapter, learn, test, rows, cache_fraction, seed, bar)
        finally:
            shutil.rmtree(store, ignore_errors=True)
    name = "python standard library" if given is None else given.path.stem
    summary = {
        "log": name,
        "requests": log.requests,
        "rows": log.rows,
        "cache_fraction": cache_fraction,
        "results": [asdict(result) for result in results],
    }
    (directory / "result.json").write_text(json.dumps(summary, indent=1) + "\n")
    _draw(directory / "gain.png", name, cache_fraction, results)
    wrong = sum(result.wrong_rows for result in results)
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    else:
        _print(summary, results)
        out.print(f"every served row was compared with its source: {wrong} wrong")
        out.print(f"wrote {directory / 'result.json'} and {directory / 'gain.png'}")
    if wrong:
        raise SystemExit(1)


def _compare(
    store: Path,
    adapter: str,
    learn: AccessLog,
    test: AccessLog,
    rows: NDArray[np.float32],
    cache_fraction: float,
    seed: int,
    progress: Progress,
) -> list[Served]:
    """Serve `test` from one engine under every placement."""
    results: list[Served] = []
    capacity_rows = max(1, int(cache_fraction * len(rows)))
    # The same DRAM for all: what the baseline's cache takes, bookkeeping included.
    cache_bytes = cache_bytes_of(Policy(), capacity_rows, rows.itemsize * DIM, len(rows))
    for placement in PLACEMENTS:
        baseline = placement == BASELINE
        bandana_kv.load(
            store,
            {"rows": rows},
            {"rows": learn},
            adapter=adapter,
            placement=placement,
            admission="none" if baseline else None,
            seed=seed,
            progress=progress,
        )
        drop_page_cache(store)
        with bandana_kv.open(store, cache_bytes, coalesce=not baseline) as opened:
            measured = _serve(opened, test, rows, progress)
            policy = opened.policy("rows")
        per_lookup = measured["block_reads"] / max(1, measured["lookups"])
        first = results[0].block_reads / max(1, results[0].lookups) if results else per_lookup
        results.append(
            Served(
                adapter=adapter,
                placement=placement,
                eviction=policy.eviction,
                admission=policy.admission.rule,
                threshold=policy.admission.threshold,
                gain=first / per_lookup if per_lookup else float("inf"),
                **measured,
            )
        )
    return results


def _serve(
    store: bandana_kv.EmbeddingStore,
    test: AccessLog,
    rows: NDArray[np.float32],
    progress: Progress,
) -> dict[str, Any]:
    """Serve all requests, compare every row; count what comes after the first fifth."""
    warm = int(WARM_SHARE * test.requests)
    wrong, seconds = 0, 0.0
    before, read_before = store.stats()["rows"], 0
    progress.start("serve", test.requests, "requests")
    for number in range(test.requests):
        if number == warm:
            before, read_before, seconds = store.stats()["rows"], device_bytes_read(), 0.0
        ids = test.request(number)
        begun = time.perf_counter()
        served = store.multi_get("rows", ids)
        seconds += time.perf_counter() - begun
        expected = rows[ids]
        if served.tobytes() != expected.tobytes():
            wrong += int(np.any(served.view(np.uint32) != expected.view(np.uint32), axis=1).sum())
        if number % 256 == 255:
            progress.advance(256)
    progress.finish()
    after = store.stats()["rows"]
    lookups, hits, reads = (after[key] - before[key] for key in ("lookups", "hits", "block_reads"))
    return {
        "block_reads": reads,
        "lookups": lookups,
        "device_bytes": device_bytes_read() - read_before,
        "hit_rate": hits / max(1, lookups),
        "rows_per_second": lookups / seconds if seconds else 0.0,
        "wrong_rows": wrong,
    }


def _label(result: Served) -> str:
    if result.placement == BASELINE:
        return "baseline: shuffled, LRU"
    name = {"shp": "SHP", "popularity": "popularity"}.get(result.placement, result.placement)
    eviction = {"tinylfu": "TinyLFU"}.get(result.eviction, result.eviction.upper())
    threshold = "" if result.threshold is None else f" {result.threshold}"
    admitted = "" if result.admission == "none" else f" + {result.admission}{threshold}"
    return f"{name}, {eviction}{admitted}"


def _print(summary: dict[str, Any], results: list[Served]) -> None:
    table = Table(
        box=SIMPLE,
        title_justify="left",
        title=f"{summary['log']}: {summary['requests']:,} requests, {summary['rows']:,} rows of "
        f"{4 * DIM} bytes, DRAM for {summary['cache_fraction']:.0%} of them",
    )
    columns = ("engine", "served as", "reads/lookup", "gain", "hits", "MiB read", "rows/s")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    for result in results:
        table.add_row(
            result.adapter,
            _label(result),
            f"{result.block_reads / max(1, result.lookups):.3f}",
            f"{result.gain:.2f}",
            f"{result.hit_rate:.1%}",
            f"{result.device_bytes / 2**20:.0f}",
            f"{result.rows_per_second:,.0f}",
        )
    out.print(table)
    out.print(
        "MiB read: what the device delivered after the warm-up. LMDB reads through the page "
        "cache, which keeps a small store whole, beyond the DRAM above; RocksDB reads directly."
    )


def _draw(path: Path, name: str, cache_fraction: float, results: list[Served]) -> None:
    plt = pyplot()
    shown = [result for result in results if result.adapter == ADAPTERS[0]]
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    reads = [result.block_reads / max(1, result.lookups) for result in shown]
    bars = axes.barh(
        [_label(result) for result in shown], reads, color=["#9aa5b1", "#6f9fc8", "#d1495b"]
    )
    axes.bar_label(bars, [f"{r.gain:.2f}x" for r in shown], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("4 KiB block reads per lookup (less is better); the number is the gain")
    axes.set_title(f"{name}, DRAM for {cache_fraction:.0%} of the rows", loc="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
