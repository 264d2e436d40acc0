"""What a request's time is spent on, in microseconds: one caller, one request after the other.

    python bench/request_parts.py --dir DIR --json

hit
    Rows that are all cached. `kernel_us` is the compiled look-up called by itself, `python_us` the
    rest of `us`.
miss
    One row that is not cached, of a block file in memory (``/dev/shm``), where reading costs next
    to nothing: what is ours of a miss. `look_up_us` and `read_us` are these steps by themselves,
    the latter one ``os.pread`` of the block; `verify_us` is the checksum of a block; `rest_us` is
    what remains: claiming, copying, admitting, and Python around it.
engines
    One row that is not cached, cold, by engine: `us` as the caller sees it, `cpu_us` of the
    process, and the same of reading such a block with nothing around it: `floor_us`,
    `floor_cpu_us`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings
from request_path import PLAIN, reads_of

import bandana_kv
from bandana_kv.device.page_cache import drop_page_cache
from bandana_kv.disk import blocks
from bandana_kv.serve import one_call, words
from bandana_kv.serve.answer import abandon

ROWS, DIM = 400_000, 32
IDS = (1, 10, 34, 200)
TURNS, CALLS, COLD_CALLS = 7, 5000, 3000


@click.command()
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path))
@click.option("--adapters", default="blockfile,lmdb,rocksdb", show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(directory: Path, adapters: str, _json: bool, keep: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.random((ROWS, DIM), np.float32)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        path = Path(memory) / "store"
        bandana_kv.load(path, {"t": rows}, adapter="blockfile", placement="shuffled")
        result: dict[str, Any] = {"hit": _hits(path, rng), "miss": _miss(path, rng)}
    work = directory / "request-parts"
    work.mkdir(parents=True)
    try:
        result["engines"] = [_engine(work, name, rows, rng) for name in adapters.split(",")]
    finally:
        shutil.rmtree(work)
    result["surroundings"] = surroundings(seed)
    report(result, "request-parts" if keep else None)


def _us(call: Callable[[int], object], calls: int = CALLS, turns: int = TURNS) -> float:
    """Return the median over turns of what a call takes; it is told which one it is."""
    found = []
    for turn in range(turns):
        begun = time.perf_counter()
        for number in range(turn * calls, (turn + 1) * calls):
            call(number)
        found.append(1e6 * (time.perf_counter() - begun) / calls)
    return statistics.median(found)


def _hits(path: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    with bandana_kv.open(path, 2 * ROWS * DIM * 4, policy=PLAIN) as store:
        for first in range(0, ROWS, 16_384):
            store.multi_get("t", np.arange(first, min(ROWS, first + 16_384)))
        table = store._tables["t"]
        for ids in IDS:
            asked = rng.integers(0, ROWS, (4096, ids))
            out = np.empty((ids, DIM * 4), np.uint8)
            scratch = np.zeros(words.HEAD + words.WORDS_OF_ID * ids, np.int64)
            places = table.words.ctypes.data, scratch.ctypes.data
            total = _us(lambda k, asked=asked: store.multi_get("t", asked[k % 4096]))
            kernel = _us(
                lambda k, asked=asked, places=places, out=out: one_call.ask_few(
                    *places, asked[k % 4096], out, 0, 0
                )
            )
            found.append(
                {
                    "ids": ids,
                    "us": round(total, 2),
                    "kernel_us": round(kernel, 2),
                    "python_us": round(total - kernel, 2),
                }
            )
    return found


def _miss(path: Path, rng: np.random.Generator) -> dict[str, float]:
    with bandana_kv.open(path, ROWS * DIM * 4 // 20, policy=PLAIN) as store:
        table = store._tables["t"]
        for _ in range(8):  # the cache is full from here on
            store.multi_get("t", rng.integers(0, ROWS, 8192))
        asked = rng.integers(0, ROWS, (TURNS * CALLS, 1))
        before = store.stats()["t"]["block_reads"]
        total = _us(lambda k: store.multi_get("t", asked[k]))
        missed = (store.stats()["t"]["block_reads"] - before) / len(asked)
        out = np.empty((1, DIM * 4), np.uint8)
        scratch = np.zeros(words.HEAD + words.WORDS_OF_ID, np.int64)
        places = table.words.ctypes.data, scratch.ctypes.data

        def look_up(k: int) -> None:
            one_call.ask_few(*places, asked[k], out, 0, 0)

        looked = _us(look_up)
        abandon(table.flights, scratch)
        handle = os.open(next(path.rglob("*.blocks")), os.O_RDONLY)
        count = os.fstat(handle).st_size // 4096
        drawn = rng.integers(0, count, TURNS * CALLS).tolist()
        read = _us(lambda k: os.pread(handle, 4096, 4096 * drawn[k]))
        os.close(handle)
        stored = table.stored
        numbers = np.arange(256)
        payloads = stored.adapter.multi_get(stored.keys(numbers))
        verified = _us(
            lambda _: blocks.bad_blocks(
                payloads,
                stored.space,
                numbers,
                stored.rows,
                stored.copies,
                stored.rows_per_block,
                stored.row_bytes,
            ),
            50,
        )
        verified /= 256
    rest = total - looked - missed * (read + verified)
    return {
        "us": round(total, 2),
        "blocks_per_request": round(missed, 3),
        "look_up_us": round(looked, 2),
        "read_us": round(read, 2),
        "verify_us": round(verified, 2),
        "rest_us": round(rest, 2),
    }


def _engine(work: Path, name: str, rows: Any, rng: np.random.Generator) -> dict[str, Any]:
    path = work / name
    bandana_kv.load(path, {"t": rows}, adapter=name, placement="shuffled")
    found: dict[str, Any] = {"adapter": name}
    with bandana_kv.open(path, ROWS * DIM * 4 // 20, policy=PLAIN) as store:
        for _ in range(8):
            store.multi_get("t", rng.integers(0, ROWS, 8192))
        asked = rng.integers(0, ROWS, (TURNS * COLD_CALLS, 1))
        before = store.stats()["t"]["block_reads"]
        found["us"], found["cpu_us"] = _cold(path, lambda k: store.multi_get("t", asked[k]))
        missed = (store.stats()["t"]["block_reads"] - before) / len(asked)
        found["blocks_per_request"] = round(missed, 3)
    with bandana_kv.open(path, 0) as store:
        read_one = reads_of(path, name, store, rng, TURNS * COLD_CALLS)
        found["floor_us"], found["floor_cpu_us"] = _cold(path, read_one)
    shutil.rmtree(path)
    return found


def _cold(path: Path, call: Callable[[int], object]) -> tuple[float, float]:
    """Return wall and processor time of a call, the median of turns that begin cold."""
    walls, cpus = [], []
    for turn in range(TURNS):
        drop_page_cache(path)
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(turn * COLD_CALLS, (turn + 1) * COLD_CALLS):
            call(number)
        walls.append(1e6 * (time.perf_counter() - wall) / COLD_CALLS)
        cpus.append(1e6 * (time.process_time() - cpu) / COLD_CALLS)
    return round(statistics.median(walls), 1), round(statistics.median(cpus), 1)


if __name__ == "__main__":
    main()
