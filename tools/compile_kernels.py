"""Compile all kernels that loading and serving need, so that no first request waits for it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.placement import Placement
from bandana_kv.tools.console import errors_named, out

__all__ = ["main"]

_ROWS, _REQUESTS = 2000, 400


@click.command()
@errors_named
def main() -> None:
    """Load and serve a tiny table, which compiles the kernels and keeps them on disk.

    For images and fresh machines; a second run takes a second or two. Compiling needs some
    hundred MiB of memory, which a process that finds the kernels compiled does not.
    """
    rng = np.random.default_rng(0)
    requests = [rng.integers(0, _ROWS, 8).astype(np.int32) for _ in range(_REQUESTS)]
    log = AccessLog.from_requests(requests)
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory) / "rows.npy"
        np.save(rows, rng.random((_ROWS, 32), dtype=np.float32))
        store = Path(directory) / "store"
        # A log read from a file has read-only arrays, which kernels tell from others.
        log.write(Path(directory) / "log.npz")
        read = AccessLog.read(Path(directory) / "log.npz")
        for adapter, copies in (("memory", 0.0), ("lmdb", 0.0), ("blockfile", 0.2)):
            bandana_kv.load(
                store, {"rows": rows}, {"rows": read}, adapter=adapter, replicate=copies
            )
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
                _place_anew(opened, Path(directory) / "placement")
                opened.flush()
    out.print("kernels are compiled")


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
