"""A log by blocks: when each block is touched, and which of its rows are used then."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.placement import Placement
from bandana_kv.kernels.compile import kernel, signed
from bandana_kv.kernels.views import readable
from bandana_kv.logs.requests import RequestLog, validated_log

__all__ = ["NEVER", "Uses", "even_parts", "uses_of"]

NEVER = np.iinfo(np.int64).max


class Uses(NamedTuple):
    """A log by blocks: each block's accesses in order of time, and the rows they use.

    An access is a step at which a block is touched. Steps are requests, except that all
    requests that warm the cache are the one step 0.

    Attributes
    ----------
    first : int64 (blocks + 1,)
        Each block's first access.
    step : int32 (accesses,)
        When the access takes place.
    start : int64 (accesses + 1,)
        The first use of each access; a row that a step looks up twice is one use.
    row : int32 (uses,)
        The row within its block.
    due : int64 (uses,)
        The access that uses the row next, counted from its block's first; or never.
    """

    first: NDArray[np.int64]
    step: NDArray[np.int32]
    start: NDArray[np.int64]
    row: NDArray[np.int32]
    due: NDArray[np.int64]


@kernel
def _count(
    offsets: np.ndarray,
    ids: np.ndarray,
    position_of_id: np.ndarray,
    rows_per_block: int,
    last_warm: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return, as int64 (blocks + 1,), the accesses and the uses of all blocks before each."""
    blocks = (position_of_id.size + rows_per_block - 1) // rows_per_block
    accesses = np.zeros(blocks + 1, np.int64)
    uses = np.zeros(blocks + 1, np.int64)
    touched = np.full(blocks, -1, np.int32)
    used = np.full(position_of_id.size, -1, np.int32)
    for request in range(offsets.size - 1):
        step = max(request - last_warm, 0)
        for at in range(offsets[request], offsets[request + 1]):
            position = signed(position_of_id[ids[at]])
            block = position // rows_per_block
            accesses[block + 1] += touched[block] != step
            uses[block + 1] += used[position] != step
            touched[block] = step
            used[position] = step
    return np.cumsum(accesses), np.cumsum(uses)


@kernel
def _fill(
    offsets: np.ndarray,
    ids: np.ndarray,
    position_of_id: np.ndarray,
    rows_per_block: int,
    last_warm: int,
    first: np.ndarray,
    next_use: np.ndarray,
    uses: Uses,
) -> None:
    """Write `uses`, of which `first` is known; `next_use` is each block's first one."""
    _, step_of, start, row, due = uses
    next_access = first.copy()
    last_use = np.full(position_of_id.size, -1, np.int64)
    for request in range(offsets.size - 1):
        step = max(request - last_warm, 0)
        for at in range(offsets[request], offsets[request + 1]):
            position = signed(position_of_id[ids[at]])
            block = position // rows_per_block
            access = next_access[block] - 1
            if access < first[block] or step_of[access] != step:
                access += 1
                next_access[block] += 1
                step_of[access] = step
                start[access] = next_use[block]
            last = last_use[position]
            if last < start[access]:
                if last >= 0:
                    due[last] = access - first[block]
                last_use[position] = next_use[block]
                row[next_use[block]] = position % rows_per_block
                next_use[block] += 1


def uses_of(log: RequestLog, placement: Placement, warm_requests: int) -> Uses:
    """Return the log by blocks. Cost: two passes; 24 bytes a use at most, 12 a row meanwhile."""
    offsets, ids = validated_log(log, placement.rows)
    where = (readable(placement.position_of_id), placement.rows_per_block)
    last_warm = max(warm_requests - 1, 0)
    first, next_use = _count(offsets, ids, *where, last_warm)
    accesses, total = int(first[-1]), int(next_use[-1])
    uses = Uses(
        first,
        np.empty(accesses, np.int32),
        np.full(accesses + 1, total, np.int64),
        np.empty(total, np.int32),
        np.full(total, NEVER, np.int64),
    )
    _fill(offsets, ids, *where, last_warm, first, next_use, uses)
    return uses


def even_parts(uses: Uses, parts: int) -> list[int]:
    """Return blocks at which to cut, so that each part has about as many uses."""
    before = uses.start[uses.first]
    cuts = np.searchsorted(before[:-1], np.linspace(0, uses.row.size, parts + 1)[1:-1])
    return [0, *cuts.tolist(), before.size - 1]
