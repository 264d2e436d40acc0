"""Where the time of one request goes: from DRAM, from blocks, and over many tables.

    python bench/request_path.py --dir DIR --json

hit
    A table of which every row is cached, against fancy indexing of an ``np.load(...,
    mmap_mode="r")`` of the same rows, all in the page cache. Ids are drawn at random; both answer
    into new arrays. `us` is the time of one request as its caller sees it, the median of several
    turns that systems take; `ratio` is memmap's over ours.
miss
    Uniformly random rows of a table 20 times the cache, blocks cold: what the system has in its
    page cache is dropped whenever half of the blocks were read. `cpu_us_per_request` is
    processor time of the process, kernel included; `cpu_us_per_block` the part of it that is not
    that of a request of one block, over the further blocks. `floor_us_per_block` is the
    processor time of reading the same blocks with nothing around it: ``os.preadv`` for the block
    file, the binding's own calls for the engines. `fio_iops` is what fio reads at depth 8.
tables
    26 tables, 8 ids each, asked at once, cold, against one of them. `p50_us_of_reads` is what the
    engine takes for as many blocks, 208 and 8, with nothing around it.
codecs
    Rows that are all cached, stored by each codec and answered as float32: `ratio` is rows a
    second over those of a table of float32, asked in turns with it.
keys
    The same rows in two tables, all cached, one of them asked by hashed keys, uint64: `us_by_key`
    and `us_by_id` of a request for the same rows, asked in turns; `ratio` is by key over by id.
pooled
    ``embedding_bag`` of rows that are all cached, ten ids a bag, float32 and ``int8-rowwise``:
    `us` is the time of one request, `us_multi_get_then_pool` that of ``multi_get`` and of adding
    its rows with ``np.add.reduceat``.
"""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings
from numpy.typing import NDArray

import bandana_kv
from bandana_kv import Rows
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.codecs import codec_names
from bandana_kv.device.engine import Shape
from bandana_kv.device.fio import Fio
from bandana_kv.device.page_cache import drop_page_cache
from bandana_kv.device.workfile import work_file
from bandana_kv.progress import Progress

ROW_BYTES, DIM = 128, 32
HIT_ROWS, MISS_ROWS = 400_000, 1_000_000
IDS, THREADS = (1, 10, 34, 200), (1, 2, 8)
CODEC_IDS = (34, 200, 1024, 16_384)
KEY_IDS = 1024
POOLED_IDS, IDS_A_BAG = (10, 200, 1000, 10_000), 10
TURNS, TURN_S, MISS_S = 5, 0.15, 2.0
ROWS_PER_BLOCK = 31
TABLES, IDS_EACH, TABLE_ROWS = 26, 8, 20_000
FIO_BYTES, FIO_MILLISECONDS = 1 << 30, 2000
PLAIN = Policy("tinylfu", Admission("none"))


