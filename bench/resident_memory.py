"""Resident memory that `open` and ten million lookups add, against what `open` was allowed.

    python bench/resident_memory.py --dir DIR --json [--adapter rocksdb]

A table of 4 million rows of 128 bytes, DRAM for 64 MiB of them; requests of 1,000 ids drawn by
a Zipf law, so that the cache fills and evicts. Measured in a process of its own that has
imported everything and served another store first, so that only what this one adds counts.
`added_bytes` is VmRSS, which for LMDB holds the pages of its file that the system finds
room for; `added_anonymous_bytes` leaves out what is mapped from files.
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

import bandana_kv
from bandana_kv.cache.policy import Admission, Policy

ROWS, DIM = 4_000_000, 32
CACHE_BYTES = 64 << 20
LOOKUPS, BATCH = 10_000_000, 1_000

CHILD = """
import json, sys
import numpy as np
import bandana_kv

def resident():
    lines = open("/proc/self/status").read().splitlines()
    sizes = [line.split() for line in lines if line.startswith(("VmRSS", "Rss"))]
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in sizes}

def serve(path, cache_bytes, rows, lookups):
    store = bandana_kv.open(path, cache_bytes)
    rng = np.random.default_rng(0)
    for _ in range(lookups // BATCH):
        store.multi_get("t", order[np.minimum(rng.zipf(1.2, BATCH), rows) - 1])
    return store

BATCH = int(sys.argv[3])
order = np.arange(1000)
small = serve(sys.argv[1], 1 << 20, 1000, 200_000)
small.close()
order = np.random.default_rng(1).permutation(int(sys.argv[5]))  # so that it is not added
before = resident()
store = serve(sys.argv[2], int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
after = resident()
print(json.dumps({"before": before, "after": after, "stats": store.stats()["t"],
                  "cache_bytes": store.cache_bytes, "policy": str(store.policy("t"))}))
"""


@click.command()
@click.option("--dir", "directory", type=Path, required=True)
@click.option("--adapter", default="rocksdb", show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(directory: Path, adapter: str, _json: bool, keep: bool) -> None:
    big, small = directory / "big", directory / "small"
    policy = Policy("tinylfu", Admission("online"))
    try:
        for path, rows in ((small, 1000), (big, ROWS)):
            table = np.zeros((rows, DIM), np.float32)
            bandana_kv.load(path, {"t": table}, adapter=adapter, policy=policy)
        arguments = (small, big, BATCH, CACHE_BYTES, ROWS, LOOKUPS)
        command = [sys.executable, "-c", CHILD, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        for path in (big, small):
            shutil.rmtree(path, ignore_errors=True)
    measured = json.loads(done.stdout)
    before, after = measured["before"], measured["after"]
    private = sum(after[k] - before[k] for k in ("RssAnon", "RssShmem"))
    allowed = int(1.05 * CACHE_BYTES + 5 * ROWS + (32 << 20))
    result = {
        "adapter": adapter,
        "rows": ROWS,
        "lookups": LOOKUPS,
        "cache_bytes_asked": CACHE_BYTES,
        "cache_bytes": measured["cache_bytes"],
        "policy": measured["policy"],
        "added_bytes": after["VmRSS"] - before["VmRSS"],
        "added_anonymous_bytes": private,
        "allowed_bytes": allowed,
        "stats": measured["stats"],
        "surroundings": surroundings(0),
    }
    report(result, f"resident-memory-{adapter}" if keep else None)


if __name__ == "__main__":
    main()
