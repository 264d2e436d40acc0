"""What is in the journal, served: at opening, and when another process has written to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bandana_kv.disk.journal_files import Record, journal_files, read_records
from bandana_kv.errors import FormatError

if TYPE_CHECKING:
    from bandana_kv.serve.table import ServedTable

__all__ = ["Follower", "replay"]


def replay(root: Path, tables: Iterable[ServedTable], since: tuple[int, int] = (0, 0)) -> None:
    """Serve what the journal has of these tables. Doing so twice changes nothing.

    Parameters
    ----------
    root
        The store.
    tables
        That are to serve it.
    since
        Where to begin: the number of a file of the journal, and an offset in it.

    Raises
    ------
    FormatError
        The journal is damaged.
    """
    by_space = {table.stored.space: table for table in tables}
    number, offset = since
    for path in journal_files(root):
        if int(path.stem) < number:
            continue
        start = offset if int(path.stem) == number else 0
        with contextlib.suppress(FileNotFoundError):  # it has just gone into blocks
            for record, _ in read_records(path, start):
                table = by_space.get(record.space)
                if table is not None:
                    _check_record(path, table, record)
                    table.take(record)


def _check_record(path: Path, table: ServedTable, record: Record) -> None:
    stored = table.stored
    fits = record.deletes or record.rows.shape[1] == stored.row_bytes
    if record.words is None:
        fits = fits and int(record.ids.max()) < stored.rows
    else:  # of which some may be beyond a table that is about to be served with more room
        fits = fits and table.keys is not None and table.keys.takes(record.words)
    if not fits:
        raise FormatError(
            f"{path}: has an update that does not fit table {stored.name!r}; restore it from a "
            "backup"
        )


class Follower:
    """Notices what another process writes to the journal.

    Parameters
    ----------
    root
        The store.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen = self._files()

    def _files(self) -> dict[int, int]:
        found = {}
        for path in journal_files(self._root):
            with contextlib.suppress(FileNotFoundError):
                found[int(path.stem)] = path.stat().st_size
        return found

    def has_news(self) -> bool:
        """Return whether something was written since :meth:`catch_up`, or came into blocks."""
        return self._files() != self._seen

    def catch_up(self, tables: Iterable[ServedTable]) -> bool:
        """Serve what is new; False: some of it is in blocks by now, which must be opened anew."""
        files = self._files()
        if files == self._seen:
            return True
        whole = not _shortened(self._seen, files)
        if whole:
            replay(self._root, tables)
            # What went into blocks before it was replayed is not served either.
            whole = not _shortened(files, self._files())
        self._seen = files
        return whole


def _shortened(before: Mapping[int, int], now: Mapping[int, int]) -> bool:
    """Return whether updates went into blocks since, or were cut off after a failure."""
    gone = min(now, default=0) > min(before, default=1)
    return gone or any(size < before.get(number, 0) for number, size in now.items())
