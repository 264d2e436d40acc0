"""Cold random blocks through the store's own read path, against what fio reaches.

    python bench/device_path.py --dir DIR --json [--adapters rocksdb,lmdb,blockfile] [--depth 32]

A table that fills one block a row (31 rows of 128 bytes would do as well: what is measured is
blocks), no DRAM, so that each lookup is a block read, verified and answered like any other.
Each round asks for blocks that no round before it asked for, drawn at random, in requests of
4,096, by one thread: the depth is the store's. fio reads 4 KiB at random with direct I/O from
a file of its own, at the same depth. All take turns, three rounds; figures are medians. The
page cache is dropped and the store opened anew before each turn.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings
from numpy.typing import NDArray

import bandana_kv
from bandana_kv.cache.policy import Policy
from bandana_kv.device import DeviceProfile
from bandana_kv.device.engine import Shape
from bandana_kv.device.fio import Fio
from bandana_kv.device.page_cache import device_bytes_read, drop_page_cache
from bandana_kv.device.workfile import work_file
from bandana_kv.progress import Progress

BATCH, ROUNDS = 4096, 3
FIO_BYTES, FIO_MILLISECONDS = 1 << 30, 3000
FLOATS = 960  # 3,840 bytes: one row fills a page of every engine


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--adapters", default="rocksdb,lmdb,blockfile", show_default=True)
@click.option("--profile", type=Path, help="A device.json, whose depth is used.")
@click.option("--depth", type=int, help="Queue depth.  [default: the profile's, else 32]")
@click.option("--blocks", default=262_144, show_default=True)
@click.option("--reads", default=40_960, show_default=True, help="Blocks of a turn.")
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(
    directory: Path,
    adapters: str,
    profile: Path | None,
    depth: int | None,
    blocks: int,
    reads: int,
    _json: bool,
    keep: bool,
    seed: int,
) -> None:
    if depth is None:
        depth = DeviceProfile.read(profile).queue_depth if profile else 32
    names = adapters.split(",")
    directory.mkdir(parents=True, exist_ok=True)
    stores = {name: directory / f"device-path-{name}" for name in names}
    order = np.random.default_rng(seed).permutation(blocks)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    rates = []
    try:
        for name, path in stores.items():
            _load(path, name, blocks)
        with work_file(directory, FIO_BYTES, Progress()) as file:
            fio = Fio.that_works(file)
            for turn in range(ROUNDS):
                shape = [Shape(4096, depth, 1)]
                rates.append(fio.measure(file, "randread", shape, FIO_MILLISECONDS)[0])
                wanted = order[turn * reads : (turn + 1) * reads]
                for name, path in stores.items():
                    turns[name].append(_read(path, wanted, depth))
    finally:
        for path in stores.values():
            shutil.rmtree(path, ignore_errors=True)
    fio_iops = statistics.median(each.per_second for each in rates)
    result = {
        "bench": "device_path",
        "queue_depth": depth,
        "fio_engine": fio.name,
        "fio_iops": round(fio_iops),
        "adapters": {name: _summary(each, fio_iops) for name, each in turns.items()},
        "blocks": blocks,
        "reads": reads,
        "batch": BATCH,
        "surroundings": surroundings(seed),
    }
    report(result, "device-path" if keep else None)


def _load(path: Path, adapter: str, blocks: int) -> None:
    rng = np.random.default_rng(1)
    rows = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.float32, (blocks, FLOATS))
    for first in range(0, blocks, 8192):
        rows[first : first + 8192] = rng.random((min(8192, blocks - first), FLOATS), np.float32)
    rows.flush()
    del rows
    try:
        bandana_kv.load(
            path,
            {"t": path.with_suffix(".npy")},
            adapter=adapter,
            placement="identity",
            policy=Policy(),
        )
    finally:
        path.with_suffix(".npy").unlink()


def _read(path: Path, wanted: NDArray[np.int64], depth: int) -> dict[str, float]:
    drop_page_cache(path)
    with bandana_kv.open(path, 0, readers=depth) as store:
        # What is opened and learnt once is not what is measured.
        store.multi_get("t", wanted[:BATCH])
        counted = store.stats()["t"]["block_reads"]
        bytes_before, cpu, begun = device_bytes_read(), time.process_time(), time.perf_counter()
        for first in range(BATCH, wanted.size, BATCH):
            store.multi_get("t", wanted[first : first + BATCH])
        seconds = time.perf_counter() - begun
        read = store.stats()["t"]["block_reads"] - counted
        return {
            "reads_per_second": read / seconds,
            "device_bytes_per_block": (device_bytes_read() - bytes_before) / read,
            "cpu_us_per_block": 1e6 * (time.process_time() - cpu) / read,
        }


def _summary(turns: list[dict[str, float]], fio_iops: float) -> dict[str, Any]:
    medians = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
    rate = medians["reads_per_second"]
    return {
        "reads_per_second": round(rate),
        "fraction_of_fio": round(rate / fio_iops, 3),
        "device_bytes_per_block": round(medians["device_bytes_per_block"], 1),
        "cpu_us_per_block": round(medians["cpu_us_per_block"], 2),
    }


if __name__ == "__main__":
    main()
