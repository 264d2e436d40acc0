"""Memory of a load, and time to the first row, of a table that is not in memory.

    python bench/load_and_open.py --dir DIR [--rows 5000000] [--keep]

Writes rows of 32 float32 to a .npy file, loads it into each engine in a process of its own,
and opens the store in others: import, open and first lookup are timed there, after one run
that fills the cache of compiled kernels. Resident memory is the highest that the system saw
(VmHWM), with what importing the library takes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
from common import report, surroundings

ADAPTERS = ("lmdb", "rocksdb")
CHUNK_ROWS = 1 << 18

_PEAK = """
import json, time
def status(key):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status")
                if line.startswith(key))
"""
_LOAD = (
    _PEAK
    + """
import sys, bandana_kv
imported = status("VmRSS")
begun = time.perf_counter()
bandana_kv.load(sys.argv[1], {"user": sys.argv[2]}, adapter=sys.argv[3], placement="shuffled")
print(json.dumps({"load_seconds": time.perf_counter() - begun,
                  "imported_rss_bytes": imported, "peak_rss_bytes": status("VmHWM")}))
"""
)
_OPEN = (
    _PEAK
    + """
begun = time.perf_counter()
import sys, bandana_kv
imported = time.perf_counter()
store = bandana_kv.open(sys.argv[1], cache_bytes=64 << 20)
opened = time.perf_counter()
store.get("user", 42)
done = time.perf_counter()
print(json.dumps({"import_seconds": imported - begun, "open_seconds": opened - imported,
                  "first_lookup_seconds": done - opened}))
"""
)


def in_process(code: str, *arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def write_rows(path: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 32))
    for first in range(0, rows, CHUNK_ROWS):
        part = table[first : first + CHUNK_ROWS]
        part[:] = rng.random(part.shape, dtype=np.float32)
    table.flush()


@click.command()
@click.option("--dir", "directory", type=Path, required=True, help="On the device to measure.")
@click.option("--rows", default=5_000_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(directory: Path, rows: int, seed: int, keep: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    table = directory / "rows.npy"
    write_rows(table, rows, seed)
    results = {}
    for adapter in ADAPTERS:
        store = directory / f"store-{adapter}"
        shutil.rmtree(store, ignore_errors=True)
        figures = in_process(_LOAD, str(store), str(table), adapter)
        in_process(_OPEN, str(store))
        opens = [in_process(_OPEN, str(store)) for _ in range(5)]
        for key in opens[0]:
            figures[key] = sorted(run[key] for run in opens)[2]
        results[adapter] = figures
        shutil.rmtree(store)
    table.unlink()
    result = {
        "bench": "load_and_open",
        "rows": rows,
        "row_bytes": 128,
        "adapters": results,
        "surroundings": surroundings(seed),
    }
    report(result, "load-and-open" if keep else None)


if __name__ == "__main__":
    main()
