"""Replies of a cluster's nodes: whichever comes is read, and values go where they belong.

Where the bytes are on the socket itself, as they are without TLS, all of a request, which is to
send, to wait and to read, is one call of compiled code that holds no GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from bandana_kv.adapters import resp_commands
from bandana_kv.adapters.resp_slots import CRC_TABLE
from bandana_kv.kernels.addresses import bytes_at, last_errno
from bandana_kv.kernels.compile import brief, copy_bytes, inlined, kernel, signed

__all__ = [
    "AT",
    "BROKEN",
    "CALL_WORDS",
    "CURSOR_WORDS",
    "DONE",
    "ENDED",
    "ITEM",
    "LEFT",
    "LENGTH",
    "LINE",
    "LINE_END",
    "LOST",
    "MGET",
    "MORE",
    "NEED",
    "NIL",
    "TAKEN",
    "UNTAKEN",
    "FINISHED",
    "SAID",
    "STATE",
    "BEGIN",
    "BYTES",
    "END",
    "exchange",
    "ready",
    "take_replies",
]

_CR, _LF, _STAR, _DOLLAR, _PLUS, _MINUS = 13, 10, 42, 36, 43, 45

# What became of a block that was asked for.
LEFT, TAKEN, NIL, LENGTH = 0, 1, 2, 3

# Words of a cursor over the replies of one node: which MGET, how many of its values were taken
# (-1: its first line is to come), which place in the order that is, how many bytes the next value
# takes, where a line ends, what stopped it, how many keys had no value that fits.
MGET, ITEM, AT, NEED, LINE_END, ENDED, UNTAKEN = range(7)
CURSOR_WORDS = 7
# What stopped it: bytes are missing, all is there, a line that is no value, no such protocol.
MORE, DONE, LINE, BROKEN = 0, 1, 2, 3

# Of each node that :func:`exchange` asks: its socket; its buffer's address and size, and what of it
# is filled; which bytes it is sent; its first MGET and how many, its first key and how many; how it
# stands, and how many bytes have come.
FD, BUFFER, SIZE, BEGIN, END, FROM, TO, GET, GETS, KEY, KEYS, STATE, BYTES = range(13)
CALL_WORDS = 13
# How a node stands: it owes replies; it has said something that is to be looked at; it is gone.
OWES, SAID, LOST = 0, 1, 2  # and DONE is 3
FINISHED = 3

_int64, _int32 = types.int64, types.int32
_send: Any = types.ExternalFunction("send", _int64(_int32, _int64, _int64, _int32))
_recv: Any = types.ExternalFunction("recv", _int64(_int32, _int64, _int64, _int32))
_poll: Any = types.ExternalFunction("poll", _int32(_int64, _int64, _int32))
_memmove: Any = types.ExternalFunction("memmove", types.voidptr(_int64, _int64, _int64))
_DONTWAIT, _NOSIGNAL, _POLLIN = 0x40, 0x4000, 1
_EAGAIN, _EINTR = 11, 4


@inlined
def _line_end(buffer: np.ndarray, begin: int, end: int) -> int:
    """Return where the line that begins there ends, before its CR; -1: it is not all there."""
    for at in range(begin, end - 1):
        if buffer[at] == _CR and buffer[at + 1] == _LF:
            return at
    return -1


@inlined
def _number(buffer: np.ndarray, begin: int, end: int) -> int:
    """Return the number that digits are; -1 for what begins with a minus, -2 for what is none."""
    if begin == end:
        return -2
    if buffer[begin] == _MINUS:
        return -1
    value = 0
    for at in range(begin, end):
        digit = signed(buffer[at]) - 48
        if digit < 0 or digit > 9 or value > 1 << 40:
            return -2
        value = 10 * value + digit
    return value


@inlined
def _take_value(
    buffer: np.ndarray,
    begin: int,
    length: int,
    key: int,
    cursor: np.ndarray,
    status: np.ndarray,
    found: np.ndarray,
    out: np.ndarray,
) -> None:
    size = out.shape[1]
    if length != size:
        cursor[UNTAKEN] += 1
    if status[key] == TAKEN:  # another copy was quicker
        return
    if length == size:
        copy_bytes(buffer, begin, out, key * size, size)
        status[key] = TAKEN
    elif length >= 0:
        status[key] = LENGTH
        found[key] = length
    elif status[key] == LEFT:
        status[key] = NIL


@brief
def take_replies(
    buffer: np.ndarray,
    begin: int,
    end: int,
    cursor: np.ndarray,
    counts: np.ndarray,
    order: np.ndarray,
    status: np.ndarray,
    found: np.ndarray,
    out: np.ndarray,
) -> int:
    """Put the values that have arrived where they belong; return where the next bytes begin.

    Parameters
    ----------
    buffer, begin, end
        What has arrived: ``buffer[begin:end]``.
    cursor
        int64 (CURSOR_WORDS,): how far the replies have been taken; says what stopped it.
    counts, order
        As :func:`compose_reads` has them, of one node.
    status
        int8 (n,) by key: what was LEFT becomes TAKEN, NIL or LENGTH.
    found
        int64 (n,) by key: the length of a value that is not as long as a payload.
    out
        uint8 (n, payload_bytes).
    """
    cursor[NEED] = 0
    while cursor[MGET] < counts.shape[0]:
        line = _line_end(buffer, begin, end)
        if line < 0:
            cursor[ENDED] = MORE
            return begin
        sign = buffer[begin]
        if sign == _PLUS:  # to an ASKING
            begin = line + 2
            continue
        if sign == _MINUS and cursor[ITEM] < 0:
            cursor[LINE_END] = line
            cursor[ENDED] = LINE
            return begin
        number = _number(buffer, begin + 1, line)
        if cursor[ITEM] < 0:
            if sign != _STAR or number != counts[cursor[MGET]]:
                cursor[ENDED] = BROKEN
                return begin
            cursor[ITEM] = 0
            begin = line + 2
            continue
        if sign != _DOLLAR or number == -2:
            cursor[ENDED] = BROKEN
            return begin
        after = line + 2 if number == -1 else line + 2 + number + 2
        if after > end:
            cursor[NEED] = after - begin
            cursor[ENDED] = MORE
            return begin
        _take_value(buffer, line + 2, number, order[cursor[AT]], cursor, status, found, out)
        begin = after
        cursor[AT] += 1
        cursor[ITEM] += 1
        if cursor[ITEM] == counts[cursor[MGET]]:
            cursor[ITEM] = -1
            cursor[MGET] += 1
    cursor[ENDED] = DONE
    return begin


@inlined
def _received(call: np.ndarray) -> bool:
    """Take what has come for one node into its buffer; return False where it is gone."""
    room = call[SIZE] - call[END]
    fd = np.int32(call[FD])
    taken = _recv(fd, call[BUFFER] + call[END], room, np.int32(_DONTWAIT))
    if taken > 0:
        call[END] += taken
        call[BYTES] += taken
        return True
    if taken == 0:
        return False
    return last_errno() in (_EAGAIN, _EINTR)


@kernel
def exchange(
    calls: np.ndarray,
    cursors: np.ndarray,
    data: np.ndarray,
    counts: np.ndarray,
    order: np.ndarray,
    status: np.ndarray,
    found: np.ndarray,
    out: np.ndarray,
    wait_ms: int,
) -> int:
    """Send nodes what they are asked, and take replies until all have come or one is late.

    Parameters
    ----------
    calls
        int64 (p, CALL_WORDS): what each node is asked; becomes how it stands.
    cursors
        int64 (p, CURSOR_WORDS).
    data
        uint8: the commands.
    counts, order, status, found, out
        As :func:`take_replies` has them, of all nodes.
    wait_ms
        How long nothing may come at all.

    Returns
    -------
    int
        How many nodes are not FINISHED, or had no value that fits for some key.
    """
    waiting = np.zeros((calls.shape[0], 2), np.int32)
    left = 0
    for p in range(calls.shape[0]):
        call = calls[p]
        size = call[TO] - call[FROM]
        flags = np.int32(_DONTWAIT | _NOSIGNAL)
        if _send(np.int32(call[FD]), data.ctypes.data + call[FROM], size, flags) == size:
            left += 1
        else:  # not even the socket's buffer takes it
            call[STATE] = LOST
    while left:
        asked = 0
        for p in range(calls.shape[0]):
            if calls[p, STATE] == OWES:
                waiting[asked, 0] = calls[p, FD]
                waiting[asked, 1] = _POLLIN
                asked += 1
        if _poll(waiting.ctypes.data, asked, np.int32(wait_ms)) <= 0:
            break
        asked = 0
        for p in range(calls.shape[0]):
            call = calls[p]
            if call[STATE] != OWES:
                continue
            asked += 1
            if waiting[asked - 1, 1] >> 16 == 0:
                continue
            if not _received(call):
                call[STATE] = LOST
            else:
                _take_of(call, cursors[p], counts, order, status, found, out)
            left -= call[STATE] != OWES
    unfinished = 0
    for p in range(calls.shape[0]):
        unfinished += calls[p, STATE] != FINISHED or cursors[p, UNTAKEN] > 0
    return unfinished


@inlined
def _take_of(
    call: np.ndarray,
    cursor: np.ndarray,
    counts: np.ndarray,
    order: np.ndarray,
    status: np.ndarray,
    found: np.ndarray,
    out: np.ndarray,
) -> None:
    """Take what has come of one node's replies, and make room for more."""
    buffer = bytes_at(call[BUFFER], call[SIZE])
    of_node = counts[call[GET] : call[GET] + call[GETS]]
    keys = order[call[KEY] : call[KEY] + call[KEYS]]
    begin = take_replies(buffer, call[BEGIN], call[END], cursor, of_node, keys, status, found, out)
    call[BEGIN] = begin
    if cursor[ENDED] == DONE:
        call[STATE] = FINISHED
    elif cursor[ENDED] != MORE or cursor[NEED] > call[SIZE]:
        call[STATE] = SAID
    elif begin:
        _memmove(call[BUFFER], call[BUFFER] + begin, call[END] - begin)
        call[END] -= begin
        call[BEGIN] = 0


