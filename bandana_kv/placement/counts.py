"""What many methods count."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.logs.requests import RequestLog

__all__ = ["lookups_of_id", "positions_of_order"]

_CHUNK = 1 << 24


def positions_of_order(order: NDArray[Any]) -> NDArray[np.uint32]:
    """Return position_of_id, uint32 (rows,), for ids listed in the order of their positions."""
    position_of_id = np.empty(order.size, np.uint32)
    position_of_id[order] = np.arange(order.size, dtype=np.uint32)
    return position_of_id


def lookups_of_id(log: RequestLog, rows: int) -> NDArray[np.int64]:
    """Return how often the log looks each id up, int64 (rows,); repeats in a request count."""
    lookups = np.zeros(rows, np.int64)
    for begin in range(0, len(log.ids), _CHUNK):
        lookups += np.bincount(log.ids[begin : begin + _CHUNK], minlength=rows)
    return lookups
