"""Lookups with rows: what a cache decides about slots, done to the rows in them."""

from __future__ import annotations

import numpy as np

from bandana_kv.cache.request import admit
from bandana_kv.cache.state import CacheState
from bandana_kv.disk.blocks import HEADER_BYTES
from bandana_kv.kernels.compile import copy_bytes, kernel
from bandana_kv.kernels.layout import Layout

__all__ = ["admit_rows"]


@kernel
def admit_rows(
    state: CacheState,
    data: np.ndarray,
    layout: Layout,
    asked: np.ndarray,
    ordered: np.ndarray,
    places: np.ndarray,
    read: np.ndarray,
    blocks: np.ndarray,
    payloads: np.ndarray,
    counters: np.ndarray,
) -> None:
    """Let rows of the blocks that were read into the cache."""
    rows_per_block = layout.rows_per_block
    fills = np.empty((read.size * rows_per_block + asked.size, 2), np.int64)
    filled = admit(state, layout, asked, ordered, places, read, fills, counters)
    row_bytes = data.shape[1]
    for i in range(filled):
        slot, place = fills[i, 0], fills[i, 1]
        block = place // rows_per_block
        index = np.searchsorted(blocks, block)
        start = HEADER_BYTES + (place - block * rows_per_block) * row_bytes
        copy_bytes(payloads, index * payloads.shape[1] + start, data, slot * row_bytes, row_bytes)
