"""What was written into a store, and how much of it a day may be: flash wears out by writing.

``DIR/ledger.jsonl``: a line for each load, migration, flush of updates, re-placement and repair,
in the order of their ends, ``{"checksum": <XXH3 of the entry>, "entry": {...}}``. Any process may
append; a line that a crash has torn is left out. The file stays small: past 256 KiB, entries of
the same hour become one, past two days those of the same day, past two months those of the same
thirty days.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import xxhash

from bandana_kv.errors import FormatError
from bandana_kv.system.durable import sync_directory, write_durably
from bandana_kv.system.permission import check_permission

__all__ = [
    "Entry",
    "Meter",
    "PerDay",
    "entries",
    "note",
    "per_day",
    "read_ledger",
    "written_in_a_day",
    "written_in_all",
    "written_per_day",
]

DAY_S = 86400.0
_MOST_BYTES = 256 << 10
# Entries younger than the first number are folded to periods of the second; in seconds.
_FOLDS = ((2 * DAY_S, DAY_S / 24), (60 * DAY_S, DAY_S), (math.inf, 30 * DAY_S))
_FULL_LINE = "only a part of a line was written"

Kind = Literal["load", "update", "flush", "place-anew", "repair", "migrate"]
_Bytes = Annotated[int, msgspec.Meta(ge=0)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]

_log = logging.getLogger("bandana_kv")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one load, update, flush, re-placement or repair wrote; or several of a kind, as one.

    Attributes
    ----------
    time : float
        When it ended, the last of them: seconds since 1970.
    kind : str
        ``"load"``, ``"update"``, ``"flush"``, ``"place-anew"``, ``"repair"``, or ``"migrate"``:
        what lay beside the store until it was loaded.
    version : int or None
        That was written to; None for a load or re-placement that failed, for a migration, and
        for several.
    tables : tuple of str
        That were written; empty for several.
    handed_bytes : int
        Given to the engine and to files beside it: whole blocks, headers and padding included.
    device_bytes : int or None
        What the kernel counted meanwhile as written to block devices by this process
        (``write_bytes`` in ``/proc/self/io``): the engine's own writing too, and whatever
        else the process wrote; not the file system's journal, nor what the drive does inside.
        None where it is not counted.
    seconds : float
        How long it took.
    count : int
        How many were folded.
    """

    time: _Seconds
    kind: Kind
    version: int | None
    tables: tuple[str, ...]
    handed_bytes: _Bytes
    device_bytes: _Bytes | None
    seconds: _Seconds
    count: Annotated[int, msgspec.Meta(ge=1)] = 1

    @property
    def written_bytes(self) -> int:
        """What the device got: as counted, or else what was handed over."""
        return self.handed_bytes if self.device_bytes is None else self.device_bytes


class PerDay(NamedTuple):
    """How much is written a day.

    Attributes
    ----------
    last_day_bytes : int
        In the last 24 hours.
    week_bytes : float
        A day, over the last seven days, or since the first entry if that is later.
    mean_bytes : float
        A day, since the first entry.
    total_bytes, measured_bytes : int
        In all, and how much of it the kernel has counted; the rest is what was handed over.
    days : float
        Since the first entry. Means are over one day at least.
    """

    last_day_bytes: int
    week_bytes: float
    mean_bytes: float
    total_bytes: int
    measured_bytes: int
    days: float


class Meter:
    """Measures a piece of work, from the making of the meter to that of the entry."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._device_bytes = _process_bytes()

    def entry(
        self, kind: Kind, version: int | None, tables: Iterable[str], handed_bytes: int
    ) -> Entry:
        """Return the entry of work that has just ended."""
        before, after = self._device_bytes, _process_bytes()
        counted = None if before is None or after is None else max(0, after - before)
        # Memory, and some network file systems, count nothing; that is not 0.
        return Entry(
            time=time.time(),
            kind=kind,
            version=version,
            tables=tuple(tables),
            handed_bytes=int(handed_bytes),
            device_bytes=counted or (None if handed_bytes else 0),
            seconds=time.monotonic() - self._began,
        )


def _process_bytes() -> int | None:
    """Return what this process has written to block devices; None where nobody counts it."""
    try:
        found = re.search(r"^write_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1])


class _Line(msgspec.Struct):
    checksum: str
    entry: msgspec.Raw


def ledger_path(root: Path) -> Path:
    """Return the file of a store's ledger."""
    return root / "ledger.jsonl"


def note(root: Path, entry: Entry) -> None:
    """Append an entry to a store's ledger, durably.

    What cannot be noted is logged, and no reason for the work that it tells of to fail.

    Notes
    -----
    Cost: a write and a sync. Any thread of any process may call it.
    """
    try:
        with _appending(ledger_path(root)) as handle:
            size = os.fstat(handle).st_size
            if size > _MOST_BYTES:
                _fold(ledger_path(root), os.pread(handle, size, 0), entry)
                return
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            try:
                _append(handle, b"\n" * torn + _line(entry))
            except OSError:
                # What is not known to be safe does not stay for later lines to follow it.
                os.ftruncate(handle, size)
                raise
            if not size:
                sync_directory(root)
    except OSError as error:
        _log.warning(
            "%s: cannot be noted in the ledger (%s)",
            root,
            error.strerror,
            extra={"event": "ledger_not_written", "store": str(root), "error": error.strerror},
        )


