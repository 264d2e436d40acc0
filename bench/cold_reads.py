"""Device bytes of a block read, cold, through the store's own read path.

    python bench/cold_reads.py --dir DIR [--blocks 131072] [--keep]

Loads a table, lets the system forget its copies of the store's files, opens the store
without a cache and looks up one row of every block once, in random order and in requests of
`--batch` ids. Device bytes are those that the system charges to this process.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import click
import numpy as np
from common import report, surroundings

import bandana_kv
from bandana_kv.device.advice import DEFAULT_DEPTH
from bandana_kv.device.page_cache import device_bytes_read, drop_page_cache

ADAPTERS = ("lmdb", "rocksdb")
ROWS_PER_BLOCK = 31
PAGE_BYTES = 4096


def measure(store: Path, adapter: str, rows: np.ndarray, batch: int, seed: int) -> dict[str, float]:
    bandana_kv.load(store, {"user": rows}, adapter=adapter, placement="identity")
    drop_page_cache(store)
    ids = np.random.default_rng(seed).permutation(np.arange(0, len(rows), ROWS_PER_BLOCK))
    wrong = 0
    with bandana_kv.open(store, cache_bytes=0) as opened:
        before, begun, busy = device_bytes_read(), time.perf_counter(), time.process_time()
        for first in range(0, ids.size, batch):
            asked = ids[first : first + batch]
            wrong += int(np.any(opened.multi_get("user", asked) != rows[asked], axis=1).sum())
        seconds = time.perf_counter() - begun
        busy = time.process_time() - busy
        blocks = opened.stats()["user"]["block_reads"]
        device_bytes = device_bytes_read() - before
    return {
        "blocks": blocks,
        "device_pages_per_block": device_bytes / (blocks * PAGE_BYTES),
        "reads_per_second": blocks / seconds,
        "cpu_us_per_block": 1e6 * busy / blocks,
        "wrong_rows": wrong,
    }


@click.command()
@click.option("--dir", "directory", type=Path, required=True, help="On the device to measure.")
@click.option("--blocks", default=131_072, show_default=True)
@click.option("--batch", default=256, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(directory: Path, blocks: int, batch: int, seed: int, keep: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.random((blocks * ROWS_PER_BLOCK, 32), dtype=np.float32)
    results = {}
    for adapter in ADAPTERS:
        store = directory / f"store-{adapter}"
        shutil.rmtree(store, ignore_errors=True)
        try:
            results[adapter] = measure(store, adapter, rows, batch, seed)
        finally:
            shutil.rmtree(store, ignore_errors=True)
    result = {
        "bench": "cold_reads",
        "batch": batch,
        "readers": DEFAULT_DEPTH,
        "adapters": results,
        "surroundings": surroundings(seed),
    }
    report(result, "cold-reads" if keep else None)


if __name__ == "__main__":
    main()
