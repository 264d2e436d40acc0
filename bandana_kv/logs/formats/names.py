"""Request names to numbers: the first name seen is 0, the next new one 1, and so on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.compile import kernel

__all__ = ["Interner", "InternerState", "intern_name"]

_FIRST_SLOTS = 1 << 12
_FIRST_NAME_BYTES = 1 << 16
_MOST_NAMES = 2**31 - 1


class InternerState(NamedTuple):
    """The arrays of an :class:`Interner`, as kernels take them.

    `slots` int32 (a power of two): number of the name, -1 where empty. `hashes` uint64 and
    `ends` int64 (slots / 2): per name, `ends` being where it ends in `names` uint8.
    `counts` int64 (2,): names, and bytes of names, so far.
    """

    slots: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    ends: NDArray[np.int64]
    names: NDArray[np.uint8]
    counts: NDArray[np.int64]


@kernel
def _hash(text: np.ndarray, begin: int, end: int) -> np.uint64:
    """FNV-1a, and a finish that mixes the low bits, which choose the slot."""
    value = np.uint64(0xCBF29CE484222325)
    for at in range(begin, end):
        value = (value ^ np.uint64(text[at])) * np.uint64(0x100000001B3)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    return value ^ (value >> np.uint64(33))


@kernel
def _same(state: InternerState, name: int, text: np.ndarray, begin: int, end: int) -> bool:
    first = state.ends[name - 1] if name > 0 else 0
    if state.ends[name] - first != end - begin:
        return False
    for i in range(end - begin):  # noqa: SIM110 - numba compiles no generators
        if state.names[first + i] != text[begin + i]:
            return False
    return True


@kernel
def intern_name(state: InternerState, text: np.ndarray, begin: int, end: int) -> int:
    """Return the number of the name ``text[begin:end]``; -1 if there is no room for it."""
    mixed = _hash(text, begin, end)
    mask = np.uint64(state.slots.size - 1)
    slot = mixed & mask
    while state.slots[slot] >= 0:
        name = state.slots[slot]
        if state.hashes[name] == mixed and _same(state, name, text, begin, end):
            return int(name)
        slot = (slot + np.uint64(1)) & mask
    new = int(state.counts[0])
    used = int(state.counts[1])
    if new == state.ends.size or used + (end - begin) > state.names.size:
        return -1
    for i in range(end - begin):
        state.names[used + i] = text[begin + i]
    state.slots[slot] = new
    state.hashes[new] = mixed
    state.ends[new] = used + (end - begin)
    state.counts[0] = new + 1
    state.counts[1] = used + (end - begin)
    return new


@kernel
def _rehash(hashes: np.ndarray, names: int, slots: np.ndarray) -> None:
    mask = np.uint64(slots.size - 1)
    for name in range(names):
        slot = hashes[name] & mask
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = name


@kernel
def _intern_spans(
    state: InternerState, text: np.ndarray, ends: np.ndarray, first: int, numbers: np.ndarray
) -> int:
    """Give numbers to the names that lie end to end in `text`; return the first left over."""
    for i in range(first, numbers.size):
        number = intern_name(state, text, ends[i], ends[i + 1])
        if number < 0:
            return i
        numbers[i] = number
    return numbers.size


class Interner:
    """Numbers names in the order of their first appearance; names are compared in full.

    Notes
    -----
    Memory: some 24 bytes and the name itself per distinct name.
    """

    def __init__(self) -> None:
        self.state = InternerState(
            np.full(_FIRST_SLOTS, -1, np.int32),
            np.empty(_FIRST_SLOTS // 2, np.uint64),
            np.empty(_FIRST_SLOTS // 2, np.int64),
            np.empty(_FIRST_NAME_BYTES, np.uint8),
            np.zeros(2, np.int64),
        )

    @property
    def names(self) -> int:
        """Distinct names so far."""
        return int(self.state.counts[0])

    def grow(self, least_bytes: int) -> None:
        """Make room for more names, one of `least_bytes` among them.

        Raises
        ------
        InputError
            There are 2**31 names, which is more than can be numbered.
        """
        slots, hashes, ends, names, counts = self.state
        count, used = (int(value) for value in counts)
        if count == ends.size:
            if 2 * ends.size > _MOST_NAMES:
                raise InputError(f"more than {ends.size} requests in one log; split it")
            hashes = np.concatenate([hashes, np.empty_like(hashes)])
            ends = np.concatenate([ends, np.empty_like(ends)])
            slots = np.full(2 * slots.size, -1, np.int32)
            _rehash(hashes, count, slots)
        if used + least_bytes > names.size:
            more = np.empty(max(2 * names.size, used + least_bytes), np.uint8)
            more[:used] = names[:used]
            names = more
        self.state = InternerState(slots, hashes, ends, names, counts)

    def numbers(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the numbers int32 (n,) of the n names ``text[ends[i]:ends[i + 1]]``."""
        numbers = np.empty(ends.size - 1, np.int32)
        done = _intern_spans(self.state, text, ends, 0, numbers)
        while done < numbers.size:
            self.grow(int(ends[done + 1] - ends[done]))
            done = _intern_spans(self.state, text, ends, done, numbers)
        return numbers
