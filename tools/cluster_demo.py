"""A store on a real cluster that loses one node and has another freeze, while threads read it."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table

from bandana_kv import AccessLog
from bandana_kv.testing.cluster_readers import Readers, Stretch
from bandana_kv.testing.cluster_trial import TABLE, Trial
from bandana_kv.testing.hushed import hushed
from bandana_kv.testing.real_cluster import RealCluster
from bandana_kv.tools.console import errors_named, json_option, out

__all__ = ["main"]

_REQUESTS, _IDS_A_REQUEST = 20_000, 34
_COMMUNITY_ROWS = 200
_DIM, _CACHED_SHARE = 32, 0.05
_WARM_SHARE = 0.25


@click.command()
@click.option("--rows", default=100_000, show_default=True, type=click.IntRange(2000))
@click.option("--threads", default=4, show_default=True, type=click.IntRange(1, 64))
@click.option("--seconds", default=6.0, show_default=True, help="Of each line of the table.")
@click.option("--seed", default=0, show_default=True, help="Of rows, requests and what breaks.")
@json_option
@errors_named
def main(rows: int, threads: int, seconds: float, seed: int, as_json: bool) -> None:
    """Start a cluster, load a table into it, serve, kill one node and freeze another.

    Three primaries and three replicas of a real server (Valkey) on loopback, with all blocks in
    RAM; threads look rows up, and every row that comes is compared with what was loaded. All
    processes that were started are ended, by their ids.
    """
    begun = time.perf_counter()
    with (
        hushed(logging.ERROR),
        tempfile.TemporaryDirectory(prefix="bandana-kv-cluster-demo-") as directory,
        RealCluster() as cluster,
    ):
        started_s = time.perf_counter() - begun
        _say(as_json, f"{len(cluster.nodes)} nodes are up after {started_s:.1f} s")
        log = _log(rows, np.random.default_rng(seed))
        learn, serve = log.split(train=0.7, ordered=True)
        cache_bytes = int(_CACHED_SHARE * rows * 4 * _DIM)
        trial = Trial(
            cluster,
            Path(directory) / "store",
            seed,
            rows=rows,
            dim=_DIM,
            cache_bytes=cache_bytes,
            log=learn,
        )
        loaded_s = time.perf_counter() - begun - started_s
        _say(as_json, f"{rows:,} rows are placed, loaded and on two nodes each: {loaded_s:.1f} s")
        with trial:
            stretches = _break(trial, _requests(serve), threads, seconds)
            counts = trial.store.stats()[TABLE]
    summary = {
        "rows": rows,
        "threads": threads,
        "seed": seed,
        "start_seconds": round(started_s, 2),
        "load_seconds": round(loaded_s, 2),
        "block_reads": counts["block_reads"],
        "stretches": [each.as_dict() for each in stretches],
    }
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    else:
        _print(stretches)
    if any(each.wrong_rows or each.errors for each in stretches):
        raise SystemExit(1)


def _break(
    trial: Trial, requests: list[NDArray[Any]], threads: int, seconds: float
) -> list[Stretch]:
    """Serve; kill a primary, freeze another one, let it go on; return what readers saw."""
    with Readers(trial.ask, trial.judge, requests, threads=threads, first="warming") as readers:
        time.sleep(_WARM_SHARE * seconds)
        readers.begin("steady")
        time.sleep(seconds)
        trial.kill()
        readers.begin("one killed")
        time.sleep(seconds)
        trial.freeze()
        readers.begin("another frozen")
        time.sleep(seconds)
        trial.mend()
        readers.begin("mended")
        time.sleep(seconds)
    return readers.stretches()[1:]


def _log(rows: int, rng: np.random.Generator) -> AccessLog:
    """Return requests that each look a community of rows up, as users' lists do, and some more."""
    communities = rows // _COMMUNITY_ROWS
    member = rng.permutation(communities * _COMMUNITY_ROWS).reshape(communities, _COMMUNITY_ROWS)
    popular = (communities * rng.random(_REQUESTS) ** 3).astype(np.int64)
    ids = member[popular[:, None], rng.integers(0, _COMMUNITY_ROWS, (_REQUESTS, _IDS_A_REQUEST))]
    return AccessLog.from_requests(ids)


def _requests(log: AccessLog) -> list[NDArray[Any]]:
    return [ids.astype(np.int64) for ids in np.split(log.ids, log.offsets[1:-1])]


def _say(as_json: bool, text: str) -> None:
    if not as_json:
        out.print(text)


def _print(stretches: list[Stretch]) -> None:
    table = Table(box=SIMPLE)
    names = ("", "rows/s", "p50 ms", "p99 ms", "longest ms", "wrong rows", "errors")
    for name in names:
        table.add_column(name, justify="right" if name else "left")
    for each in stretches:
        times = (each.p50_ms, each.p99_ms, each.longest_ms)
        table.add_row(
            each.name,
            f"{each.rows_per_second:,.0f}",
            *(f"{one:.2f}" for one in times),
            str(each.wrong_rows),
            str(each.errors),
        )
    out.print(table)
    for why in dict.fromkeys(why for each in stretches for why in each.why):
        out.print(why)
    compared = sum(each.rows for each in stretches)
    out.print(f"{compared:,} rows came, and each was compared with what was loaded")


if __name__ == "__main__":
    main()