@click.command()
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path))
@click.option("--adapters", default="blockfile,lmdb,rocksdb", show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(directory: Path, adapters: str, _json: bool, keep: bool, seed: int) -> None:
    work = directory / "request-path"
    work.mkdir(parents=True)
    try:
        rng = np.random.default_rng(seed)
        result: dict[str, Any] = {"hit": _hits(work, rng), "miss": [], "fio_iops_depth_8": None}
        rows = rng.random((MISS_ROWS, DIM), np.float32)
        for adapter in adapters.split(","):
            path = work / adapter
            bandana_kv.load(path, {"t": rows}, adapter=adapter, placement="shuffled")
            if adapter == "blockfile":
                result["fio_iops_depth_8"] = _fio(work)
            result["miss"] += _misses(path, adapter, rng)
            shutil.rmtree(path)
        result["tables"] = _tables(work, rng)
        result["codecs"] = _codecs(work, rng)
        result["keys"] = _keys(work, rng)
        result["pooled"] = _pooled(work, rng)
        result["surroundings"] = surroundings(seed)
        report(result, "request-path" if keep else None)
    finally:
        shutil.rmtree(work)


def _together(threads: int, work: Callable[[int], int]) -> tuple[float, float, int]:
    """Run `work` in threads; return wall and process seconds, and what they counted."""
    counted = [0] * threads
    start, end = threading.Barrier(threads + 1), threading.Barrier(threads + 1)

    def run(number: int) -> None:
        start.wait()
        counted[number] = work(number)
        end.wait()

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    start.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    end.wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for thread in running:
        thread.join()
    return wall, cpu, sum(counted)


def _for_seconds(
    seconds: float, requests: NDArray[np.int64], ask: Callable[[NDArray[np.int64]], object]
) -> int:
    done, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        for _ in range(8):
            ask(requests[done % len(requests)])
            done += 1
    return done


def _each(requests: Iterable[Any], ask: Callable[[Any], object]) -> int:
    done = 0
    for one in requests:
        ask(one)
        done += 1
    return done


# -- hits ---------------------------------------------------------------------------------


def _hits(work: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = rng.random((HIT_ROWS, DIM), np.float32)
    np.save(work / "rows.npy", rows)
    mapped = np.load(work / "rows.npy", mmap_mode="r")
    assert np.asarray(mapped).sum() > 0  # all in the page cache
    bandana_kv.load(work / "hits", {"t": rows}, adapter="blockfile", placement="shuffled")
    found = []
    with bandana_kv.open(work / "hits", 2 * rows.nbytes, policy=PLAIN) as store:
        for first in range(0, HIT_ROWS, 16_384):
            store.multi_get("t", np.arange(first, min(HIT_ROWS, first + 16_384)))
        before = store.stats()["t"]["block_reads"]
        for ids in IDS:
            for threads in THREADS:
                requests = rng.integers(0, HIT_ROWS, (threads, max(64, 65_536 // ids), ids))
                asks = {
                    "ours": lambda one: store.multi_get("t", one),
                    "memmap": lambda one: mapped[one],
                }
                found.append(_hit(ids, threads, requests, asks))
        assert store.stats()["t"]["block_reads"] == before, "a lookup missed"
    shutil.rmtree(work / "hits")
    return found


def _codecs(work: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = rng.random((HIT_ROWS, DIM), np.float32)
    names = [name for name in codec_names() if name != "float32"]
    tables = dict.fromkeys(["float32", *names], rows)
    forms = {name: name for name in tables}
    path = work / "codecs"
    bandana_kv.load(path, tables, adapter="blockfile", placement="shuffled", store_as=forms)
    found = []
    with bandana_kv.open(path, 2 * rows.nbytes * len(tables), policy=PLAIN) as store:
        for name in tables:
            for first in range(0, HIT_ROWS, 16_384):
                store.multi_get(name, np.arange(first, min(HIT_ROWS, first + 16_384)))
        for ids in CODEC_IDS:
            requests = rng.integers(0, HIT_ROWS, (max(64, 65_536 // ids), ids))
            rates: dict[str, list[float]] = {name: [] for name in tables}
            for _ in range(TURNS):
                for name in tables:
                    ask = partial(store.multi_get, name)
                    begun = time.perf_counter()
                    done = _for_seconds(TURN_S, requests, ask)
                    rates[name].append(done * ids / (time.perf_counter() - begun))
            per_second = {name: statistics.median(each) for name, each in rates.items()}
            found += [
                {
                    "codec": name,
                    "ids": ids,
                    "rows_per_second": round(per_second[name]),
                    "ratio": round(per_second[name] / per_second["float32"], 3),
                }
                for name in tables
            ]
    shutil.rmtree(path)
    return found


def _keys(work: Path, rng: np.random.Generator) -> dict[str, Any]:
    rows = rng.random((HIT_ROWS, DIM), np.float32)
    keys = rng.permutation(np.unique(rng.integers(0, 1 << 63, 2 * HIT_ROWS, np.uint64)))[:HIT_ROWS]
    path = work / "keys"
    tables = {"id": rows, "key": Rows(rows, keys=keys)}
    bandana_kv.load(path, tables, adapter="blockfile", placement="shuffled")
    requests = rng.integers(0, HIT_ROWS, (64, KEY_IDS))
    asked = {"id": requests, "key": keys[requests]}
    us: dict[str, list[float]] = {name: [] for name in tables}
    with bandana_kv.open(path, 2 * rows.nbytes * len(tables), policy=PLAIN) as store:
        for first in range(0, HIT_ROWS, 16_384):
            part = np.arange(first, min(HIT_ROWS, first + 16_384))
            assert np.array_equal(store.multi_get("id", part), store.multi_get("key", keys[part]))
        before = {name: store.stats()[name]["block_reads"] for name in tables}
        for _ in range(TURNS):
            for name in tables:
                begun = time.perf_counter()
                done = _for_seconds(TURN_S, asked[name], partial(store.multi_get, name))
                us[name].append(1e6 * (time.perf_counter() - begun) / done)
        after = {name: store.stats()[name]["block_reads"] for name in tables}
        assert after == before, "a lookup missed"
    shutil.rmtree(path)
    by_key, by_id = statistics.median(us["key"]), statistics.median(us["id"])
    return {
        "ids": KEY_IDS,
        "us_by_key": round(by_key, 3),
        "us_by_id": round(by_id, 3),
        "ratio": round(by_key / by_id, 3),
    }


def _pooled(work: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = rng.random((HIT_ROWS, DIM), np.float32)
    path, forms = work / "pooled", {"float32": "float32", "int8-rowwise": "int8-rowwise"}
    tables = dict.fromkeys(forms, rows)
    bandana_kv.load(path, tables, adapter="blockfile", placement="shuffled", store_as=forms)
    found = []
    with bandana_kv.open(path, 4 * rows.nbytes, policy=PLAIN) as store:
        for name in tables:
            for first in range(0, HIT_ROWS, 16_384):
                store.multi_get(name, np.arange(first, min(HIT_ROWS, first + 16_384)))
            for ids in POOLED_IDS:
                requests = rng.integers(0, HIT_ROWS, (1, max(64, 65_536 // ids), ids))
                offsets = np.arange(0, ids, IDS_A_BAG)
                asks = {
                    "ours": lambda one, name=name, offsets=offsets: store.embedding_bag(
                        name, one, offsets, "sum"
                    ),
                    "memmap": lambda one, name=name, offsets=offsets: np.add.reduceat(
                        store.multi_get(name, one), offsets
                    ),
                }
                hit = _hit(ids, 1, requests, asks)
                found.append(
                    {
                        "codec": name,
                        "ids": ids,
                        "bags": offsets.size,
                        "us": hit["us"],
                        "us_multi_get_then_pool": hit["memmap_us"],
                    }
                )
    shutil.rmtree(path)
    return found


def _hit(
    ids: int,
    threads: int,
    requests: NDArray[np.int64],
    asks: dict[str, Callable[[NDArray[np.int64]], object]],
) -> dict[str, Any]:
    us: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(TURNS):
        for name, ask in asks.items():
            wall, _, done = _together(
                threads, lambda k, ask=ask: _for_seconds(TURN_S, requests[k], ask)
            )
            # What one request costs the machine's callers, however many there are.
            us[name].append(1e6 * wall / done)
    ours, memmap = statistics.median(us["ours"]), statistics.median(us["memmap"])
    return {
        "ids": ids,
        "threads": threads,
        "us": round(ours, 3),
        "memmap_us": round(memmap, 3),
        "ratio": round(memmap / ours, 3),
    }


# -- misses -------------------------------------------------------------------------------


def _fio(directory: Path) -> int:
    with work_file(directory, FIO_BYTES, Progress()) as file:
        fio = Fio.that_works(file)
        shape = [Shape(4096, 8, 1)]
        return round(fio.measure(file, "randread", shape, FIO_MILLISECONDS)[0].per_second)


def _misses(path: Path, adapter: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    floor = _floor(path, adapter)
    for ids in IDS:
        for threads in THREADS:
            drop_page_cache(path)
            with bandana_kv.open(path, MISS_ROWS * ROW_BYTES // 20, policy=PLAIN) as store:
                for _ in range(8):  # the cache is full from here on
                    store.multi_get("t", rng.integers(0, MISS_ROWS, 8192))
                # Half of the blocks at a time: else the page cache would answer for the engines
                # that read by way of it.
                most = max(4, MISS_ROWS // ROWS_PER_BLOCK // 2 // ids // threads)
                before = store.stats()["t"]["block_reads"]
                wall, cpu, done = 0.0, 0.0, 0
                while wall < MISS_S:
                    drop_page_cache(path)
                    requests = rng.integers(0, MISS_ROWS, (threads, most, ids))
                    took, used, asked = _together(
                        threads,
                        lambda k, requests=requests: _each(
                            requests[k], lambda one: store.multi_get("t", one)
                        ),
                    )
                    wall, cpu, done = wall + took, cpu + used, done + asked
                blocks = (store.stats()["t"]["block_reads"] - before) / done
                found.append(
                    {
                        "adapter": adapter,
                        "ids": ids,
                        "threads": threads,
                        "requests_per_second": round(done / wall),
                        "blocks_per_second": round(done * blocks / wall),
                        "cpu_us_per_request": round(1e6 * cpu / done, 1),
                        "blocks_per_request": round(blocks, 3),
                        "floor_us_per_block": floor[threads],
                    }
                )
    for each in found:
        one = next(
            other for other in found if other["ids"] == 1 and other["threads"] == each["threads"]
        )
        further = each["blocks_per_request"] - one["blocks_per_request"]
        over = each["cpu_us_per_request"] - one["cpu_us_per_request"]
        each["cpu_us_per_block"] = round(over / further, 2) if further > 0.5 else None
    return found


def _floor(path: Path, adapter: str) -> dict[int, float]:
    """Return the processor time of an empty loop over an engine's own reads, by threads."""
    found = {}
    for threads in THREADS:
        with bandana_kv.open(path, 0) as store:
            each = MISS_ROWS // ROWS_PER_BLOCK // 2 // threads
            wall, cpu, done = 0.0, 0.0, 0
            while wall < MISS_S / 2:
                drop_page_cache(path)
                reads = [
                    reads_of(path, adapter, store, np.random.default_rng(k), each)
                    for k in range(threads)
                ]
                took, used, asked = _together(
                    threads, lambda k, reads=reads, each=each: _each(range(each), reads[k])
                )
                wall, cpu, done = wall + took, cpu + used, done + asked
        found[threads] = round(1e6 * cpu / done, 1)
    return found


def reads_of(
    path: Path,
    adapter: str,
    store: bandana_kv.EmbeddingStore,
    rng: np.random.Generator,
    calls: int,
) -> Callable[[int], object]:
    """Return what reads the block of its k-th call, one of `calls`, with nothing around it."""
    stored = store._tables["t"].stored
    drawn = rng.integers(0, -(-stored.rows // stored.rows_per_block), calls)
    if adapter == "blockfile":
        handle = os.open(next(path.rglob("*.blocks")), os.O_RDONLY | os.O_DIRECT)
        weakref.finalize(store, os.close, handle)
        memory, offsets = [mmap.mmap(-1, 4096)], (4096 * drawn).tolist()
        return lambda k: os.preadv(handle, memory, offsets[k])
    keys = stored.keys(drawn).reshape(-1, 1)
    return lambda k: stored.adapter.multi_get(keys[k])


# -- many tables --------------------------------------------------------------------------


def _tables(work: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    names = [f"t{number:02}" for number in range(TABLES)]
    rows = {name: rng.random((TABLE_ROWS, DIM), np.float32) for name in names}
    bandana_kv.load(work / "tables", rows, adapter="blockfile", placement="shuffled")
    waits: dict[int, list[float]] = {1: [], TABLES: []}
    cpu: dict[int, float] = {1: 0.0, TABLES: 0.0}
    with bandana_kv.open(work / "tables", TABLES * TABLE_ROWS, policy=PLAIN) as store:
        batches = {1: store.batch(names[:1]), TABLES: store.batch(names)}
        for turn in range(400):
            for tables, batch in batches.items():
                ids = rng.integers(0, TABLE_ROWS, tables * IDS_EACH)
                offsets = np.arange(tables + 1) * IDS_EACH
                begun, used = time.perf_counter(), time.process_time()
                batch.multi_get(ids, offsets)
                if turn >= 50:
                    waits[tables].append(time.perf_counter() - begun)
                    cpu[tables] += time.process_time() - used
        floor = _reads_together(store)
    one, many = statistics.median(waits[1]), statistics.median(waits[TABLES])
    return [
        {
            "tables": TABLES,
            "ids_each": IDS_EACH,
            "p50_us": round(1e6 * many, 1),
            "p50_us_one_table": round(1e6 * one, 1),
            "ratio": round(many / one, 2),
            "cpu_us": round(1e6 * cpu[TABLES] / len(waits[TABLES]), 1),
            "cpu_us_one_table": round(1e6 * cpu[1] / len(waits[1]), 1),
            "p50_us_of_reads": floor[TABLES],
            "p50_us_of_reads_one_table": floor[1],
        }
    ]


def _reads_together(store: bandana_kv.EmbeddingStore) -> dict[int, float]:
    """Return what the engine takes for as many blocks by themselves: what bounds the above."""
    stored = store._tables["t00"].stored
    rng, found = np.random.default_rng(0), {}
    for tables in (1, TABLES):
        waits = []
        for _ in range(200):
            keys = stored.keys(rng.integers(0, TABLE_ROWS // ROWS_PER_BLOCK, tables * IDS_EACH))
            begun = time.perf_counter()
            stored.adapter.multi_get(keys)
            waits.append(time.perf_counter() - begun)
        found[tables] = round(1e6 * statistics.median(waits), 1)
    return found


if __name__ == "__main__":
    main()
