"""Interactions as comma or tab separated values, one (request, id, time) a row.

Parsed by kernels in blocks: needs no package beyond the core ones, and memory for the
numbers only. Quoted fields follow RFC 4180.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.logs.formats import rows
from bandana_kv.logs.formats.bad_rows import BadRows
from bandana_kv.logs.formats.check import MOST_ID, shown
from bandana_kv.logs.formats.columns import find_columns, number_columns
from bandana_kv.logs.formats.groups import Interactions
from bandana_kv.logs.formats.names import Interner
from bandana_kv.logs.formats.pieces import Blocks
from bandana_kv.logs.formats.rows import ID, REQUEST, TIME, Shape
from bandana_kv.logs.options import ROLES, LogOptions
from bandana_kv.progress import Progress

__all__ = ["read_csv", "read_tsv"]

_NEWLINE = 10
_QUOTE = '"'


class _Table:
    """Gathers the interactions of a file, block by block."""

    def __init__(
        self, path: Path, options: LogOptions, shape: Shape, header_lines: int, bad: BadRows
    ) -> None:
        self._path = path
        self._shape = shape
        self._names = [options.column(role) for role in ROLES]
        self._spans = np.empty((3, 2), np.int64)
        self._time_kind = np.zeros(1, np.int64)
        self._lines = header_lines
        self._bad = bad
        self._rows = Interactions()
        self._requests = Interner()

    def parse(self, block: NDArray[np.uint8]) -> int:
        most = block.size // 2 + 1  # the shortest row: one digit and a newline
        found = rows.Found(
            np.empty(most, np.int32),
            np.empty(most, np.int32),
            np.empty(most, np.int64),
            np.empty(most, np.int32),
        )
        counts = np.zeros(3, np.int64)
        begin, why = 0, rows.NO_ROOM
        while why != rows.DONE:
            begin, why = rows.parse_rows(
                block,
                begin,
                self._shape,
                self._requests.state,
                bool(self._bad.first),  # the first bad row is told of, those after are counted
                self._time_kind,
                found,
                counts,
                self._spans,
            )
            self._add(found, int(counts[0]))
            self._bad.count += int(counts[1])
            if why == rows.NO_ROOM:
                self._requests.grow(int(self._spans[REQUEST, 1] - self._spans[REQUEST, 0]))
            elif why != rows.DONE:
                # counted by the next call, which begins with it
                self._bad.add(self._message(block, begin, why, int(counts[2])), rows=0)
        self._lines += int(np.count_nonzero(block[:begin] == _NEWLINE))
        return begin

    def finish(self, left: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the requests; `left` is what could not be parsed at the end of the file."""
        while left.size:
            self._bad.add(
                f"{self._path}: line {self._lines + 1}: a quote opens there that is never closed"
            )
            left = left[rows.line_end(left, 0) :]
            self._lines += 1
            left = left[self.parse(left) :]
        return self._rows.grouped(self._requests.names)

    def _add(self, found: rows.Found, many: int) -> None:
        timed = self._shape.fields[TIME] >= 0
        times = (found.whole[:many], found.nanos[:many]) if timed else (None, None)
        self._rows.add(found.requests[:many], found.ids[:many], *times)

    def _message(self, block: NDArray[np.uint8], begin: int, why: int, columns: int) -> str:
        """Return what is wrong with the row at `begin`, and in which line it is."""
        line = self._lines + 1 + int(np.count_nonzero(block[:begin] == _NEWLINE))
        where = f"{self._path}: line {line}"
        request, lookup, time = self._names
        if why == rows.BAD_QUOTE:
            return f"{where}: text follows a closing quote"
        if why in {rows.SHORT_ROW, rows.LONG_ROW}:
            return f"{where}: {self._miscounted(columns)}"
        if why == rows.NO_REQUEST:
            name = self._quote(block, REQUEST)
            what = "is empty" if name == "''" else f"holds {name}, which means that there is none"
            return f"{where}: column {request!r} {what}; every row needs its request"
        if why == rows.BAD_ID:
            return (
                f"{where}: {self._quote(block, ID)} in column {lookup!r} is not an id; "
                f"ids are whole numbers from 0 to {MOST_ID}"
            )
        if why == rows.BAD_TIME:
            return (
                f"{where}: {self._quote(block, TIME)} in column {time!r} is not a time; "
                "times are numbers, or dates such as 2017-10-01 or 2017-10-01T02:37:00Z"
            )
        return (
            f"{where}: {self._quote(block, TIME)} in column {time!r}: "
            "numbers and dates are mixed; write all times in one way"
        )

    def _miscounted(self, columns: int) -> str:
        for name, field in zip(self._names, self._shape.fields, strict=True):
            if field >= columns:
                return f"the row ends before column {name!r}"
        return (
            f"the row has {columns} fields, and not {self._shape.columns} as the first; fields are "
            f"separated by {self._shape.separator.tobytes().decode()!r}, which none may hold "
            + ("outside of quotes" if self._shape.quoting else "without quoting=True")
        )

    def _quote(self, block: NDArray[np.uint8], column: int) -> str:
        first, last = self._spans[column]
        return shown(block[first:last])


