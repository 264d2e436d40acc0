"""What compiled code knows of a table and of a request: words, and the addresses in them.

A table is one array of words, in which the addresses of its arrays stand; so a kernel takes one
argument where it would take thirty. A request is another, its *scratch*, with room for what its
steps tell each other.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.ghosts import Remembered
from bandana_kv.cache.request import COUNTERS
from bandana_kv.cache.state import CacheState
from bandana_kv.disk.block_map import NUMBER_MASK
from bandana_kv.kernels.addresses import (
    add,
    bytes_at,
    enter_lock,
    ints_at,
    lock_alone,
    try_enter_lock,
    try_lock_alone,
    uint32s_at,
    uint64s_at,
    unlock_alone,
    words_at,
)
from bandana_kv.kernels.compile import brief, inlined, kernel, signed
from bandana_kv.kernels.layout import Layout
from bandana_kv.kernels.reads import READ_WORDS

types: Any = numba.types
_memcpy: Any = types.ExternalFunction(
    "memcpy", types.voidptr(types.int64, types.int64, types.int64)
)

# Constants of kernels.

# Words of a table: numbers first, then two words for each array, where it is and its length.
LOCK = 0
(
    ROWS,
    ROW_BYTES,
    PER_BLOCK,
    COPIES,
    SPACE,
    FIRST_KEY,
    RELINKS,
    COALESCE,
    EPOCH,
    UPDATED,
    SERIAL,
    FLIGHTS,
) = range(8, 20)
_ARRAYS = (
    *("rules", "buckets", "held", "marks", "links", "older_half", "ends", "clock", "live"),
    *(f"ghost_{part}" for part in ("buckets", "held", "links", "half", "ends", "free", "counts")),
    *(f"shadow_{part}" for part in ("buckets", "held", "links", "half", "ends", "free", "counts")),
    *("data", "index", "heat", "original_of", "by_position", "counters", "block_map"),
    *("updates_buckets", "updates_data", "waits", "upper_ns"),
)
_FIRST_ARRAY = 20
TABLE_WORDS = _FIRST_ARRAY + 2 * len(_ARRAYS)
(
    RULES,
    BUCKETS,
    HELD,
    MARKS,
    _LINKS,
    _OLDER_HALF,
    _ENDS,
    CLOCK,
    LIVE,
    _GHOST,
    *_,
) = range(_FIRST_ARRAY, _FIRST_ARRAY + 2 * len(_ARRAYS), 2)
_SHADOW = _GHOST + 14
(
    DATA,
    INDEX,
    _HEAT,
    _ORIGINAL_OF,
    _BY_POSITION,
    COUNTERS_AT,
    MAP,
    UPDATES,
    UPDATED_ROWS,
    WAITS,
    UPPER_NS,
) = range(_SHADOW + 14, _SHADOW + 36, 2)

# Words of a request's scratch: numbers, its own counters, then so many words for each of its ids.
(
    IDS,
    MISSED,
    DISTINCT,
    WANTED,
    READS,
    OTHERS,
    UNPLACED,
    SEEN_EPOCH,
    WARMING,
    SOUND,
    ALL_BLOCKS,
    BEGUN_NS,
    STATE,
) = range(13)
COUNTED = 13
COUNTERS_KEPT = len(COUNTERS) + 1
REQUESTS = len(COUNTERS)
CLOCK_ROOM = 21
BAGS = 23  # where the words of its bags are, of a request that is pooled; or 0
HEAD = 24
_POSITIONS, SLOTS, ASKED, ORDERED, PLACES, BLOCKS, ENTRIES, ADDRESSES, STATUS, ROWS_READ = range(10)
WORDS_OF_ID = ROWS_READ + READ_WORDS

# What became of a block: sound, one of the reasons of `blocks.REASONS`, or one of these.
UNREAD, TOLD, NOT_ALLOWED, LATE = 16, 17, 18, 19
LOST = -2  # in place of a slot: no block brought the row
WAIT, AGAIN, UNABLE, NOT_CLAIMED, NO_MEMORY = -1, -2, -3, -4, -5
BUSY = -(1 << 62)


@inlined
def scratch_words(ids: int) -> int:
    """Return how many words the scratch of a request of `ids` ids has."""
    return HEAD + WORDS_OF_ID * ids


@kernel
def _remembered(table: np.ndarray, at: int) -> Remembered:
    buckets, held, links = table[at], table[at + 2], table[at + 4]
    capacity = table[at + 3]
    return Remembered(
        uint64s_at(buckets, table[at + 1]),
        uint32s_at(held, capacity),
        ints_at(links, 2 * capacity).reshape(capacity, 2),
        bytes_at(table[at + 6], table[at + 7]),
        words_at(table[at + 8], 6).reshape(1, 6),
        ints_at(table[at + 10], capacity),
        words_at(table[at + 12], 2),
    )


@kernel
def state_of(table: np.ndarray) -> CacheState:
    """Return a table's cache, as the kernels of :mod:`bandana_kv.cache` take it."""
    linked = table[_LINKS + 1] // 2
    return CacheState(
        words_at(table[RULES], 4),
        uint64s_at(table[BUCKETS], table[BUCKETS + 1]),
        uint32s_at(table[HELD], table[HELD + 1]),
        bytes_at(table[MARKS], table[MARKS + 1]),
        ints_at(table[_LINKS], 2 * linked).reshape(linked, 2),
        bytes_at(table[_OLDER_HALF], table[_OLDER_HALF + 1]),
        words_at(table[_ENDS], 12).reshape(2, 6),
        words_at(table[CLOCK], table[CLOCK + 1]),
        bytes_at(table[LIVE], table[LIVE + 1]),
        _remembered(table, _GHOST),
        _remembered(table, _SHADOW),
    )