def _append(handle: int, line: bytes) -> None:
    if os.write(handle, line) != len(line):
        raise OSError(errno.ENOSPC, _FULL_LINE)
    os.fdatasync(handle)


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[int]:
    """Open a ledger for appending, alone."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Somebody may have folded it meanwhile, into another file.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                yield handle
                return
        finally:
            # Said, since a child that was forked meanwhile has the handle too.
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _line(entry: Entry) -> bytes:
    body = msgspec.json.encode(entry)
    return msgspec.json.encode(_Line(xxhash.xxh3_64_hexdigest(body), msgspec.Raw(body))) + b"\n"


def _parsed(data: bytes) -> tuple[list[Entry], int]:
    """Return the entries of a ledger's bytes, and how many lines are damaged."""
    found, damaged = [], 0
    for text in data.splitlines():
        try:
            line = msgspec.json.decode(text, type=_Line)
            body = bytes(line.entry)
            if line.checksum != xxhash.xxh3_64_hexdigest(body):
                raise ValueError("checksum")
            found.append(msgspec.json.decode(body, type=Entry))
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            damaged += bool(text)
    return found, damaged


def _fold(path: Path, data: bytes, last: Entry) -> None:
    """Write the entries of `data` and the last one anew, summed by period."""
    groups: dict[tuple[str, float, float], list[Entry]] = {}
    for entry in [*_parsed(data)[0], last]:
        age = last.time - entry.time
        period = next(period for young, period in _FOLDS if age < young)
        groups.setdefault((entry.kind, period, entry.time // period), []).append(entry)
    folded = sorted((_sum(group) for group in groups.values()), key=lambda entry: entry.time)
    write_durably(path, b"".join(map(_line, folded)))


def _sum(group: list[Entry]) -> Entry:
    if len(group) == 1:
        return group[0]
    counted = any(entry.device_bytes is not None for entry in group)
    return Entry(
        # The latest: rather counted a little longer in the last 24 hours than not long enough.
        time=max(entry.time for entry in group),
        kind=group[0].kind,
        version=None,
        tables=(),
        handed_bytes=sum(entry.handed_bytes for entry in group),
        device_bytes=sum(entry.written_bytes for entry in group) if counted else None,
        seconds=sum(entry.seconds for entry in group),
        count=sum(entry.count for entry in group),
    )


def read_ledger(root: Path) -> tuple[list[Entry], int]:
    """Return the entries of a store's ledger, and how many of its lines are damaged.

    Raises
    ------
    FormatError
        The file cannot be read at all.
    """
    path = ledger_path(root)
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # so that no line is seen half written
            return _parsed(file.read())
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        check_permission(error, path)
        raise FormatError(
            f"{path}: cannot be read ({error.strerror}); restore or remove it"
        ) from error


def entries(root: Path) -> list[Entry]:
    """Return the entries of a store's ledger, and log how many lines are damaged.

    Raises
    ------
    FormatError
        As :func:`read_ledger`.
    """
    found, damaged = read_ledger(root)
    if damaged:
        _log.warning(
            "%s: %d damaged lines were left out",
            ledger_path(root),
            damaged,
            extra={"event": "ledger_damaged", "store": str(root), "lines": damaged},
        )
    return found


def written_in_a_day(found: Iterable[Entry], now: float) -> list[Entry]:
    """Return the entries of the last 24 hours, the oldest first.

    One of the future was made by a clock that was wrong, and counts no longer than a day.
    """
    return sorted(
        (entry for entry in found if abs(now - entry.time) < DAY_S), key=lambda entry: entry.time
    )


def written_per_day(root: Path, now: float | None = None) -> PerDay:
    """Return how much is written a day, by the ledger of the store at `root`.

    Raises
    ------
    FormatError
        As :func:`read_ledger`.
    """
    return per_day(entries(root), time.time() if now is None else now)


def per_day(found: list[Entry], now: float) -> PerDay:
    """Return how much is written a day by these entries."""
    days = max(0.0, now - min((entry.time for entry in found), default=now)) / DAY_S
    total = written_in_all(found)
    return PerDay(
        last_day_bytes=written_in_all(written_in_a_day(found, now)),
        week_bytes=written_in_all(entry for entry in found if now - entry.time < 7 * DAY_S)
        / min(7.0, max(1.0, days)),
        mean_bytes=total / max(1.0, days),
        total_bytes=total,
        measured_bytes=sum(entry.device_bytes or 0 for entry in found),
        days=days,
    )


def written_in_all(found: Iterable[Entry]) -> int:
    """Return the bytes of these entries together."""
    return sum(entry.written_bytes for entry in found)
