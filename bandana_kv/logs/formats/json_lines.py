"""Access logs as JSON lines: an object with request, id and time, or with the ids of a request.

A line may also be the array of a request's ids. Lines become Python objects one by one, so that
this is the slowest of the formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.logs.formats.bad_rows import BadRows
from bandana_kv.logs.formats.check import MOST_ID, shown
from bandana_kv.logs.formats.fields import ISO, NUMBER, read_time
from bandana_kv.logs.formats.groups import Gathered
from bandana_kv.logs.formats.pieces import Blocks
from bandana_kv.logs.options import LogOptions
from bandana_kv.progress import Progress

__all__ = ["Keys", "read"]

_NEWLINE = b"\n"
_LISTS = "ids"


class Keys(NamedTuple):
    """What a table is asked by: the kind of its keys, and which ids they are, -1 for none."""

    kind: str
    ids_of: Callable[[Sequence[Any]], NDArray[np.int64]]


class _BadLineError(ValueError):
    """What is wrong with a line."""


class _Row(NamedTuple):
    """A line: the name of its request if it has one, its ids or keys, its time if it has one."""

    name: bytes | None
    ids: list[Any]
    time: tuple[int, int, int] | None
    line: int


class _Times(NamedTuple):
    kind: int
    whole: NDArray[np.int64]
    nanos: NDArray[np.int32]


class _Lines:
    """Gathers the requests of a file, block by block."""

    def __init__(self, path: Path, options: LogOptions, bad: BadRows, keys: Keys | None) -> None:
        self._path = path
        self._keys = keys
        self._options = options
        self._missing = frozenset(options.means_missing())
        self._bad = bad
        self._decode = msgspec.json.Decoder().decode
        self._lines = 0
        self._timed: bool | None = None
        self._named: bool | None = None
        self._time_kind = 0
        self._gathered = Gathered(path)

    def parse(self, block: NDArray[np.uint8]) -> int:
        text = block.tobytes()
        used = text.rfind(_NEWLINE) + 1
        rows = []
        for line in text[:used].split(_NEWLINE)[:-1]:
            self._lines += 1
            if not line or line.isspace():
                continue
            try:
                rows.append(self._row(line))
            except _BadLineError as error:
                self._bad.add(f"{self._path}: line {self._lines}: {error}")
        if rows:
            self._add(rows)
        return used

    def done(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the requests."""
        return self._gathered.done()

    def _row(self, line: bytes) -> _Row:
        try:
            value = self._decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            what = shown(np.frombuffer(line, np.uint8))
            raise _BadLineError(f"{what} is not JSON ({error})") from error
        if isinstance(value, list):
            row = _Row(None, self._asked("", value), None, self._lines)
        else:
            row = self._of_object(line, value)
        # That of the first good line holds for all: a request without its time has no place.
        named, timed = row.name is not None, row.time is not None
        if self._named is None:
            self._named, self._timed = named, timed
            self._gathered.begin(str(self._path), named, timed)
        elif named != self._named:
            raise _BadLineError("some lines are requests, and others are lookups of one")
        elif timed != self._timed:
            raise _BadLineError("some lines have a time, and others have none")
        if row.time is not None:
            if self._time_kind not in {0, row.time[0]}:
                raise _BadLineError("numbers and dates are mixed; write all times in one way")
            self._time_kind = row.time[0]
        return row

    def _of_object(self, line: bytes, value: Any) -> _Row:
        if not isinstance(value, dict):
            what = shown(np.frombuffer(line, np.uint8))
            raise _BadLineError(f"{what} is neither an object nor the ids of a request")
        options = self._options
        column = options.column("id")
        if not options.named("id") and _LISTS in value:
            column = _LISTS
        ids = self._asked(column, self._get(value, "id", column))
        listed = isinstance(value[column], list)
        name = None
        if not listed or options.named("request"):
            column = options.column("request")
            name = _name(column, self._get(value, "request", column), self._missing)
        time = None
        column = options.column("time")
        if options.named("time") or column in value:
            time = _time(column, self._get(value, "time", column))
        return _Row(name, ids, time, self._lines)

    def _asked(self, column: str, value: Any) -> list[Any]:
        return _ids(column, value) if self._keys is None else _keys(self._keys.kind, column, value)

    def _get(self, value: dict[str, Any], role: str, column: str) -> Any:
        if column not in value:
            there = ", ".join(repr(each[:40]) for each in list(value)[:50])
            raise _BadLineError(
                f"has no {column!r}; what it has: {there}. "
                f"Say which holds the {role}: columns={{{role!r}: ...}}"
            )
        return value[column]

    def _add(self, rows: list[_Row]) -> None:
        sizes = np.array([len(row.ids) for row in rows], np.int64)
        asked = [each for row in rows for each in row.ids]
        if self._keys is None:
            ids = np.array(asked, np.int32)
        else:
            ids, sizes = self._found(self._keys, rows, asked, sizes)
        names, times = None, None
        if self._named:
            words = [row.name or b"" for row in rows]
            ends = np.zeros(len(words) + 1, np.int64)
            np.cumsum([len(word) for word in words], out=ends[1:])
            names = (np.frombuffer(b"".join(words), np.uint8), ends)
        if self._timed:
            each = [row.time or (0, 0, 0) for row in rows]
            times = _Times(
                self._time_kind,
                np.array([whole for _, whole, _ in each], np.int64),
                np.array([nanos for _, _, nanos in each], np.int32),
            )
        self._gathered.add(ids, sizes, names, times)

    def _found(
        self, keys: Keys, rows: list[_Row], asked: list[Any], sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of keys, and how many each line has, without keys that are none's."""
        ids = keys.ids_of(asked)
        there = ids >= 0
        if not there.all():
            of_line = np.repeat(np.arange(sizes.size), sizes)
            at = int((~there).argmax())
            line = rows[int(of_line[at])].line
            what = f"{self._path}: line {line}: the table has no key {asked[at]!r}"
            self._bad.add(what, int((~there).sum()))
            sizes = np.bincount(of_line[there], minlength=sizes.size)
        return ids[there].astype(np.int32), sizes


def _keys(kind: str, column: str, value: Any) -> list[Any]:
    """Return the keys of a line, one or a list of them; text that stands for bytes as those."""
    found = value if isinstance(value, list) else [value]
    for each in found:
        if kind in ("str", "bytes"):
            sound = isinstance(each, str)
        else:  # from 2^63 up no row of int64 is called, but somebody may have asked for one
            least = 0 if kind == "uint64" else -(1 << 63)
            sound = type(each) is int and least <= each < 1 << 64
        if not sound:
            where = f" in {column!r}" if column else ""
            raise _BadLineError(f"{_shown(each)}{where} is not a key; the table's keys are {kind}")
    return [each.encode() for each in found] if kind == "bytes" else found


def _ids(column: str, value: Any) -> list[int]:
    """Return the ids of a line, one or a list of them."""
    found = []
    for each in value if isinstance(value, list) else [value]:
        whole = isinstance(each, int) or (isinstance(each, float) and each.is_integer())
        if isinstance(each, bool) or not whole or not 0 <= each <= MOST_ID:
            where = f" in {column!r}" if column else ""
            raise _BadLineError(
                f"{_shown(each)}{where} is not an id; ids are whole numbers from 0 to {MOST_ID}"
            )
        found.append(int(each))
    return found


def _shown(value: Any) -> str:
    return shown(np.frombuffer(msgspec.json.encode(value), np.uint8))


def _name(column: str, value: Any, missing: frozenset[str]) -> bytes:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2.0**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _BadLineError(f"{_shown(value)} in {column!r} cannot name a request")
    if isinstance(value, str) and value.strip(" ").lower() in missing:
        raise _BadLineError(
            f"{column!r} holds {_shown(value)}, which means that there is none; "
            "every row needs its request"
        )
    # As it stands: 7 and "7" are different requests.
    return msgspec.json.encode(value)


def _time(column: str, value: Any) -> tuple[int, int, int]:
    if isinstance(value, str):
        text = np.frombuffer(value.encode(), np.uint8)
        kind, whole, nanos = read_time(text, 0, text.size)
        if kind in {ISO, NUMBER}:
            return kind, whole, nanos
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**62:
        whole = math.floor(value)
        return NUMBER, whole, round((value - whole) * 1e9)
    raise _BadLineError(
        f"{_shown(value)} in {column!r} is not a time; "
        "times are numbers, or dates such as 2017-10-01 or 2017-10-01T02:37:00Z"
    )


def read(
    path: Path, options: LogOptions, bad: BadRows, progress: Progress, keys: Keys | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read JSON lines, of ids, or with `keys` of those.

    Raises
    ------
    InputError
        A line is not as it should be; with its number.
    """
    lines = _Lines(path, options, bad, keys)
    with Blocks(path, progress) as blocks:
        blocks.feed(lines.parse)
    return lines.done()
