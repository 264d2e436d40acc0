"""What users would run instead: small readers of a table by row, each at its best settings.

All share one shape. A system builds its files from a ``.npy`` once; in the process that serves,
`open` gives a reader, and ``reader.read(ids, out)`` fills `out` with the rows of `ids`, from any
number of threads. `VARIANTS` are the settings that are worth trying: which is best depends on
device and log, so the bench tries them and keeps the best. In all of them `width` is how many
threads of a shared pool one request is split over (0: the caller reads by itself).
"""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIRECT", "NAMES", "Reader", "Splitting", "module"]

NAMES = {
    "memmap": "competitors.memmap",
    "rocksdict_rows": "competitors.rocksdict_rows",
    "lmdb_rows": "competitors.lmdb_rows",
    "lance": "competitors.lance_take",
}
DIRECT = ("rocksdict_rows",)
"""Systems that read past the page cache."""
_LEAST_IDS = 4


class Reader(Protocol):
    """An open table; `private_bytes` is DRAM that it takes for caching on its own account."""

    private_bytes: int

    def read(self, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None: ...

    def close(self) -> None: ...


def module(name: str) -> Any:
    """Return the module of a system: build(rows, path), open(path, cache_bytes, ...), VARIANTS."""
    return importlib.import_module(NAMES[name])


class Splitting:
    """Splits each request over a pool's threads."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._pool = ThreadPoolExecutor(width) if width else None
        self.private_bytes = 0

    def read(self, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None:
        parts = min(self._width, ids.size // _LEAST_IDS)
        if self._pool is None or parts < 2:
            self.read_part(ids, out)
            return
        edges = list(pairwise(ids.size * part // parts for part in range(parts + 1)))
        others = [self._pool.submit(self.read_part, ids[a:b], out[a:b]) for a, b in edges[1:]]
        self.read_part(ids[: edges[0][1]], out[: edges[0][1]])
        for other in others:
            other.result()

    def read_part(self, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def chunks(rows: Path, count: int = 65_536) -> Any:
    """Yield first id and rows of a ``.npy`` file, some MiB at a time."""
    table = np.load(rows, mmap_mode="r")
    for first in range(0, table.shape[0], count):
        yield first, np.array(table[first : first + count])
