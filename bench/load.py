"""How fast tables load, against how fast the same device writes a file.

    python bench/load.py --dir DIR --gib 4 --json [--adapters blockfile,lmdb,rocksdb]

A ``.npy`` of --gib GiB, rows of 128 bytes. `load` runs in a process of its own that has loaded
a small table before, so that kernels are there; `seconds` is the call, until the new version
is safe on the device and served; `mib_per_second` counts bytes of rows; `peak_rss_bytes` is the
whole process's.

in_order
    Rows stay in the order of their ids, and the ``.npy`` is in the page cache, as after
    training: what is measured is writing. The figures of an adapter are these.
cold
    The same, and the page cache has forgotten the ``.npy``: the device reads as much as it writes.
placed
    Blocks take their rows from anywhere in the file, as with a learnt placement.

Before each load a file of the same size is written in pieces of 8 MiB and synced: through the
page cache, and past it (O_DIRECT). `fraction_of_sequential_write` compares with the median of
the way that the adapter goes, which `sequential_write` names; `fraction_of_direct_write` with the
faster one, whichever way the adapter goes.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings

import bandana_kv
from bandana_kv import adapters
from bandana_kv.cache.policy import Policy
from bandana_kv.device.page_cache import drop_page_cache

ROW_BYTES, PIECE_BYTES = 128, 8 << 20
DIM = ROW_BYTES // 4
SMALL_ROWS = 10_000
WAYS = {"buffered": 0, "direct": os.O_DIRECT}
DIRECT = ("blockfile",)  # the adapters that write past the page cache
CASES = {"in_order": "identity", "cold": "identity", "placed": "shuffled"}


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path))
@click.option("--gib", default=4.0, show_default=True)
@click.option("--adapters", "names", help="By default all that keep what they are given.")
@click.option("--child", type=(Path, Path, str, str), hidden=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    directory: Path | None,
    gib: float,
    names: str | None,
    child: tuple[Path, Path, str, str] | None,
    _json: bool,
    keep: bool,
) -> None:
    if child:
        print(json.dumps(_load(*child)))
        return
    if directory is None:
        raise click.UsageError("--dir is needed")
    wanted = names.split(",") if names else [n for n in adapters.names() if n != "memory"]
    rows = int(gib * (1 << 30)) // ROW_BYTES
    work = directory / f"load-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        table = work / "table"
        table.mkdir()
        _write_table(table / "rows.npy", rows)
        writes: dict[str, list[float]] = {way: [] for way in WAYS}
        loads: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in wanted}
        for name in wanted:
            for case, placement in CASES.items():
                for way, flags in WAYS.items():
                    path = work / "sequential"
                    writes[way].append(_sequential_write(path, rows * ROW_BYTES, flags))
                _set_page_cache(table, cold=case == "cold")
                loads[name][case] = _run(table / "rows.npy", work / "store", name, placement)
                print(name, case, loads[name][case], file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    rates = {way: statistics.median(each) for way, each in writes.items()}
    for name, cases in loads.items():
        way = "direct" if name in DIRECT else "buffered"
        for figures in cases.values():
            rate = rows * ROW_BYTES / figures["seconds"] / (1 << 20)
            figures["mib_per_second"] = round(rate, 1)
            figures["fraction_of_sequential_write"] = round(rate / rates[way], 3)
            figures["fraction_of_direct_write"] = round(rate / rates["direct"], 3)
            figures["sequential_write"] = way
    result = {
        "bench": "load",
        "rows": rows,
        "row_bytes": ROW_BYTES,
        "sequential_write_mib_per_second": {way: round(rate, 1) for way, rate in rates.items()},
        "sequential_writes": {way: [round(rate, 1) for rate in writes[way]] for way in writes},
        "adapters": {name: each.pop("in_order") | each for name, each in loads.items()},
        "surroundings": surroundings(0),
    }
    report(result, "load" if keep else None)


def _write_table(path: Path, rows: int) -> None:
    piece = PIECE_BYTES // ROW_BYTES
    words = np.random.default_rng(0).random(piece * DIM, np.float32)
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, DIM)}
        np.lib.format.write_array_header_1_0(file, header)
        firsts = range(0, rows, piece)
        file.writelines(
            np.roll(words, first % 1009)[: DIM * min(piece, rows - first)].data for first in firsts
        )


def _set_page_cache(table: Path, *, cold: bool) -> None:
    if cold:
        drop_page_cache(table)
        return
    with open(table / "rows.npy", "rb", buffering=0) as file:
        while file.read(PIECE_BYTES):
            pass


def _sequential_write(path: Path, size_bytes: int, flags: int) -> float:
    """Return MiB a second of a file written in pieces and synced."""
    piece = mmap.mmap(-1, PIECE_BYTES)  # aligned, as direct writing needs it
    piece.write(np.random.default_rng(1).bytes(PIECE_BYTES))
    begun = time.perf_counter()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
    for _ in range(0, size_bytes, PIECE_BYTES):
        os.write(file, piece)
    os.fsync(file)
    rate = size_bytes / (time.perf_counter() - begun) / (1 << 20)
    os.close(file)
    path.unlink()
    return rate


def _run(table: Path, store: Path, adapter: str, placement: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(table), str(store), adapter, placement]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        shutil.rmtree(store, ignore_errors=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _load(table: Path, store: Path, adapter: str, placement: str) -> dict[str, Any]:
    """Load in this process, after a small table."""
    small = store.with_name("small")
    _write_table(small.with_suffix(".npy"), SMALL_ROWS)
    seconds = 0.0
    for source, target in ((small.with_suffix(".npy"), small), (table, store)):
        begun, busy = time.perf_counter(), time.process_time()
        bandana_kv.load(
            target, {"t": source}, adapter=adapter, placement=placement, policy=Policy()
        )
        seconds, busy = time.perf_counter() - begun, time.process_time() - busy
    shutil.rmtree(small)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 2), "cpu_seconds": round(busy, 2), "peak_rss_bytes": peak}


if __name__ == "__main__":
    main()
