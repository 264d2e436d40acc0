"""Keys of blocks.

Unsigned 64-bit numbers, stored as 8 bytes big-endian, so that the engine's order is the numbers'
order: a 24-bit *space* (one table of one version) in the high bits, a 40-bit block number in the
low ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bandana_kv.errors import InputError

__all__ = [
    "MAX_BLOCK",
    "MAX_SPACE",
    "Keys",
    "block_keys",
    "any_of",
    "check_rising",
    "checked_keys",
    "describe_key",
    "key_bytes",
    "space_bounds",
]

_BLOCK_BITS = 40
MAX_BLOCK = (1 << _BLOCK_BITS) - 1
MAX_SPACE = (1 << (64 - _BLOCK_BITS)) - 1
_KEY_BYTES = 8

Keys = npt.NDArray[np.uint64]


def _checked_space(space: int) -> int:
    if not 0 <= space <= MAX_SPACE:
        raise InputError(f"space {space} is not within 0..{MAX_SPACE}")
    return int(space)


def block_keys(space: int, blocks: npt.ArrayLike) -> Keys:
    """Return the keys of blocks of one space.

    Parameters
    ----------
    space
        The space, 0 to ``MAX_SPACE``.
    blocks
        Block numbers, integers of 0 to ``MAX_BLOCK``, any shape.

    Returns
    -------
    uint64 array of the same shape

    Raises
    ------
    InputError
        A space or block number out of range, or not an integer.
    """
    base = np.uint64(_checked_space(space) << _BLOCK_BITS)
    numbers = np.asarray(blocks)
    if numbers.size == 0:
        return np.empty(numbers.shape, np.uint64)
    if numbers.dtype.kind not in "iu":
        raise InputError(f"block numbers must be integers, not {numbers.dtype}")
    if int(numbers.min()) < 0 or int(numbers.max()) > MAX_BLOCK:
        raise InputError(f"block numbers must be within 0..{MAX_BLOCK}")
    keys: Keys = numbers.astype(np.uint64) | base
    return keys


def space_bounds(space: int) -> tuple[int, int]:
    """Return the first and the last key that a space can hold, both inclusive."""
    first = _checked_space(space) << _BLOCK_BITS
    return first, first | MAX_BLOCK


def describe_key(key: int) -> str:
    """Return a key as messages name it, for example ``"space 3, block 17"``."""
    return f"space {int(key) >> _BLOCK_BITS}, block {int(key) & MAX_BLOCK}"


def key_bytes(keys: Keys) -> list[bytes]:
    """Return keys as engines store them: 8 bytes each, big-endian."""
    raw = keys.astype(">u8").tobytes()
    return [raw[at : at + _KEY_BYTES] for at in range(0, len(raw), _KEY_BYTES)]


def checked_keys(keys: Keys) -> Keys:
    """Return `keys`; InputError unless they are uint64 (n,)."""
    array = np.asarray(keys)
    if array.ndim != 1 or array.dtype != np.uint64:
        raise InputError(
            f"keys must be a one-dimensional uint64 array, not {array.dtype} of {array.shape}"
        )
    return array


def check_rising(keys: Keys, newest: int) -> int:
    """Return the last of `keys` after checking that they rise strictly from `newest`."""
    if not len(keys):
        return newest
    if int(keys[0]) <= newest:
        before, after = newest, int(keys[0])
    else:
        falls = np.flatnonzero(keys[1:] <= keys[:-1])
        if not len(falls):
            return int(keys[-1])
        before, after = int(keys[falls[0]]), int(keys[falls[0] + 1])
    raise InputError(
        f"keys of a bulk load must rise: {describe_key(after)} came after {describe_key(before)}"
    )


def any_of(keys: Keys, first_key: Callable[[int, int], int | None]) -> int | None:
    """Return the lowest of `keys` that an engine has which orders them; they rise.

    Parameters
    ----------
    first_key
        Returns the lowest key within first..last that the engine has, or None.

    Notes
    -----
    *Cost*: a seek, where neither side has keys between the other's: it leaps over gaps of both.
    """
    last = int(keys[-1])
    at = 0
    while at < len(keys):
        found = first_key(int(keys[at]), last)
        if found is None:
            return None
        at = int(np.searchsorted(keys, np.uint64(found)))
        if at < len(keys) and int(keys[at]) == found:
            return found
    return None
