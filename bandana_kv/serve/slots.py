"""Rows that enter a cache without a request: those that another table had in DRAM."""

from __future__ import annotations

import numpy as np

from bandana_kv.cache.request import admit
from bandana_kv.kernels.compile import kernel
from bandana_kv.kernels.search import index_in
from bandana_kv.serve.words import COUNTERS_KEPT, DATA, ROW_BYTES, copy, layout_of, state_of

__all__ = ["admit_rows"]


@kernel
def admit_rows(table: np.ndarray, asked: np.ndarray, ordered: np.ndarray, rows: np.ndarray) -> None:
    """Let rows into the cache, which is locked; nothing is counted.

    Parameters
    ----------
    table
        As :class:`bandana_kv.serve.words.TableWords` has it.
    asked, ordered
        int64 (n,): distinct positions, as they are to enter, and sorted.
    rows
        uint8 (n, row_bytes), those of `ordered`.
    """
    row_bytes = table[ROW_BYTES]
    fills = np.empty((asked.size, 2), np.int64)
    counters = np.zeros(COUNTERS_KEPT, np.int64)
    no_blocks = ordered[:0]
    filled = admit(
        state_of(table), layout_of(table), asked, ordered, ordered, no_blocks, fills, counters
    )
    for i in range(filled):
        at = index_in(ordered, fills[i, 1])
        copy(rows.ctypes.data + at * row_bytes, table[DATA] + fills[i, 0] * row_bytes, row_bytes)