@kernel
def layout_of(table: np.ndarray) -> Layout:
    """Return how a table's rows lie in blocks."""
    return Layout(
        table[PER_BLOCK],
        bytes_at(table[_HEAT], table[_HEAT + 1]),
        uint32s_at(table[_ORIGINAL_OF], table[_ORIGINAL_OF + 1]),
        uint32s_at(table[_BY_POSITION], table[_BY_POSITION + 1]),
    )


@inlined
def copy(source: int, target: int, count: int) -> None:
    """Copy bytes from one address to another."""
    _memcpy(target, source, count)


@inlined
def add_up(table: np.ndarray, scratch: np.ndarray) -> None:
    """Add what a request counted to what its table has counted."""
    if scratch[WARMING]:
        return
    counters = words_at(table[COUNTERS_AT], COUNTERS_KEPT)
    for i in range(COUNTERS_KEPT):
        if scratch[COUNTED + i]:
            add(counters, i, scratch[COUNTED + i])
            scratch[COUNTED + i] = 0


@inlined
def enter_table(table: np.ndarray, alone: bool, patient: bool) -> bool:
    """Take the table's lock; False: not in a moment, where waiting would keep the GIL."""
    if patient and alone:
        lock_alone(table, LOCK)
    elif patient:
        enter_lock(table, LOCK)
    elif alone:
        return try_lock_alone(table, LOCK)
    else:
        return try_enter_lock(table, LOCK)
    return True


@inlined
def key_of(table: np.ndarray, block: int) -> int:
    """Return the key under which a block lies."""
    number = block
    if table[MAP + 1]:
        number = words_at(table[MAP], table[MAP + 1])[block] & NUMBER_MASK
    return signed(table[FIRST_KEY] | number)


@inlined
def flight_of(table: np.ndarray, block: int) -> np.uint64:
    """Return under which number a block is in flight: its own, and which object its table is.

    Not its key: a later placement may put other rows under a key that has become free, while
    what was read ahead of the earlier one still waits.
    """
    return np.uint64(table[SERIAL] | block)


@inlined
def label_of(table: np.ndarray, block: int) -> int:
    """Return what the header of a block says."""
    if table[MAP + 1] == 0:
        return block
    return signed((words_at(table[MAP], table[MAP + 1])[block] & ~NUMBER_MASK) | block)


# -- what is done to a table from outside ------------------------------------------------------


@kernel
def lock_table(table: np.ndarray, held: np.ndarray) -> None:
    """Have a table alone, for as long as it takes; ``held[0]`` says that it was locked."""
    lock_alone(table, LOCK)
    held[0] = 1


@brief
def unlock_table(table: np.ndarray, held: np.ndarray) -> None:
    """End it, if it was locked: an interrupt may have come before."""
    if held[0]:
        held[0] = 0
        unlock_alone(table, LOCK)


class TableWords:
    """The words of a table, and the arrays that they name.

    Parameters
    ----------
    numbers
        By the names of this module's constants.
    arrays
        By the names in `_ARRAYS`; those that are missing are empty.
    """

    def __init__(self, numbers: dict[int, int], arrays: dict[str, NDArray[Any]]) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        self.words = np.zeros(TABLE_WORDS, np.int64)
        for at, number in numbers.items():
            self.words[at] = number
        for name, array in arrays.items():
            self.set_array(name, array)

    def set_array(self, name: str, array: NDArray[Any]) -> None:
        """Name another array; the table is locked, once it serves."""
        assert array.flags.c_contiguous
        at = _FIRST_ARRAY + 2 * _ARRAYS.index(name)
        self.words[at : at + 2] = array.ctypes.data, array.size
        self._arrays[name] = array
