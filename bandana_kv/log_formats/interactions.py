"""Interactions as comma or tab separated values, one (request, id, time) a row.

Parsed by kernels in blocks: needs no package beyond the core ones, and memory for the
numbers only. Quoted fields follow RFC 4180.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel
from bandana_kv.errors import InputError
from bandana_kv.log_formats.blocks import Blocks
from bandana_kv.log_formats.check import MOST_ID, shown
from bandana_kv.log_formats.columns import column_names, find_columns
from bandana_kv.log_formats.fields import read_time, read_whole
from bandana_kv.log_formats.grouping import Interactions
from bandana_kv.log_formats.interning import Interner, InternerState, intern_name
from bandana_kv.progress import Progress

__all__ = ["read_csv", "read_tsv"]

# why a kernel stopped
_DONE, _NO_ROOM, _BAD_QUOTE, _SHORT_ROW, _NO_REQUEST, _BAD_ID, _BAD_TIME, _OTHER_TIME = range(8)
_REQUEST, _ID, _TIME = range(3)


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
def _next_row(
    text: np.ndarray, begin: int, delimiter: int, fields: np.ndarray, spans: np.ndarray
) -> int:
    """Find the wanted `fields` of the row at `begin`, as `spans` of the text.

    Returns where the next row begins; -1 if this one does not end here, -2 if text
    follows a closing quote.
    """
    spans[:] = -1
    field = 0
    at = begin
    while at < text.size:
        first = at
        if text[at] == 34:
            first = at + 1
            last = _quoted(text, first)
            if last < 0:
                return -1
            at = last + 1
            if text[at] == 13:
                at += 1
                if at == text.size:
                    return -1
            if text[at] != delimiter and text[at] != 10:
                return -2
        else:
            while at < text.size and text[at] != delimiter and text[at] != 10:
                at += 1
            if at == text.size:
                return -1
            last = at - 1 if text[at] == 10 and at > first and text[at - 1] == 13 else at
        for k in range(fields.size):
            if fields[k] == field:
                spans[k, 0] = first
                spans[k, 1] = last
        field += 1
        at += 1
        if text[at - 1] == 10:
            return at
    return -1


@kernel
def _parse(
    text: np.ndarray,
    begin: int,
    delimiter: int,
    fields: np.ndarray,
    names: InternerState,
    time_kind: np.ndarray,
    requests: np.ndarray,
    ids: np.ndarray,
    whole: np.ndarray,
    nanos: np.ndarray,
    spans: np.ndarray,
) -> tuple[int, int, int]:
    """Parse complete rows from `begin` on; return where it stopped, rows parsed, and why."""
    rows = 0
    while begin < text.size:
        if text[begin] == 10 or (
            text[begin] == 13 and begin + 1 < text.size and text[begin + 1] == 10
        ):  # a blank line
            begin += 1 if text[begin] == 10 else 2
            continue
        end = _next_row(text, begin, delimiter, fields, spans)
        if end < 0:
            return begin, rows, _DONE if end == -1 else _BAD_QUOTE
        for k in range(fields.size):
            if fields[k] >= 0 and spans[k, 0] < 0:
                return begin, rows, _SHORT_ROW
        value = read_whole(text, spans[_ID, 0], spans[_ID, 1], MOST_ID)
        if value < 0:
            return begin, rows, _BAD_ID
        if fields[_TIME] >= 0:
            kind, whole[rows], nanos[rows] = read_time(text, spans[_TIME, 0], spans[_TIME, 1])
            if kind == 0:
                return begin, rows, _BAD_TIME
            if time_kind[0] != 0 and time_kind[0] != kind:
                return begin, rows, _OTHER_TIME
            time_kind[0] = kind
        if spans[_REQUEST, 0] == spans[_REQUEST, 1]:
            return begin, rows, _NO_REQUEST
        request = intern_name(names, text, spans[_REQUEST, 0], spans[_REQUEST, 1])
        if request < 0:
            return begin, rows, _NO_ROOM
        requests[rows] = request
        ids[rows] = value
        rows += 1
        begin = end
    return begin, rows, _DONE


class _Table:
    """Gathers the interactions of a file, block by block."""

    def __init__(self, path: Path, delimiter: str, names: list[str], fields: list[int]) -> None:
        self._path = path
        self._delimiter = ord(delimiter)
        self._names = names
        self._fields = np.array(fields, np.int64)
        self._spans = np.empty((3, 2), np.int64)
        self._time_kind = np.zeros(1, np.int64)
        self._lines = 1  # the header
        self._rows = Interactions()
        self._requests = Interner()

    def parse(self, block: NDArray[np.uint8]) -> int:
        most = block.size // 2 + 1  # the shortest row: one digit and a newline
        requests, ids = np.empty(most, np.int32), np.empty(most, np.int32)
        whole, nanos = np.empty(most, np.int64), np.empty(most, np.int32)
        timed = self._fields[_TIME] >= 0
        begin, why = 0, _NO_ROOM
        while why == _NO_ROOM:
            begin, rows, why = _parse(
                block,
                begin,
                self._delimiter,
                self._fields,
                self._requests.state,
                self._time_kind,
                requests,
                ids,
                whole,
                nanos,
                self._spans,
            )
            times = (whole[:rows], nanos[:rows]) if timed else (None, None)
            self._rows.add(requests[:rows], ids[:rows], *times)
            if why == _NO_ROOM:
                self._requests.grow(int(self._spans[_REQUEST, 1] - self._spans[_REQUEST, 0]))
        if why != _DONE:
            self._refuse(block, begin, why)
        self._lines += int(np.count_nonzero(block[:begin] == 10))
        return begin

    def finish(self, left: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the requests; `left` is what could not be parsed at the end of the file."""
        if left.size:
            raise InputError(
                f"{self._path}: line {self._lines + 1}: a quote opens there that is never closed"
            )
        return self._rows.grouped(self._requests.names)

    def _refuse(self, block: NDArray[np.uint8], begin: int, why: int) -> None:
        line = self._lines + 1 + int(np.count_nonzero(block[:begin] == 10))
        where = f"{self._path}: line {line}"
        request, lookup, time = self._names
        if why == _BAD_QUOTE:
            raise InputError(f"{where}: text follows a closing quote")
        if why == _SHORT_ROW:
            short = [
                name
                for name, field, span in zip(self._names, self._fields, self._spans, strict=True)
                if field >= 0 and span[0] < 0
            ]
            raise InputError(f"{where}: the row ends before column {short[0]!r}")
        if why == _NO_REQUEST:
            raise InputError(f"{where}: column {request!r} is empty; every row needs its request")
        if why == _BAD_ID:
            raise InputError(
                f"{where}: {self._quote(block, _ID)} in column {lookup!r} is not an id; "
                f"ids are whole numbers from 0 to {MOST_ID}"
            )
        if why == _BAD_TIME:
            raise InputError(
                f"{where}: {self._quote(block, _TIME)} in column {time!r} is not a time; "
                "times are numbers, or dates such as 2017-10-01 or 2017-10-01T02:37:00Z"
            )
        raise InputError(
            f"{where}: {self._quote(block, _TIME)} in column {time!r}: "
            "numbers and dates are mixed; write all times in one way"
        )

    def _quote(self, block: NDArray[np.uint8], column: int) -> str:
        first, last = self._spans[column]
        return shown(block[first:last])


def _read(
    path: Path, columns: Mapping[str, str] | None, progress: Progress, delimiter: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    names = column_names(path, columns)
    with Blocks(path, progress) as blocks:
        first = blocks.first_line()
        if not first.strip():
            raise InputError(
                f"{path}: begins with an empty line; the first line must name the columns"
            )
        header = next(csv.reader([first], delimiter=delimiter))
        fields = find_columns(path, [name.strip() for name in header], names, columns)
        table = _Table(path, delimiter, names, fields)
        return table.finish(blocks.feed(table.parse))


def read_csv(
    path: Path, columns: Mapping[str, str] | None, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read comma separated interactions with a header; see :mod:`.columns` for the columns.

    Raises
    ------
    InputError
        A column is missing, or a row is wrong, with its line number.
    """
    return _read(path, columns, progress, ",")


def read_tsv(
    path: Path, columns: Mapping[str, str] | None, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read tab separated interactions with a header; as :func:`read_csv`."""
    return _read(path, columns, progress, "\t")