def ready() -> None:
    """Have everything here compiled: to do so while a node's answer is waited for would be late."""
    keys, ones = np.zeros(1, np.uint64), np.ones(1, np.int64)
    zeros, shifts, prefix = np.zeros(1, np.int64), np.zeros(1, np.uint8), np.zeros(1, np.uint8)
    resp_commands.locate(keys, zeros, zeros, CRC_TABLE, 0, np.zeros(1, np.int64), shifts)
    buffer, out = np.zeros(256, np.uint8), np.zeros((1, 1), np.uint8)
    parts = np.empty((1, resp_commands.PART_WORDS), np.int64)
    resp_commands.compose_reads(
        keys, shifts, zeros, zeros, 1, prefix, buffer, zeros.copy(), ones, parts
    )
    resp_commands.compose_writes(keys, shifts, out, zeros, False, prefix, buffer)
    reply = np.frombuffer(b"*1\r\n$1\r\nx\r\n", np.uint8).copy()
    cursor = np.array([0, -1, 0, 0, 0, 0, 0])
    take_replies(
        reply, 0, len(reply), cursor, ones, zeros, np.zeros(1, np.int8), np.zeros(1, np.int64), out
    )
    exchange(
        np.empty((0, CALL_WORDS), np.int64),
        np.empty((0, CURSOR_WORDS), np.int64),
        buffer,
        ones,
        zeros,
        np.zeros(1, np.int8),
        np.zeros(1, np.int64),
        out,
        1,
    )