def _fields(row: str, separator: str, quoting: bool) -> list[str] | None:
    """Return the fields of a row; None if a quote is open at its end."""
    if not quoting or _QUOTE not in row:
        return row.split(separator)
    fields, at = [], 0
    while True:
        if row.startswith(_QUOTE, at):
            end = at + 1
            while (end := row.find(_QUOTE, end)) >= 0 and row.startswith(_QUOTE, end + 1):
                end += 2
            if end < 0:
                return None
            fields.append(row[at + 1 : end].replace('""', _QUOTE))
            at = end + 1
        else:
            end = row.find(separator, at)
            end = len(row) if end < 0 else end
            fields.append(row[at:end])
            at = end
        if not row.startswith(separator, at):
            return fields if at == len(row) else [*fields, row[at:]]
        at += len(separator)


def _first_row(
    path: Path, blocks: Blocks, separator: str, quoting: bool
) -> tuple[bytes, list[str]]:
    """Take the first row off the file; return it, and its fields."""
    taken = b""
    while line := blocks.line():
        taken += line
        try:
            text = taken.removesuffix(b"\n").decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: line 1 is not UTF-8 text ({error.reason})") from error
        fields = _fields(text, separator, quoting)
        if fields is not None:
            return taken, fields
    raise InputError(f"{path}: line 1: a quote opens there that is never closed")


def _read(
    path: Path, options: LogOptions, bad: BadRows, progress: Progress, separator: str, quoting: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    separator = options.separator or separator
    quoting = quoting if options.quoting is None else options.quoting
    with Blocks(path, progress) as blocks:
        taken, names = _first_row(path, blocks, separator, quoting)
        if not "".join(names).strip():
            raise InputError(
                f"{path}: begins with an empty line; the first line must name the columns"
            )
        if options.header is False:
            blocks.put_back(taken)
            taken = b""
            fields = number_columns(path, len(names), options)
        else:
            fields = find_columns(path, [name.strip() for name in names], options)
        shape = rows.shape_of(separator, quoting, fields, len(names), options.means_missing())
        table = _Table(path, options, shape, taken.count(b"\n"), bad)
        return table.finish(blocks.feed(table.parse))


def read_csv(
    path: Path, options: LogOptions, bad: BadRows, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read comma separated interactions with a header; see :mod:`.columns` for the columns.

    Raises
    ------
    InputError
        A column is missing, or a row is wrong, with its line number.
    """
    return _read(path, options, bad, progress, ",", quoting=True)


def read_tsv(
    path: Path, options: LogOptions, bad: BadRows, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read tab separated interactions with a header, without quoting; as :func:`read_csv`."""
    return _read(path, options, bad, progress, "\t", quoting=False)
