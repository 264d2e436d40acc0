"""Rows that change in place: into the journal and DRAM at once, into their blocks later."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk import budget, ledger, manifest, retention
from bandana_kv.disk.journal import Journal
from bandana_kv.disk.journal_files import Record, journal_files, read_records
from bandana_kv.disk.table_keys import keep_keys
from bandana_kv.errors import BandanaError, FormatError, InputError
from bandana_kv.serve.following import replay
from bandana_kv.serve.turns import Turns
from bandana_kv.system.durable import sync_directory
from bandana_kv.system.interrupts import safe_point

if TYPE_CHECKING:
    from bandana_kv.serve.reader import BlockReader
    from bandana_kv.serve.table import ServedTable
    from bandana_kv.serve.version import ServedVersion

__all__ = ["Updates"]

_log = logging.getLogger("bandana_kv")

# Updated rows in DRAM grow to this before they are written into blocks. The journal may be
# longer, since a row that changes often is in it often: what it takes is to be read at opening.
FLUSH_BYTES = 64 << 20
_JOURNAL_TIMES = 4
# Where writing blocks fails again and again, updates are refused from here on.
MOST_BYTES = 4 * FLUSH_BYTES
_RECORD_BYTES = 40  # of the journal, beside ids and rows


class Updates:
    """Takes the updates of a store; one process at a time has one.

    Parameters
    ----------
    root
        The store.

    Raises
    ------
    UpdateInProgressError, InputError, FormatError
        As :class:`~bandana_kv.disk.journal.Journal`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._journal = Journal(root)
        # Updates share; rotating the journal is alone, so that what was written to a file
        # before is in DRAM as well, where the flush finds it.
        self._turns = Turns()
        self._flushing = threading.Lock()
        # Held from what id a key has to that others see it: no two keys get one id.
        self._assigning = threading.Lock()
        self._flush_at = FLUSH_BYTES
        self.allowance = budget.Allowance(root)
        """What this process may still write."""
        self._meter = ledger.Meter()
        self._noted_bytes = 0
        self.block_bytes = 0
        """Bytes of blocks handed to engines."""

    @property
    def journal_bytes(self) -> int:
        """Bytes written to the journal."""
        return self._journal.written_bytes

    @property
    def journal_size_bytes(self) -> int:
        """Length of the journal now."""
        return self._journal.size_bytes

    def update(self, table: ServedTable, ids: NDArray[np.uint32], rows: NDArray[np.uint8]) -> None:
        """Make new rows, uint8 (n, row_bytes), durable, then serve them; ids are distinct."""
        self._turns.enter()
        try:
            self._write(table, ids, rows)
        finally:
            self._turns.leave()

    def upsert(
        self,
        table: ServedTable,
        words: NDArray[np.uint64],
        rows: NDArray[np.uint8],
        texts: Sequence[bytes],
    ) -> int:
        """Make rows of distinct keys durable, new ones among them, then serve them.

        `texts` are the keys as they were given, where they are no integers.

        Returns
        -------
        int
            0; or how many rows the table must have room for: it has not, and nothing was done.
        """
        self._turns.enter()
        try:
            with self._assigning:
                newest = table.newest
                assert newest.keys is not None
                ids, end = newest.keys.assigned(table.stored.name, words)
                if end > newest.stored.rows:
                    return end
                of_keys = ids.astype(np.uint32)
                self._write(table, of_keys, rows, words, texts, newest.keys.sequence)
                return 0
        finally:
            self._turns.leave()

    def delete(self, table: ServedTable, words: NDArray[np.uint64]) -> int:
        """Let distinct keys be in a table no more, durably; return how many of them were."""
        self._turns.enter()
        try:
            with self._assigning:
                newest = table.newest
                assert newest.keys is not None
                ids = newest.keys.ids_of(words)
                words, ids = words[ids >= 0], ids[ids >= 0]
                if ids.size:
                    of_keys, no_rows = ids.astype(np.uint32), np.empty((ids.size, 0), np.uint8)
                    self._write(table, of_keys, no_rows, words, (), newest.keys.sequence)
                return int(ids.size)
        finally:
            self._turns.leave()

    def _write(
        self,
        table: ServedTable,
        ids: NDArray[np.uint32],
        rows: NDArray[np.uint8],
        words: NDArray[np.uint64] | None = None,
        texts: Sequence[bytes] = (),
        after: int = 0,
    ) -> None:
        """Put an update into the journal, then serve it; see :meth:`Journal.append`."""
        key_bytes = 0 if words is None else words.nbytes + sum(4 + len(text) for text in texts)
        self.allowance.take(_RECORD_BYTES + ids.nbytes + rows.nbytes + key_bytes)
        space = table.stored.space
        sequence = self._journal.append(space, ids, rows, words, texts, after)
        table.take(Record(space, sequence, ids, rows, words, texts))

    @contextlib.contextmanager
    def blocks_held(self) -> Iterator[None]:
        """Be the only one who writes updated rows into blocks, or who keeps them out.

        Which placement of a table is served does not change meanwhile, but by the holder.
        """
        with self._flushing:
            yield

    def bookmark(self) -> tuple[int, int]:
        """Return where the journal ends; what is before that is in DRAM as well."""
        self._turns.take()
        try:
            return self._journal.end
        finally:
            self._turns.give_back()

    def switch(
        self,
        old: Mapping[str, ServedTable],
        new: Mapping[str, ServedTable],
        since: tuple[int, int],
        switch: Callable[[], None],
    ) -> None:
        """Change what is served, so that no update is lost on the way.

        Parameters
        ----------
        old, new
            The tables served before and after. Those of a key space that both have take over its
            updates: the ones made `since`, and those that meant the old table and come too late.
        since
            A :meth:`bookmark` from before the new tables were told of the journal.
        switch
            Called with no update under way; where it raises, nothing has changed.
        """
        before = {table.stored.space: table for table in old.values()}
        heirs = [
            (before[table.stored.space], table)
            for table in new.values()
            if before.get(table.stored.space, table) is not table
        ]
        # Updates are going to be for these tables: the version must not go away in a crash.
        sync_directory(self._root)
        self._turns.take()
        try:
            replay(self._root, [table for _, table in heirs], since)
            switch()
            for table, heir in heirs:
                table.hand_on(heir)
        finally:
            self._turns.give_back()

    def flush_if_full(
        self,
        serving: ServedVersion,
        inside: Callable[[], contextlib.AbstractContextManager[ServedVersion]],
        reader: BlockReader,
    ) -> None:
        """Write updated rows into their blocks if there are many.

        Parameters
        ----------
        serving
            The version that the caller is inside of.
        inside
            Enters the one that is served when nobody else writes into blocks.
        reader
            Of blocks.

        Raises
        ------
        BandanaError
            It failed, and there is no room for more updates.
        """
        held = self._held_bytes(serving)
        if held < self._flush_at or not self._flushing.acquire(blocking=held >= MOST_BYTES):
            return
        try:
            with inside() as now:
                if self._held_bytes(now) >= self._flush_at:
                    self.flush(now.tables, now, reader)
                    self._flush_at = FLUSH_BYTES
        except BandanaError:
            if held >= MOST_BYTES:
                raise
            self._flush_at = held + FLUSH_BYTES // 4
            _log.exception(
                "updated rows cannot be written into their blocks for now",
                extra={"event": "flush_failed", "version": serving.number, "held_bytes": held},
            )
        finally:
            self._flushing.release()

    def _held_bytes(self, serving: ServedVersion) -> int:
        overlays = sum(table.overlay_bytes for table in serving.tables.values())
        return max(self._journal.size_bytes // _JOURNAL_TIMES, overlays)

    def flush(
        self, tables: Mapping[str, ServedTable], serving: ServedVersion, reader: BlockReader
    ) -> None:
        """Write the updated rows of tables into their blocks, and empty the journal of them.

        Only with :meth:`blocks_held`.

        Parameters
        ----------
        tables
            Of `serving`, all or some.
        """
        current = manifest.current_number(self._root)
        if serving.number in retention.superseded(retention.readable(self._root), current):
            raise InputError(
                f"{self._root}: a table of version {serving.number} was placed anew, and its rows "
                "go into the new blocks; refresh() first"
            )
        self._turns.take()
        try:
            upto = self._journal.rotate()
            number = self._journal.number
        finally:
            self._turns.give_back()
        self._note_journal(serving.number)
        for name, table in tables.items():
            if table.overlay_bytes or (table.keys is not None and table.keys.unkept):
                safe_point()
                self._flush_table(name, table, serving, reader, upto)
        self._keep_others({table.stored.space for table in tables.values()}, number)
        self._journal.drop_before(number)

    def _flush_table(
        self, name: str, table: ServedTable, serving: ServedVersion, reader: BlockReader, upto: int
    ) -> None:
        wanted = table.bytes_to_flush(upto)
        self.allowance.take(wanted)
        meter = ledger.Meter()
        try:
            written = table.flush(reader, serving.writable(self._root, name), upto)
            self.block_bytes += written
            if table.keys is not None and table.keys.unkept:
                written += keep_keys(self._root, serving.manifest.tables[name], table.keys)
            ledger.note(self._root, meter.entry("flush", serving.number, (name,), written))
        finally:
            self.allowance.give_back(wanted)

    def _note_journal(self, version: int | None) -> None:
        """Note what went into the journal since the last time."""
        written = self._journal.written_bytes - self._noted_bytes
        if written:
            entry = self._meter.entry("update", version, (), written)
            # Meanwhile the kernel has counted flushes, and whatever else this process writes.
            ledger.note(self._root, msgspec.structs.replace(entry, device_bytes=None))
            self.allowance.give_back(written)
            self._noted_bytes += written
            self._meter = ledger.Meter()

    def _keep_others(self, flushed: set[int], number: int) -> None:
        """Write updates anew that are of tables which this process does not serve."""
        others = _spaces(self._root) - flushed
        for path in journal_files(self._root):
            if int(path.stem) < number:
                for record, _ in read_records(path):
                    if record.space in others:
                        self._journal.keep(record)

    def after_fork_in_child(self) -> None:
        """Leave updating to the parent."""
        self._journal.after_fork_in_child()

    def close(self) -> None:
        """Let other processes update. What is in the journal stays there."""
        self._note_journal(None)
        self._journal.close()


def _spaces(root: Path) -> set[int]:
    """Return the key spaces of all tables that some version has."""
    spaces = set()
    for version in manifest.numbers_in(root / "manifests"):
        with contextlib.suppress(FormatError):
            tables = manifest.read_version(root, version).tables.values()
            spaces |= {table.space for table in tables}
    return spaces
