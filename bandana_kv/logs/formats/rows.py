"""Kernels that find the fields of separated rows, and read the three that count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel
from bandana_kv.logs.formats.check import MOST_ID
from bandana_kv.logs.formats.fields import read_time, read_whole
from bandana_kv.logs.formats.names import InternerState, intern_name

__all__ = [
    "BAD_ID",
    "BAD_QUOTE",
    "BAD_TIME",
    "DONE",
    "ID",
    "LONG_ROW",
    "NO_REQUEST",
    "NO_ROOM",
    "REQUEST",
    "SHORT_ROW",
    "TIME",
    "Found",
    "Shape",
    "line_end",
    "parse_rows",
    "shape_of",
]

# why a kernel stopped
DONE, NO_ROOM, BAD_QUOTE, SHORT_ROW, LONG_ROW, NO_REQUEST, BAD_ID, BAD_TIME, OTHER_TIME = range(9)
REQUEST, ID, TIME = range(3)

_CUT = -1  # the row does not end in this block
_AFTER_QUOTE = -2  # text follows a closing quote


class Shape(NamedTuple):
    """What the rows of a file are like.

    `separator` uint8 (bytes); `fields` int64 (3,): which ones are request, id and time, -1 for
    none; `columns`: fields of each row; `missing` uint8 and `missing_ends` int64: the names that
    mean that there is none, end to end, in lower case.
    """

    separator: NDArray[np.uint8]
    quoting: bool
    fields: NDArray[np.int64]
    columns: int
    missing: NDArray[np.uint8]
    missing_ends: NDArray[np.int64]


class Found(NamedTuple):
    """Where a kernel puts interactions: int32 requests and ids, int64 and int32 times, all (n,)."""

    requests: NDArray[np.int32]
    ids: NDArray[np.int32]
    whole: NDArray[np.int64]
    nanos: NDArray[np.int32]


def shape_of(
    separator: str, quoting: bool, fields: Sequence[int], columns: int, missing: Sequence[str]
) -> Shape:
    """Return what kernels take."""
    words = [each.encode() for each in missing]
    return Shape(
        np.frombuffer(separator.encode(), np.uint8),
        quoting,
        np.array(fields, np.int64),
        columns,
        np.frombuffer(b"".join(words), np.uint8),
        np.cumsum([len(word) for word in words], dtype=np.int64),
    )


@kernel
def _separates(text: np.ndarray, at: int, separator: np.ndarray) -> bool:
    if text[at] != separator[0]:
        return False
    if at + separator.size > text.size:
        return False
    for i in range(1, separator.size):  # noqa: SIM110 - numba compiles no generators
        if text[at + i] != separator[i]:
            return False
    return True


@kernel
def _quoted(text: np.ndarray, at: int) -> int:
    """Return where the quoted field that begins at `at` ends, -1 if not in this block."""
    while True:
        while at < text.size and text[at] != 34:
            at += 1
        if at + 1 >= text.size:
            return -1
        if text[at + 1] != 34:
            return at
        at += 2  # a doubled quote stands for one


@kernel
def _next_row(text: np.ndarray, begin: int, shape: Shape, spans: np.ndarray) -> tuple[int, int]:
    """Find the wanted fields of the row at `begin`, as `spans` of the text.

    Returns where the next row begins, or why that cannot be said, and the fields of this one.
    """
    spans[:] = -1
    field = 0
    at = begin
    while at < text.size:
        first = at
        if shape.quoting and text[at] == 34:
            first = at + 1
            last = _quoted(text, first)
            if last < 0:
                return _CUT, field
            at = last + 1
            if text[at] != 10 and not _separates(text, at, shape.separator):
                return _AFTER_QUOTE, field
        else:
            while at < text.size and text[at] != 10 and not _separates(text, at, shape.separator):
                at += 1
            if at == text.size:
                return _CUT, field
            last = at
        for k in range(3):
            if shape.fields[k] == field:
                spans[k, 0] = first
                spans[k, 1] = last
        field += 1
        if text[at] == 10:
            return at + 1, field
        at += shape.separator.size
    return _CUT, field


@kernel
def line_end(text: np.ndarray, at: int) -> int:
    """Return where the line after the one at `at` begins."""
    while at < text.size and text[at] != 10:
        at += 1
    return min(at + 1, text.size)


@kernel
def _blank(text: np.ndarray, at: int) -> bool:
    while text[at] == 32 and at + 1 < text.size:
        at += 1
    return bool(text[at] == 10)


@kernel
def _means_missing(text: np.ndarray, begin: int, end: int, shape: Shape) -> bool:
    while begin < end and text[begin] == 32:
        begin += 1
    while end > begin and text[end - 1] == 32:
        end -= 1
    if begin == end:
        return True
    first = 0
    for last in shape.missing_ends:
        if last - first == end - begin:
            same = True
            for i in range(end - begin):
                byte = text[begin + i]
                if 65 <= byte <= 90:  # A to Z
                    byte += 32
                if byte != shape.missing[first + i]:
                    same = False
                    break
            if same:
                return True
        first = last
    return False


@kernel
def _read_row(
    text: np.ndarray,
    shape: Shape,
    columns: int,
    time_kind: np.ndarray,
    found: Found,
    row: int,
    spans: np.ndarray,
) -> int:
    """Read id and time of a row into place, and return what is wrong with it, or DONE."""
    if columns != shape.columns:
        return SHORT_ROW if columns < shape.columns else LONG_ROW
    value = read_whole(text, spans[ID, 0], spans[ID, 1], MOST_ID)
    if value < 0:
        return BAD_ID
    found.ids[row] = value
    kind = 0
    if shape.fields[TIME] >= 0:
        kind, whole, nanos = read_time(text, spans[TIME, 0], spans[TIME, 1])
        if kind == 0:
            return BAD_TIME
        if time_kind[0] != 0 and time_kind[0] != kind:
            return OTHER_TIME
        found.whole[row] = whole
        found.nanos[row] = nanos
    if _means_missing(text, spans[REQUEST, 0], spans[REQUEST, 1], shape):
        return NO_REQUEST
    time_kind[0] = kind
    return DONE


@kernel
def parse_rows(
    text: np.ndarray,
    begin: int,
    shape: Shape,
    names: InternerState,
    skip: bool,
    time_kind: np.ndarray,
    found: Found,
    counts: np.ndarray,
    spans: np.ndarray,
) -> tuple[int, int]:
    """Parse complete rows from `begin` on; return where it stopped, and why.

    `counts` int64 (3,) becomes the rows found, the bad ones that were skipped, and the fields of
    the last. Without `skip` a bad row is where it stops.
    """
    counts[:] = 0
    while begin < text.size:
        if _blank(text, begin):
            begin = line_end(text, begin)
            continue
        end, columns = _next_row(text, begin, shape, spans)
        counts[2] = columns
        if end == _CUT:
            return begin, DONE
        row = counts[0]
        why = BAD_QUOTE
        if end != _AFTER_QUOTE:
            why = _read_row(text, shape, columns, time_kind, found, row, spans)
        if why != DONE:
            if not skip:
                return begin, why
            counts[1] += 1
            # A quote gone wrong may have swallowed lines, which are not to be lost with it.
            begin = line_end(text, begin) if end == _AFTER_QUOTE else end
            continue
        request = intern_name(names, text, spans[REQUEST, 0], spans[REQUEST, 1])
        if request < 0:
            return begin, NO_ROOM
        found.requests[row] = request
        counts[0] += 1
        begin = end
    return begin, DONE
