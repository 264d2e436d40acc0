"""Compile all kernels that loading and serving need, so that no first request waits for it."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path

import click
import numpy as np

import bandana_kv
from bandana_kv import AccessLog, Rows
from bandana_kv.adapters import resp_replies
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.placement import Placement
from bandana_kv.tools.console import errors_named, out

__all__ = ["main"]

_ROWS, _REQUESTS = 2000, 400


@click.command()
@errors_named
def main() -> None:
    """Load and serve a tiny table, which compiles the kernels and keeps them on disk.

    For images and fresh machines: minutes, on two processors; a second run takes seconds.
    Compiling needs some hundred MiB of memory, which a process that finds the kernels compiled
    does not.
    """
    with tempfile.TemporaryDirectory() as directory:
        log = AccessLog.from_requests(np.random.default_rng(0).integers(0, _ROWS, (_REQUESTS, 8)))
        log.write(Path(directory) / "log.npz")
        np.save(Path(directory) / "rows.npy", np.zeros((_ROWS, 32), np.float32))
        spawned = multiprocessing.get_context("spawn")
        halves = [spawned.Process(target=each, args=(directory,)) for each in (_learn, _serve)]
        for half in halves:
            half.start()
        for half in halves:
            half.join()
        # What is still missing, or went wrong there, comes out here.
        _learn(directory)
        _serve(directory)
    out.print("kernels are compiled")


def _learn(directory: str) -> None:
    """Place, plan and load by a log; one read from a file has arrays of other types."""
    log = AccessLog.read(Path(directory) / "log.npz")
    log.select(range(_REQUESTS)).select(range(_REQUESTS))
    for adapter, copies in (("memory", 0.0), ("blockfile", 0.2)):
        store = Path(directory) / f"learnt-{adapter}-{os.getpid()}"
        rows = {"rows": Path(directory) / "rows.npy"}
        bandana_kv.load(store, rows, {"rows": log}, adapter=adapter, replicate=copies)


def _serve(directory: str) -> None:
    """Look up, update, place anew and flush on each kind of engine."""
    requests = AccessLog.read(Path(directory) / "log.npz").ids.reshape(_REQUESTS, 8)
    for adapter in ("memory", "lmdb", "blockfile"):
        store = Path(directory) / f"served-{adapter}-{os.getpid()}"
        rows = {"rows": Path(directory) / "rows.npy"}
        bandana_kv.load(store, rows, adapter=adapter, placement="shuffled")
        # Where hits relink, as under LRU, another kernel looks up.
        for policy in (Policy(), Policy("tinylfu", Admission("online"))):
            with bandana_kv.open(store, cache_bytes=1 << 16, policy=policy) as opened:
                for dtype in (np.int64, np.int32, np.uint32):
                    for request in requests[:20]:
                        opened.multi_get("rows", request.astype(dtype))
                        opened.get("rows", 1)
        with bandana_kv.open(store, cache_bytes=1 << 16) as opened:
            for _ in range(2):
                opened.update("rows", [1, 2], np.zeros((2, 32), np.float32))
                opened.multi_get("rows", requests[0])
            _place_anew(opened, Path(directory) / f"placement-{os.getpid()}")
            opened.flush()
    _ask_by_keys(directory)
    resp_replies.ready()


def _ask_by_keys(directory: str) -> None:
    """Build, ask and read back an index of each width of keys."""
    numbers = np.arange(1, 1 + _ROWS) << 32
    for keys in (numbers, [str(number) for number in numbers]):
        store = Path(directory) / f"keyed-{os.getpid()}"
        rows = Rows(Path(directory) / "rows.npy", keys=keys)
        bandana_kv.load(store, {"rows": rows}, adapter="memory")
        with bandana_kv.open(store, cache_bytes=1 << 16) as opened:
            opened.multi_get("rows", keys[:8])
            opened.multi_get("rows", keys[:200])
            for _ in range(2):
                opened.upsert("rows", keys[:2], np.zeros((2, 32), np.float32))
                opened.delete("rows", keys[2:4])
                opened.multi_get("rows", keys[4:12])
                opened.multi_get("rows", keys[4:200])
            opened.keys("rows")


def _place_anew(opened: bandana_kv.EmbeddingStore, path: Path) -> None:
    """Reverse the order of the rows, by a placement from memory and by one from a file."""
    for _ in range(2):
        served = opened.placement("rows")
        positions = _ROWS - 1 - served.position_of_id
        opened.place_anew("rows", Placement(positions, served.rows_per_block, "reversed"))
        served.save(path)
        opened.place_anew("rows", Placement.load(path))


if __name__ == "__main__":
    main()
