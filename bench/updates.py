"""Bytes that updates of rows write, against rewriting a block for each.

    python bench/updates.py --dir DIR --json [--gib 1] [--stream 1000000] [--adapter blockfile]

batch
    1 % of the rows of a table of --gib GiB, drawn at random, in one call, then a flush.
    `over_touched_blocks` is all bytes written, journal and blocks, over those of the
    blocks that hold the rows.
stream
    Updates of single rows, drawn by Zipf's law with exponent 1.1, ranks dealt out at random, by
    --threads threads, to a child process that is killed with SIGKILL near the end. The store
    then is opened anew, and every update that was acknowledged looked up (`lost_updates`).
    `times_less` compares with rewriting one block for each; the flush at the end counts.

Bytes are those handed to the engine and to the journal.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings

import bandana_kv
from bandana_kv.cache.policy import Policy

ROW_BYTES, DIM = 128, 32
EXPONENT = 1.1


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--gib", default=1.0, show_default=True)
@click.option("--stream", default=1_000_000, show_default=True, help="Updates of single rows.")
@click.option("--threads", default=16, show_default=True, help="That update.")
@click.option("--adapter", default="blockfile", show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(
    directory: Path,
    gib: float,
    stream: int,
    threads: int,
    adapter: str,
    _json: bool,
    keep: bool,
    seed: int,
) -> None:
    rows = int(gib * (1 << 30)) // ROW_BYTES
    work = directory / f"updates-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        table = np.lib.format.open_memmap(work / "rows.npy", "w+", np.float32, (rows, DIM))
        table.flush()
        del table
        bandana_kv.load(
            work / "s",
            {"t": work / "rows.npy"},
            adapter=adapter,
            placement="shuffled",
            policy=Policy(),
        )
        result = {
            "bench": "updates",
            "adapter": adapter,
            "rows": rows,
            "row_bytes": ROW_BYTES,
            "batch": _batch(work / "s", rows, seed),
            "stream": _stream(work / "s", rows, stream, threads, seed),
            "surroundings": surroundings(seed),
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(result, f"updates-{adapter}" if keep else None)


def _written(store: bandana_kv.EmbeddingStore) -> dict[str, int]:
    updates = store._current.updating()
    return {"journal_bytes": updates.journal_bytes, "block_bytes": updates.block_bytes}


def _batch(path: Path, rows: int, seed: int) -> dict[str, Any]:
    ids = np.random.default_rng(seed).choice(rows, rows // 100, replace=False)
    with bandana_kv.open(path, 0) as store:
        served = store._current.serving.tables["t"]
        positions = served.positions_of(0, rows)[ids]
        touched = np.unique(positions // served.stored.rows_per_block).size
        begun = time.perf_counter()
        store.update("t", ids, np.ones((ids.size, DIM), np.float32))
        acknowledged = time.perf_counter()
        store.flush()
        done = time.perf_counter()
        written = _written(store)
        touched_bytes = touched * served.stored.adapter.payload_bytes
        return {
            "updated_rows": ids.size,
            "touched_blocks": touched,
            "touched_bytes": touched_bytes,
            **written,
            "over_touched_blocks": round(sum(written.values()) / touched_bytes, 4),
            "update_seconds": round(acknowledged - begun, 2),
            "flush_seconds": round(done - acknowledged, 2),
        }


def _stream(path: Path, rows: int, count: int, threads: int, seed: int) -> dict[str, Any]:
    """Update in a child, kill it, and see what is there."""
    ids = _zipf(rows, count, seed)
    counts = path.parent / "acknowledged.bin"
    shared = np.memmap(counts, np.int64, "w+", shape=(threads + 3,))
    begun = time.perf_counter()
    child = os.fork()
    if not child:
        _update_stream(path, ids, threads, shared)
    while shared[:threads].sum() < count - 1000 and os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.01)
    seconds = time.perf_counter() - begun
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with bandana_kv.open(path, 64 << 20) as store:
        lost = _lost(store, ids, shared[:threads].tolist(), threads)
        written = int(shared[threads]) + int(shared[threads + 1])
        payload_bytes = store._current.serving.tables["t"].stored.adapter.payload_bytes
        store.flush()
        written += _written(store)["block_bytes"]
        assert not _lost(store, ids, shared[:threads].tolist(), threads)
    made = int(shared[:threads].sum())
    return {
        "acknowledged": made,
        "distinct_rows": int(np.unique(ids).size),
        "written_bytes": written,
        "block_at_a_time_bytes": made * payload_bytes,
        "times_less": round(made * payload_bytes / written, 2),
        "lost_updates": lost,
        "updates_per_second": round(made / seconds),
    }


def _zipf(rows: int, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -EXPONENT
    edges = np.cumsum(weights)
    ranks = np.searchsorted(edges, rng.random(count) * edges[-1])
    return rng.permutation(rows)[np.minimum(ranks, rows - 1)]


def _update_stream(path: Path, ids: np.ndarray, threads: int, shared: np.ndarray) -> None:
    """Update row after row until killed; each thread has rows of its own, so that order counts."""
    with bandana_kv.open(path, 64 << 20) as store:

        def update(thread: int) -> None:
            mine = np.flatnonzero(ids % threads == thread)
            for at in mine.tolist():
                store.update("t", ids[at : at + 1], np.full((1, DIM), at + 2, np.float32))
                shared[thread] += 1
                if not at % 64:
                    written = _written(store)
                    shared[threads : threads + 2] = list(written.values())

        workers = [threading.Thread(target=update, args=(one,)) for one in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        shared[threads : threads + 2] = list(_written(store).values())
        while True:
            time.sleep(1)


def _lost(
    store: bandana_kv.EmbeddingStore, ids: np.ndarray, acknowledged: list[int], threads: int
) -> int:
    """Return how many rows are older than what was acknowledged of them."""
    least = np.zeros(int(ids.max()) + 1)
    for thread, count in enumerate(acknowledged):
        mine = np.flatnonzero(ids % threads == thread)[:count]
        least[ids[mine]] = mine + 2  # later ones overwrite earlier ones
    updated = np.unique(ids)
    found = store.multi_get("t", updated)
    assert (found == found[:, :1]).all()
    return int((found[:, 0] < least[updated]).sum())


if __name__ == "__main__":
    main()
