"""Which slot holds a position: an open-addressing table over one array.

Linear probing, deletion by backward shift, so that the index costs DRAM by what is
cached, not by what exists. Where there is a bucket for every position, each is at home in
its own and nothing is probed: so it is in simulations, whose memory is nobody's budget,
and with very large caches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.addresses import prefetch
from bandana_kv.kernels.compile import inlined, signed

__all__ = ["NOWHERE", "bucket_count", "expect", "find", "index", "make_buckets", "unindex"]

NOWHERE = -1
_BUCKETS_PER_SLOT = 1.6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def bucket_count(capacity_rows: int, rows: int) -> int:
    """Return how many buckets serve `capacity_rows` slots of a table of `rows` rows."""
    return min(rows, int(_BUCKETS_PER_SLOT * capacity_rows) + 1)


def make_buckets(capacity_rows: int, rows: int, *, frugal: bool) -> NDArray[np.uint64]:
    """Return empty buckets: uint64, ``position << 32 | slot + 1``; 0 is empty.

    Not frugal: one for each of `rows`, for speed.
    """
    return np.zeros(bucket_count(capacity_rows, rows) if frugal else rows, np.uint64)


@inlined
def _home(buckets: np.ndarray, direct: int, position: int) -> int:
    if direct:
        return position
    scattered = (np.uint64(position) * _GOLDEN) >> np.uint64(32)
    return signed((scattered * np.uint64(buckets.size)) >> np.uint64(32))


@inlined
def expect(buckets: np.ndarray, direct: int, position: int) -> None:
    """Have the bucket ready where :func:`find` will look for `position`."""
    prefetch(buckets.ctypes.data + 8 * _home(buckets, direct, position))


@inlined
def find(buckets: np.ndarray, direct: int, position: int) -> int:
    """Return the slot that holds `position`, or -1.

    Parameters
    ----------
    buckets
        uint64, as :func:`make_buckets` makes them.
    direct
        1 where every position of the table has its own bucket, else 0.
    position
        What to look for.
    """
    at = _home(buckets, direct, position)
    while True:
        entry = buckets[at]
        if entry == np.uint64(0):
            return NOWHERE
        if entry >> np.uint64(32) == np.uint64(position):
            return signed(entry & np.uint64(0xFFFFFFFF)) - 1
        at += 1
        if at == buckets.size:
            at = 0


@inlined
def index(buckets: np.ndarray, direct: int, position: int, slot: int) -> None:
    """Note that `slot` holds `position`, which no slot does yet."""
    at = _home(buckets, direct, position)
    while buckets[at] != np.uint64(0):
        at += 1
        if at == buckets.size:
            at = 0
    buckets[at] = (np.uint64(position) << np.uint64(32)) | np.uint64(slot + 1)


@inlined
def unindex(buckets: np.ndarray, direct: int, position: int) -> None:
    """Forget `position` and close the gap, so that no tombstone slows later searches."""
    size = buckets.size
    gap = _home(buckets, direct, position)
    while buckets[gap] >> np.uint64(32) != np.uint64(position):
        gap = gap + 1 if gap + 1 < size else 0
    at = gap
    while not direct:
        at = at + 1 if at + 1 < size else 0
        entry = buckets[at]
        if entry == np.uint64(0):
            break
        home = _home(buckets, direct, signed(entry >> np.uint64(32)))
        from_home = at - home if at >= home else at - home + size
        from_gap = at - gap if at >= gap else at - gap + size
        # The entry may fall back into the gap only if its home is not after the gap.
        if from_home >= from_gap:
            buckets[gap] = entry
            gap = at
    buckets[gap] = np.uint64(0)
