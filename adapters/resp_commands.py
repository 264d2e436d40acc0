"""Commands for many blocks of a cluster, written in one go, and the slots of their keys.

The key of a block is ``{<prefix>.<space><chunk>}<block in chunk>``, 6, 10 and 2 digits of
hexadecimal. Engines hash what is within the braces only, so a chunk, which is some consecutive
blocks, lies in one slot, and one MGET can ask for all of them.
"""

from __future__ import annotations

import numpy as np

from bandana_kv.adapters.resp_slots import SLOTS
from bandana_kv.kernels.compile import brief, copy_bytes, inlined, kernel, signed

__all__ = [
    "KEY_TAIL",
    "PART_WORDS",
    "TAG_TAIL",
    "compose_reads",
    "compose_writes",
    "locate",
]

_BLOCK_BITS = 40
_SPACE_DIGITS, _CHUNK_DIGITS, _REST_DIGITS = 6, 10, 2
TAG_TAIL = _SPACE_DIGITS + _CHUNK_DIGITS
KEY_TAIL = TAG_TAIL + 1 + _REST_DIGITS
"""Bytes of a key behind ``{<prefix>.``."""

_CR, _LF, _STAR, _DOLLAR = 13, 10, 42, 36

# Of each node asked: its number, its first MGET and how many, where its bytes begin and end, its
# first key in the order and how many.
PART_WORDS = 7


@inlined
def _digit(value: int) -> int:
    return value + 48 if value < 10 else value + 87


@inlined
def _put_hex(buffer: np.ndarray, at: int, value: int, digits: int) -> int:
    for place in range(digits):
        buffer[at + place] = _digit((value >> (4 * (digits - 1 - place))) & 15)
    return at + digits


@inlined
def _put_number(buffer: np.ndarray, at: int, value: int) -> int:
    digits = 1
    rest = value // 10
    while rest:
        digits += 1
        rest //= 10
    for place in range(digits):
        buffer[at + digits - 1 - place] = 48 + value % 10
        value //= 10
    return at + digits


@inlined
def _put_end(buffer: np.ndarray, at: int) -> int:
    buffer[at] = _CR
    buffer[at + 1] = _LF
    return at + 2


@inlined
def _put_key(buffer: np.ndarray, at: int, prefix: np.ndarray, key: np.uint64, shift: int) -> int:
    """Put a key with its length before it, and an end of line behind."""
    size = prefix.shape[0]
    buffer[at] = _DOLLAR
    at = _put_end(buffer, _put_number(buffer, at + 1, size + KEY_TAIL))
    for place in range(size):
        buffer[at + place] = prefix[place]
    block = signed(key & np.uint64((1 << _BLOCK_BITS) - 1))
    at = _put_hex(buffer, at + size, signed(key >> np.uint64(_BLOCK_BITS)), _SPACE_DIGITS)
    at = _put_hex(buffer, at, block >> shift, _CHUNK_DIGITS)
    buffer[at] = 125
    at = _put_hex(buffer, at + 1, block & ((1 << shift) - 1), _REST_DIGITS)
    return _put_end(buffer, at)


@brief
def locate(
    keys: np.ndarray,
    spaces: np.ndarray,
    shifts: np.ndarray,
    table: np.ndarray,
    crc_before: int,
    slots: np.ndarray,
    shift_of: np.ndarray,
) -> int:
    """Put the slot of each key, and how many bits of its block are the place in its chunk.

    Parameters
    ----------
    spaces, shifts
        int64: of the spaces that are known.
    crc_before
        Of the tag's bytes before the space.

    Returns
    -------
    int
        -1; or the first key whose space is not known.
    """
    known = -1
    digits = np.empty(TAG_TAIL, np.uint8)
    for i in range(keys.shape[0]):
        space = signed(keys[i] >> np.uint64(_BLOCK_BITS))
        if known < 0 or spaces[known] != space:
            known = -1
            for k in range(spaces.shape[0]):
                if spaces[k] == space:
                    known = k
            if known < 0:
                return i
        shift = shifts[known]
        block = signed(keys[i] & np.uint64((1 << _BLOCK_BITS) - 1))
        at = _put_hex(digits, 0, space, _SPACE_DIGITS)
        _put_hex(digits, at, block >> shift, _CHUNK_DIGITS)
        crc = crc_before
        for place in range(TAG_TAIL):
            crc = ((crc << 8) & 0xFFFF) ^ signed(table[(crc >> 8) ^ signed(digits[place])])
        slots[i] = crc & (SLOTS - 1)
        shift_of[i] = shift
    return -1


