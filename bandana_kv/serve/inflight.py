"""Blocks that are being read right now, so that two misses on one block read it once.

All of it is one array of words and what it names, which compiled code shares: *entries*, each
with memory for one block, the key of the block that is in it, and how many requests use it. A
request claims its blocks: those that an entry has are another's to read, for the rest it takes
free entries and reads them itself. Memory goes back when the last user has left.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.addresses import (
    add,
    compare_and_set,
    ints_at,
    load,
    lock_alone,
    store,
    uint64s_at,
    unlock_alone,
    wait_word,
    wake_descriptor,
    wake_word,
    words_at,
)
from bandana_kv.kernels.compile import brief, inlined, kernel, signed

__all__ = [
    "AHEAD",
    "BAD",
    "WORDS",
    "BLOCK_BYTES",
    "InFlight",
    "READING",
    "READY",
    "take_ahead",
    "claim_entry",
    "entry_address",
    "entry_state",
    "finish_entry",
    "forget_entry",
    "leave_entry",
    "lock_entries",
    "mark_ahead",
    "unlock_entries",
    "wait_for_entry",
    "watch_entries",
]

# Constants of kernels. Words; the lock and what is slept on have cache lines of their own.
_LOCK, _SLEEPERS, _WATCHER, _CHANGED = 0, 8, 9, 16
_ENTRIES, BLOCK_BYTES, _MEMORY, _FREE_COUNT, _FREE, _KEYS, _STATES, _USERS, _HASH, _MASK = range(
    24, 34
)
WORDS = 40
# States of an entry.
READING, READY, BAD = 1, 2, 3
AHEAD = 4  # with READY or READING: read before anybody asked, and nobody has yet

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@inlined
def _home(words: np.ndarray, key: np.uint64) -> int:
    return signed(signed((key * _GOLDEN) >> np.uint64(32)) & words[_MASK])


@inlined
def _find(words: np.ndarray, key: np.uint64) -> int:
    """Return the entry that has `key`, or -1; the lock is held, as for all that follows."""
    table = ints_at(words[_HASH], words[_MASK] + 1)
    keys = uint64s_at(words[_KEYS], words[_ENTRIES])
    at = _home(words, key)
    while table[at]:
        if keys[table[at] - 1] == key:
            return signed(table[at]) - 1
        at = (at + 1) & words[_MASK]
    return -1


@inlined
def _index(words: np.ndarray, key: np.uint64, entry: int) -> None:
    table = ints_at(words[_HASH], words[_MASK] + 1)
    at = _home(words, key)
    while table[at]:
        at = (at + 1) & words[_MASK]
    table[at] = entry + 1


@inlined
def _unindex(words: np.ndarray, entry: int) -> None:
    """Let nobody find an entry any more; nothing where it was not to be found."""
    table = ints_at(words[_HASH], words[_MASK] + 1)
    keys = uint64s_at(words[_KEYS], words[_ENTRIES])
    mask = words[_MASK]
    gap = _home(words, keys[entry])
    while table[gap] and table[gap] != entry + 1:
        gap = (gap + 1) & mask
    if table[gap] == 0:
        return
    at = gap
    while True:
        at = (at + 1) & mask
        if table[at] == 0:
            break
        home = _home(words, keys[table[at] - 1])
        # The entry may fall back into the gap only if its home is not after the gap.
        if ((at - home) & mask) >= ((at - gap) & mask):
            table[gap] = table[at]
            gap = at
    table[gap] = 0


@inlined
def lock_entries(words: np.ndarray) -> None:
    """Begin to claim or leave entries: a few at a time, since everybody waits."""
    lock_alone(words, _LOCK)


@inlined
def unlock_entries(words: np.ndarray) -> None:
    """End it."""
    unlock_alone(words, _LOCK)


@inlined
def claim_entry(words: np.ndarray, key: np.uint64) -> int:
    """Use the entry that has `key`, or take a free one to read it into.

    Returns
    -------
    int
        The entry where this caller must read the block; ``-2 - entry`` where another does; -1
        where no entry is free. The lock is held.
    """
    users = words_at(words[_USERS], words[_ENTRIES])
    entry = _find(words, key)
    if entry >= 0:
        users[entry] += 1
        return -2 - entry
    if words[_FREE_COUNT] == 0:
        return -1
    words[_FREE_COUNT] -= 1
    entry = signed(ints_at(words[_FREE], words[_ENTRIES])[words[_FREE_COUNT]])
    uint64s_at(words[_KEYS], words[_ENTRIES])[entry] = key
    users[entry] = 1
    store(words_at(words[_STATES], words[_ENTRIES]), entry, READING)
    _index(words, key, entry)
    return entry


@inlined
def leave_entry(words: np.ndarray, entry: int) -> None:
    """Use an entry no more; the last one to leave frees it. The lock is held."""
    users = words_at(words[_USERS], words[_ENTRIES])
    users[entry] -= 1
    if users[entry] == 0:
        _unindex(words, entry)
        ints_at(words[_FREE], words[_ENTRIES])[words[_FREE_COUNT]] = entry
        words[_FREE_COUNT] += 1


@inlined
def forget_entry(words: np.ndarray, entry: int) -> None:
    """Let whoever asks for the block from now on read it anew. The lock is held."""
    _unindex(words, entry)


@inlined
def entry_address(words: np.ndarray, entry: int) -> int:
    """Return where the block of an entry lies in memory."""
    return signed(words[_MEMORY] + entry * words[BLOCK_BYTES])


@inlined
def entry_state(words: np.ndarray, entry: int) -> int:
    """Return READING, READY or BAD, with AHEAD perhaps."""
    return int(load(words_at(words[_STATES], words[_ENTRIES]), entry))


@inlined
def mark_ahead(words: np.ndarray, entry: int) -> None:
    """Mark an entry that was just claimed as read ahead. The lock is held.

    It has two users from now on: whoever reads it, until it is delivered, and whoever will ask.
    Without the first it could be dropped, and be another's by the time the read ends.
    """
    words_at(words[_USERS], words[_ENTRIES])[entry] += 1
    store(words_at(words[_STATES], words[_ENTRIES]), entry, READING | AHEAD)


@inlined
def take_ahead(words: np.ndarray, entry: int) -> bool:
    """Take the mark AHEAD from an entry; return whether it was there. The lock is held."""
    states = words_at(words[_STATES], words[_ENTRIES])
    state = load(states, entry)
    while state & AHEAD:
        if compare_and_set(states, entry, state, state & ~AHEAD):
            return True
        state = load(states, entry)
    return False


@inlined
def finish_entry(words: np.ndarray, entry: int, state: int) -> None:
    """Say that the block is there, READY, or will not come, BAD; wake who waits for it."""
    states = words_at(words[_STATES], words[_ENTRIES])
    seen = load(states, entry)
    while not compare_and_set(states, entry, seen, state | (seen & AHEAD)):
        seen = load(states, entry)
    add(words, _CHANGED, 1)
    if load(words, _SLEEPERS):
        wake_word(words.ctypes.data + 8 * _CHANGED)
    watcher = load(words, _WATCHER)
    if watcher:
        wake_descriptor(watcher - 1)


@inlined
def watch_entries(words: np.ndarray, descriptor: int) -> None:
    """Have an eventfd written to when an entry is finished; -1: no more.

    For the one thread that waits for other things besides. It looks at its entries after this.
    """
    before = load(words, _WATCHER)
    if before != descriptor + 1:
        add(words, _WATCHER, descriptor + 1 - before)


@inlined
def wait_for_entry(words: np.ndarray, entry: int, timeout: int) -> int:
    """Sleep until the entry is not READING, or something else changed; return its state.

    `timeout` as for :func:`bandana_kv.kernels.addresses.wait_word`. The GIL must not be held.
    """
    # In this order: whoever finishes it changes the word after the state, and looks for
    # sleepers after that.
    add(words, _SLEEPERS, 1)
    seen = load(words, _CHANGED)
    state = entry_state(words, entry)
    if state & ~AHEAD == READING:
        wait_word(words.ctypes.data + 8 * _CHANGED, seen, timeout)
        state = entry_state(words, entry)
    add(words, _SLEEPERS, -1)
    return state


@kernel
def _forget(words: np.ndarray, keys: np.ndarray) -> None:
    lock_entries(words)
    for key in keys:
        entry = _find(words, key)
        if entry >= 0:
            _unindex(words, entry)
    unlock_entries(words)


@brief
def _drop_ahead(words: np.ndarray, entries: np.ndarray, held: np.ndarray) -> None:
    keys = uint64s_at(words[_KEYS], words[_ENTRIES])
    lock_entries(words)
    for i in range(entries.size):
        # An entry that somebody took, and another took after him, is not ours any more.
        if keys[entries[i]] == held[i] and take_ahead(words, entries[i]):
            leave_entry(words, entries[i])
    unlock_entries(words)


_parents: list[list[NDArray[Any]]] = []


class InFlight:
    """The blocks of one engine that are being read, for all of its tables.

    Parameters
    ----------
    block_bytes
        Of one block, as the engine keeps it.
    entries
        Blocks that can be in flight at once. What is never used takes no DRAM.

    Attributes
    ----------
    block_bytes, entries : int
        As given.
    words : int64 array
        What kernels take.
    """

    def __init__(self, block_bytes: int, entries: int) -> None:
        self.block_bytes = block_bytes
        self.entries = entries
        self.words = np.zeros(WORDS, np.int64)
        self._begin()

    def _begin(self) -> None:
        entries = self.entries
        memory = mmap.mmap(-1, entries * self.block_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A child of a fork begins anew; and what a device writes to must not move under a fork.
        memory.madvise(mmap.MADV_DONTFORK)
        slots = 1 << (2 * entries - 1).bit_length()
        self._arrays: list[NDArray[Any]] = [
            np.frombuffer(memory, np.uint8),
            np.arange(entries, dtype=np.int32)[::-1].copy(),
            np.zeros(entries, np.uint64),
            np.zeros(entries, np.int64),
            np.zeros(entries, np.int64),
            np.zeros(slots, np.int32),
        ]
        held, free, keys, states, users, table = (array.ctypes.data for array in self._arrays)
        self.words[:] = 0
        self.words[_ENTRIES : _MASK + 1] = (
            entries,
            self.block_bytes,
            held,
            entries,
            free,
            keys,
            states,
            users,
            table,
            slots - 1,
        )

    @property
    def count(self) -> int:
        """Blocks that are in flight, or wait for somebody to ask for them."""
        return self.entries - int(self.words[_FREE_COUNT])

    def forget(self, keys: NDArray[np.uint64]) -> None:
        """Let whoever asks for one of `keys` from now on read it anew."""
        _forget(self.words, keys)

    def drop_ahead(self, entries: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
        """Free those of `entries` with blocks of `keys` that nobody has asked for."""
        _drop_ahead(self.words, entries, keys)

    def after_fork_in_child(self) -> None:
        """Begin anew, without the reads of threads that do not exist here."""
        # The parent's memory is not mapped here; freeing it would unmap what took its place.
        _parents.append(self._arrays)
        self._begin()
