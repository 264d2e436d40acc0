"""A table moved out of each engine, killed halfway and resumed: how fast, and whether all is there.

    python bench/migrate.py --dir DIR [--rows 1000000] [--key decimal] [--json] [--keep]

Writes rows of 32 float32 by key into RocksDB and LMDB; moves them in
a process of its own, which kills itself (SIGKILL) after half of the rows; moves on in another, and
compares every row of the new store with what was written. Then once more without a kill, for the
speed, in a process that has its kernels compiled.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import lmdb
import numpy as np
import rocksdict
from common import report, surroundings

import bandana_kv
from bandana_kv.adapters.rows import KEY_CODECS

DIM = 32
CHUNK_ROWS = 1 << 16

# Prints what was done as JSON; with a number of rows to die after, dies.
_MIGRATE = """
import json, os, signal, sys
import msgspec
from bandana_kv.adapters.rows import open_rows
from bandana_kv.migration import migrate
from bandana_kv.progress import Progress

engine, source, store, key, most = sys.argv[1:]

class Told(Progress):
    done = 0
    def advance(self, count):
        self.done += count
        if self.done >= int(most):
            os.kill(os.getpid(), signal.SIGKILL)

def peak_bytes():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))

with open_rows(engine, source, key=key) as opened:
    done = migrate(opened, store, "user", progress=Told() if int(most) else None)
print(json.dumps(msgspec.to_builtins(done) | {"peak_resident_bytes": peak_bytes()}))
"""


def rows_of(first: int, count: int, seed: int) -> np.ndarray:
    """Return the rows of a chunk of ids, made anew from the seed."""
    return np.random.default_rng((seed, first)).random((count, DIM), np.float32)


def chunks(rows: int) -> list[tuple[int, int]]:
    return [(first, min(CHUNK_ROWS, rows - first)) for first in range(0, rows, CHUNK_ROWS)]


def write_rocksdb(path: Path, rows: int, key: str, seed: int) -> None:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    database = rocksdict.Rdict(str(path), options)
    for first, count in chunks(rows):
        batch = rocksdict.WriteBatch(raw_mode=True)
        keys = KEY_CODECS[key]("user", np.arange(first, first + count))
        for each, row in zip(keys, rows_of(first, count, seed), strict=True):
            batch.put(each, row.tobytes())
        database.write(batch)
    database.flush()
    database.close()


def write_lmdb(path: Path, rows: int, key: str, seed: int) -> None:
    with lmdb.open(str(path), map_size=(1 << 28) + 4 * rows * DIM * 4) as environment:
        for first, count in chunks(rows):
            keys = KEY_CODECS[key]("user", np.arange(first, first + count))
            with environment.begin(write=True) as txn:
                for each, row in zip(keys, rows_of(first, count, seed), strict=True):
                    txn.put(each, row.tobytes())


ENGINES = {"rocksdb": write_rocksdb, "lmdb": write_lmdb}


def migrated(engine: str, source: Path, store: Path, key: str, most: int) -> dict[str, Any]:
    command = [sys.executable, "-c", _MIGRATE, engine, str(source), str(store), key, str(most)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if most:
        assert done.returncode == -9, done.stderr
        return {}
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def differing(store: Path, rows: int, seed: int) -> int:
    """Return how many rows of the store are not those that were written."""
    wrong = 0
    with bandana_kv.open(store, cache_bytes=0) as opened:
        for first, count in chunks(rows):
            found = opened.multi_get("user", np.arange(first, first + count))
            same = (found.view(np.uint32) == rows_of(first, count, seed).view(np.uint32)).all(1)
            wrong += int(np.count_nonzero(~same))
    return wrong


def measured(engine: str, directory: Path, rows: int, key: str, seed: int) -> dict[str, Any]:
    source, store = directory / f"source-{engine}", directory / f"store-{engine}"
    for path in (source, store):
        shutil.rmtree(path, ignore_errors=True)
    ENGINES[engine](source, rows, key, seed)
    migrated(engine, source, store, key, rows // 2)
    resumed = migrated(engine, source, store, key, 0)
    wrong = differing(store, rows, seed)
    shutil.rmtree(store)
    whole = migrated(engine, source, store, key, 0)
    wrong += differing(store, rows, seed)
    shutil.rmtree(source)
    shutil.rmtree(store)
    seconds = {name: whole[f"{name}_seconds"] for name in ("extract", "load", "compare")}
    return {
        "rows": whole["rows"],
        "identical": wrong == 0 and resumed["rows"] == whole["rows"] == rows,
        "rows_differing": wrong,
        "killed_after": rows // 2,
        "resumed_from": resumed["resumed_from"],
        "checksum_source": whole["checksum_source"],
        "checksum_store": resumed["checksum_store"],
        "seconds": seconds,
        "rows_per_second": {name: rows / spent for name, spent in seconds.items()}
        | {"whole": rows / sum(seconds.values())},
        "peak_resident_bytes": whole["peak_resident_bytes"],
    }


@click.command()
@click.option("--dir", "directory", type=Path, required=True, help="On the device to measure.")
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--key", default="uint64-be", show_default=True, type=click.Choice(list(KEY_CODECS)))
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(directory: Path, rows: int, key: str, seed: int, _json: bool, keep: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    engines = {name: measured(name, directory, rows, key, seed) for name in ENGINES}
    result = {
        "bench": "migrate",
        "rows": rows,
        "row_bytes": 4 * DIM,
        "key": key,
        "identical": all(each["identical"] for each in engines.values()),
        "engines": engines,
        "surroundings": surroundings(seed),
    }
    report(result, f"migrate-{key}" if keep else None)


if __name__ == "__main__":
    main()