@brief
def compose_reads(
    keys: np.ndarray,
    shift_of: np.ndarray,
    slots: np.ndarray,
    nodes: np.ndarray,
    most: int,
    prefix: np.ndarray,
    buffer: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    parts: np.ndarray,
) -> int:
    """Write the MGETs for keys (n,), those of one node behind one another.

    Parameters
    ----------
    nodes
        int64 (n,): whom to ask; negative: nobody.
    most
        Keys of one MGET at most.
    prefix
        uint8: what a key begins with.
    buffer
        uint8, long enough.
    order
        int64 (n,): becomes which keys are asked for, in the order of the replies.
    counts
        int64 (n,): becomes how many keys each MGET has.
    parts
        int64 (n, PART_WORDS): becomes who is asked for what.

    Returns
    -------
    int
        How many nodes are asked.
    """
    asked = 0
    rank = np.empty(keys.shape[0], np.int64)
    for i in range(keys.shape[0]):
        if nodes[i] >= 0:
            rank[asked] = (nodes[i] << 46) | (slots[i] << 32) | i
            asked += 1
    if asked <= 64:
        for i in range(1, asked):
            held = rank[i]
            k = i
            while k > 0 and rank[k - 1] > held:
                rank[k] = rank[k - 1]
                k -= 1
            rank[k] = held
    else:
        rank[:asked].sort()
    at, gets, number = 0, 0, -1
    i = 0
    while i < asked:
        node = rank[i] >> 46
        if number < 0 or parts[number, 0] != node:
            number += 1
            parts[number, 0] = node
            parts[number, 1] = gets
            parts[number, 2] = 0
            parts[number, 3] = at
            parts[number, 5] = i
        end = i + 1
        while end < asked and end - i < most and rank[end] >> 32 == rank[i] >> 32:
            end += 1
        buffer[at] = _STAR
        at = _put_end(buffer, _put_number(buffer, at + 1, end - i + 1))
        for byte in (36, 52, 13, 10, 77, 71, 69, 84, 13, 10):  # $4 MGET
            buffer[at] = byte
            at += 1
        for k in range(i, end):
            key = rank[k] & 0xFFFFFFFF
            order[k] = key
            at = _put_key(buffer, at, prefix, keys[key], signed(shift_of[key]))
        counts[gets] = end - i
        gets += 1
        parts[number, 2] += 1
        parts[number, 4] = at
        parts[number, 6] = end - parts[number, 5]
        i = end
    return number + 1


@kernel
def compose_writes(
    keys: np.ndarray,
    shift_of: np.ndarray,
    payloads: np.ndarray,
    which: np.ndarray,
    asking: bool,
    prefix: np.ndarray,
    buffer: np.ndarray,
) -> int:
    """Write a SET for each of `which` keys, with an ASKING before it if so; return the bytes."""
    at = 0
    size = payloads.shape[1]
    for i in which:
        if asking:
            for byte in (42, 49, 13, 10, 36, 54, 13, 10, 65, 83, 75, 73, 78, 71, 13, 10):
                buffer[at] = byte
                at += 1
        for byte in (42, 51, 13, 10, 36, 51, 13, 10, 83, 69, 84, 13, 10):  # *3 $3 SET
            buffer[at] = byte
            at += 1
        at = _put_key(buffer, at, prefix, keys[i], signed(shift_of[i]))
        buffer[at] = _DOLLAR
        at = _put_end(buffer, _put_number(buffer, at + 1, size))
        copy_bytes(payloads, i * size, buffer, at, size)
        at = _put_end(buffer, at + size)
    return at
