"""What a user holds: rows by table and id, from DRAM or from blocks."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from bandana_kv.cache.policy import Policy
from bandana_kv.errors import InputError
from bandana_kv.logs.recording.recorder import Recorder
from bandana_kv.metrics import Metric
from bandana_kv.progress import Progress
from bandana_kv.serve.addressing import (
    addressed,
    by_number,
    distinct_keys,
    ids_to_prefetch,
    plain_ids,
    texts_of,
)
from bandana_kv.serve.arguments import (
    check_update_ids,
    checked_ids,
    checked_numbers,
    checked_out,
    checked_threads,
)
from bandana_kv.serve.bags import Bagged, How, Mode, pooled_of, pooled_of_tables
from bandana_kv.serve.current import Current
from bandana_kv.serve.event_loops import EventLoops, Request
from bandana_kv.serve.failsafe import Deadline
from bandana_kv.serve.forms import answer_into, raw_of
from bandana_kv.serve.handle import TableHandle
from bandana_kv.serve.metrics import Wear, metrics_of
from bandana_kv.serve.opener import Options
from bandana_kv.serve.preload import load_kernels
from bandana_kv.serve.reader import BlockReader
from bandana_kv.serve.recording import Recording
from bandana_kv.serve.replacement import Change, PlacedAnew
from bandana_kv.serve.requests import (
    Batch,
    named,
    raw_rows_of,
    rows_of,
    rows_of_batch,
    rows_of_tables,
    rows_or_missing,
)
from bandana_kv.serve.table import ServedTable
from bandana_kv.serve.watcher import Watcher
from bandana_kv.system.ending import PATIENCE_S, close_dropped, end_at_exit
from bandana_kv.system.forks import at_fork
from bandana_kv.system.interrupts import without_interrupts
from bandana_kv.system.weakly import calling
from bandana_kv.units import size_text

if TYPE_CHECKING:
    from bandana_kv.disk.placement import Placement
    from bandana_kv.disk.plan import TablePlan
    from bandana_kv.keys import ChangedKeys
    from bandana_kv.logs.access_log import AccessLog

__all__ = ["EmbeddingStore"]

WARM_SECONDS = 10.0

_ERROR = "error"

Again = tuple[Callable[..., "EmbeddingStore"], tuple[dict[str, Any]]]
"""A function that opens a store, and its arguments."""


class EmbeddingStore:
    """Embedding tables served from one version of a store at a time; made by :func:`open`.

    Safe to use from many threads. Use it as a context manager, or call :meth:`close`. A
    forked child goes on with the version of its parent; see :meth:`refresh`.
    """

    def __init__(self, options: Options, readers: int, deadline_ms: float | None) -> None:
        load_kernels()
        self._options = options
        self._deadline_ms = deadline_ms
        self._reader = BlockReader(readers)
        self._current = Current(options, self._reader)
        self._enter, self._inside = self._current.enter, self._current.inside
        self._closing = self._current.closing
        self._recording = Recording(self._current)
        self._wear = Wear(options.root)
        self._process = os.getpid()
        self._closing_lock = threading.Lock()
        self._loops = EventLoops(self._reader)
        with _stores_lock:
            _stores.add(self)
        end_at_exit(self)
        self._watcher: Watcher | None = None
        self._watch_seconds: float | None = None
        # What opens it in another process; None: nothing can.
        self._again: Again | None = None

    def opened_by(self, again: Again | None, watch_seconds: float | None) -> None:
        """Keep what opens it in another process; and follow other versions."""
        self._again = again
        self._watch_seconds = watch_seconds
        self._watch()

    def _watch(self) -> None:
        if self._watch_seconds is not None:
            follow, number = calling(self._follow, None), calling(self._number, 0)
            self._watcher = Watcher(self._watch_seconds, self._options.root, follow, number)

    def _number(self) -> int:
        return self.version

    def _follow(self) -> None:
        """Serve the current version, with what other processes updated; prepare the next one."""
        if self._current.is_behind():
            self.refresh()
        coming = self._options.versions.coming()
        if coming is None:
            self._current.unprepare()
        elif coming != self.version:
            self._current.prepare(coming, WARM_SECONDS)
            self._options.versions.prepared(coming)

    def after_fork_in_child(self) -> None:
        """Begin anew without threads: those of the parent do not exist here."""
        self._current.after_fork_in_child()
        self._recording.after_fork_in_child()
        self._options.totals.after_fork_in_child()
        self._options.versions.after_fork_in_child()
        self._closing_lock = threading.Lock()
        self._loops = EventLoops(self._reader)
        if self._options.elsewhere is not None and not self._closing.is_set():
            self._watch()  # there, whoever has a lease is waited for before a switch

    @property
    def version(self) -> int:
        """The version that is served."""
        return self._current.serving.number

    @without_interrupts()
    def refresh(
        self,
        *,
        warm: Mapping[str, ArrayLike] | None = None,
        warm_seconds: float = WARM_SECONDS,
    ) -> int:
        """Switch to the store's current version, if another one is served, and return it.

        The new version is opened and warmed beside the old one; then all calls that begin
        go to it. Those inside finish on the version that they began with, and the last one
        out closes it. No answer has rows of two versions, also where it is for several tables.

        Parameters
        ----------
        warm
            Ids by table: rows to bring into the new version's caches before the switch. For
            tables that are not named, the rows that the old version's cache holds now.
        warm_seconds
            Warm no longer than this; 0 switches with cold caches.

        Returns
        -------
        int
            The version that is served from now on.

        Raises
        ------
        InputError
            The store is closed, or an argument is wrong.
        StoreChangedError
            Another store is at the path now; so for updates, flushes and re-placements.
        StoreNotFoundError, FormatError, MissingExtraError, AdapterError, BlockCorruptError
            The new version cannot be opened, or a block of it not be read. The old one
            goes on being served, as after any failure here.

        Notes
        -----
        Tables that are in both versions go over as they are, with cache and counters; those
        of the others begin anew, and warming does not count. Where tables come or go, DRAM
        is shared out anew, and whose share changes begins anew too.

        Cost: reading a number where nothing has changed. Else what :func:`open` costs for
        the new tables, a look through the id index to learn which ids are cached, and one
        device read for each block with rows to warm. Until the last call has left the old
        version, both have their caches. A second caller waits for the first.
        """
        self._loops.hear()
        return self._current.refresh(warm or {}, warm_seconds)

    def has_news(self) -> bool:
        """Return whether another process has updated rows since the last :meth:`refresh`."""
        return self._current.has_news()

    @without_interrupts()
    def update(self, table: str, ids: ArrayLike, rows: ArrayLike) -> None:
        """Replace rows: durably and all or none, by the time this returns.

        Parameters
        ----------
        table
            Name of the table.
        ids
            Integers (n,), distinct.
        rows
            Numbers (n, dim), as an array of any dtype or as lists; cast to the table's dtype if
            that can hold each of them. Floats are rounded to the nearest that it has; integers
            must be in its range, and no finite number becomes infinite. Nor does a number change
            its kind: integers go into tables of floats, floats not into tables of integers.

        Raises
        ------
        TableNotFoundError, IdError
            As :meth:`multi_get`; nothing was updated. So for all errors here.
        InputError
            `rows` has another shape or kind of numbers, or one that the table's dtype cannot hold,
            which is named; an id occurs twice, the store is closed, or cannot be written to.
        UpdateInProgressError
            Another process updates this store: one at a time does, from its first update until it
            closes the store.
        WriteBudgetError
            More would be written in 24 hours than :func:`bandana_kv.set_write_budget` allows.
        DiskFullError, AdapterError
            The device has no room, or fails.

        Notes
        -----
        Lookups that begin afterwards get the new rows, from this store at once and from those of
        other processes after their next :meth:`refresh`. A row belongs to the version of its
        table: a load brings its own, and a rollback brings these back.

        Cost: one sequential write to the journal, of the rows and 44 bytes, and a sync that
        threads share. The rows wait in DRAM, and are answered from there. With 64 MiB of
        them, or 256 MiB of journal, :meth:`flush` is called by whoever updates next.
        """
        updates = self._current.updating()
        serving = self._enter()
        try:
            served = named(serving, table)
            asked = checked_ids(table, ids) if served.keys is None else plain_ids(served, ids)[0]
            check_update_ids(table, served.stored.rows, asked)
            wanted = asked.astype(np.uint32)
            numbers = checked_numbers(table, asked, served.dim, served.dtype, rows)
            if wanted.size:
                new = raw_of(served, asked, numbers)
                updates.update(served, wanted, new)
                updates.flush_if_full(serving, self._inside, self._reader)
        finally:
            # By a single step: Ctrl-C at the beginning of a function would leave it inside.
            serving.inside.pop()
            if serving.retired:
                serving.close_if_empty()

    @without_interrupts()
    def upsert(self, table: str, keys: ArrayLike, rows: ArrayLike) -> None:
        """Replace the rows of keys, and add those of new keys: durably and all or none.

        Parameters
        ----------
        table
            Name of a table that was loaded with keys.
        keys
            (n,), distinct, of the kind of the table's.
        rows
            Numbers (n, dim), as :meth:`update` takes them.

        Raises
        ------
        InputError
            The table has no keys; else as :meth:`update`, as all that is raised here.
        IdError
            They are no keys of the table's kind.
        LoadInProgressError
            The table has to grow, and somebody loads.

        Notes
        -----
        New rows get the next free ids, and lie together with those that were added just before;
        a re-placement (:meth:`place_anew`) puts them where they are asked for. What room there is,
        :func:`bandana_kv.load`'s `spare` says. A table that is full grows by an eighth: as a new
        version, as :meth:`place_anew` makes one, with the blocks that are added, and the index.

        Cost: as :meth:`update`, and 8 bytes a key in the journal, 16 of text and bytes; one
        caller at a time. Of each new key 32 to 96 bytes of DRAM, until the table is loaded again.
        """
        updates = self._current.updating()
        room = 0
        while True:
            if room:
                self._current.grow(table, room)
            with self._inside() as serving:
                served = named(serving, table)
                given, words = distinct_keys(served, keys)
                numbers = checked_numbers(table, given, served.dim, served.dtype, rows, "key")
                if not given:
                    return
                raw = raw_of(served, given, numbers, "key")
                room = updates.upsert(served, words, raw, texts_of(given, words))
                if not room:
                    updates.flush_if_full(serving, self._inside, self._reader)
                    return

    @without_interrupts()
    def delete(self, table: str, keys: ArrayLike) -> int:
        """Take keys out of a table, durably and all or none; return how many of them it had.

        Parameters
        ----------
        table
            Name of a table that was loaded with keys.
        keys
            (n,), distinct. Those that the table has not are left out.

        Raises
        ------
        InputError, IdError
            As :meth:`upsert`, as all that is raised here.

        Notes
        -----
        Lookups that begin afterwards find no such keys. No other key gets the ids, so that nobody
        who looks them up meanwhile is answered with another's row; the space comes back when the
        table is loaded again. Cost: as :meth:`upsert`, without rows.
        """
        updates = self._current.updating()
        with self._inside() as serving:
            served = named(serving, table)
            given, words = distinct_keys(served, keys)
            deleted = updates.delete(served, words) if given else 0
            updates.flush_if_full(serving, self._inside, self._reader)
            return deleted

    @without_interrupts()
    def flush(self) -> None:
        """Write all updated rows into their blocks, each block once, and empty the journal.

        Raises
        ------
        UpdateInProgressError, InputError, WriteBudgetError, DiskFullError, AdapterError
            As :meth:`update`. Rows that are not in their blocks stay in the journal.
        BlockCorruptError, BlockMissingError
            A block cannot be read, and so not be written again; see ``tools/verify_store.py``.

        Notes
        -----
        Cost: for each block with updated rows one device read and one write. Lookups go on.
        """
        self._current.flush()

    @without_interrupts()
    def place_anew(
        self,
        table: str,
        placement: Placement,
        *,
        plan: TablePlan | None = None,
        log: AccessLog | None = None,
        progress: Progress | None = None,
    ) -> PlacedAnew:
        """Change where a table's rows lie, while they are served; nothing of them changes.

        Blocks whose rows change are written beside those there are, then one rename makes a new
        version current, and this process serves it at once, with the rows in its cache as they
        are. Others follow by :meth:`refresh`.

        Parameters
        ----------
        table
            Name of the table.
        placement
            Of as many rows, as many a block, as :meth:`placement` says. Where it has no
            `replicas`, second copies stay as they are; an empty array takes them away.
        plan
            How the table's cache is run from now on; by default as now.
        log
            The log that the placement was learnt from, for the heat of the rows; by default each
            keeps what it has.
        progress
            Told of the blocks.

        Returns
        -------
        PlacedAnew
            The new version, and what was written for it.

        Raises
        ------
        TableNotFoundError
            Names the tables there are.
        InputError
            The placement does not fit, another version is current than is served, or the store
            is closed.
        UpdateInProgressError
            Another process updates this store.
        LoadInProgressError
            Somebody loads.
        WriteBudgetError
            More would be written in 24 hours than :func:`bandana_kv.set_write_budget` allows.
        DiskFullError, AdapterError, BlockCorruptError, BlockMissingError
            The device has no room or fails, or a block that is to move cannot be read.

        Notes
        -----
        After an error the version before goes on being served, and nothing is lost. It cannot be
        rolled back to after a success: updates go into the new blocks only. To go back, keep what
        :meth:`placement` says and place anew once more.

        Cost: each block whose rows change, in their order, is written once, and the index beside
        them (5 bytes a row, 8 a block); blocks that rows come from are read once for every 256 MiB
        of what is written. Memory: 25 bytes a row, 300 MiB, and until the last call has left
        the version before, the table's cache twice. Updates go on, and wait in DRAM.
        """
        change = Change(table, placement, plan, log)
        return self._current.place_anew(change, progress or Progress())

    def placement(self, table: str) -> Placement:
        """Return where the table's rows lie in the version that is served.

        Raises
        ------
        TableNotFoundError, InputError
            As :meth:`multi_get`.

        Notes
        -----
        Cost: a pass over the index of ids; 4 bytes a row, with second copies 8.
        """
        with self._inside() as serving:
            return named(serving, table).placement(serving.manifest.tables[table].placement)

    def plan(self, table: str) -> TablePlan:
        """Return the plan by which the table was loaded, or placed anew."""
        with self._inside() as serving:
            named(serving, table)
            return serving.manifest.tables[table].plan

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(self._tables)

    def __contains__(self, table: object) -> bool:
        return table in self._tables

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __getitem__(self, table: str) -> TableHandle:
        """Return a handle of one table; TableNotFoundError names the tables there are."""
        self._served(table)
        return TableHandle(self, table)

    def __repr__(self) -> str:
        root, state = self._options.root, "closed" if self._closing.is_set() else "open"
        tables = ", ".join(
            f"{name} {served.rows} x {served.dim} {served.dtype}"
            for name, served in self._tables.items()
        )
        cache = size_text(self.cache_bytes)
        return f"<store at {root} ({state}), version {self.version}: {tables}; cache {cache}>"

    def __reduce__(self) -> Again:
        """Pickle how it was opened: it is opened anew, on the version that is current then."""
        if self._again is None:
            raise InputError(
                f"the store at {self._options.root} was opened with an adapter on handles of this "
                "process: open it by its path, or open it in the other process"
            )
        return self._again

    @property
    def _tables(self) -> Mapping[str, ServedTable]:
        return self._current.serving.tables

    def get(self, table: str, id: int) -> NDArray[Any]:
        """Return the row of one id: (dim,), of the table's dtype.

        Raises, and costs, as :meth:`multi_get` does.
        """
        if np.ndim(id):
            raise InputError(f"table {table!r}: get is for one id, multi_get for several")
        row: NDArray[Any] = self.multi_get(table, [id])[0]
        return row

    @overload
    def multi_get(
        self,
        table: str,
        ids: ArrayLike,
        *,
        out: NDArray[Any] | None = None,
        dtype: DTypeLike | None = None,
        missing: Literal["error", "zeros"] | NDArray[Any] | Sequence[float] = "error",
    ) -> NDArray[Any]: ...

    @overload
    def multi_get(
        self,
        table: str,
        ids: ArrayLike,
        *,
        out: NDArray[Any] | None = None,
        dtype: DTypeLike | None = None,
        missing: Literal["mask"],
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]: ...

    @overload
    def multi_get(self, table: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]: ...

    def multi_get(
        self,
        table: str | Mapping[str, ArrayLike],
        ids: ArrayLike | None = None,
        *,
        out: NDArray[Any] | None = None,
        dtype: DTypeLike | None = None,
        missing: str | NDArray[Any] | Sequence[float] = "error",
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.bool_]] | dict[str, NDArray[Any]]:
        """Return rows, in the order of `ids`, repeats included.

        Parameters
        ----------
        table
            Name of the table; or ids by table name, and no `ids`.
        ids
            Integers of any shape, an empty list is fine; or keys, of a table that was loaded with
            them: integers, str or bytes.
        out
            Where to put the rows: ``ids.shape + (dim,)``, C-contiguous, of the table's dtype or
            another that `dtype` may be.
        dtype
            In which dtype to answer: the table's, or of a table of floats float32 or float16;
            by default that of `out`, or the table's.
        missing
            What to answer for ids beyond the table, -1 among them, or keys that it has not:
            ``"error"``; ``"zeros"``; a row (dim,); or ``"mask"``: zeros, and besides the rows which
            of them are there.

        Returns
        -------
        ndarray or dict of ndarray
            ``ids.shape + (dim,)``, the table's dtype; by table name where ids were given so. With
            ``missing="mask"`` also booleans, ``ids.shape``.

        Raises
        ------
        TableNotFoundError
            Names the tables there are.
        IdError
            An id is out of range, negative, or not an integer, or a key is not in the table;
            nothing was read.
        InputError
            `ids` or `out` has another shape or type, or the store is closed.
        BlockCorruptError, BlockMissingError, AdapterError
            The device or the engine failed; names table and block. Never a wrong row.
        DeadlineError
            Blocks did not arrive within the store's `deadline_ms`.
        RowMissingError, FallbackError
            There is a fallback, and it could not answer either.

        Notes
        -----
        Cost: rows in DRAM cost one kernel call, without the GIL. The others cost one
        device read per distinct block, in parallel slices; a block that another thread
        is reading already is waited for, not read again.
        """
        deadline = None if self._deadline_ms is None else Deadline.after(self._deadline_ms)
        note = self._recording.note
        serving = self._enter()
        try:
            error = missing is _ERROR or (isinstance(missing, str) and missing == _ERROR)
            if error and isinstance(table, str):
                return rows_of(serving, self._reader, table, ids, out, dtype, deadline, note)
            if isinstance(table, str):
                return rows_or_missing(
                    serving, self._reader, table, ids, missing, out, dtype, deadline, note
                )
            others = ids is not None or out is not None or dtype is not None or not error
            if not isinstance(table, Mapping) or others:
                raise InputError(
                    "give a table's name and ids, or ids by table name and nothing else"
                )
            return rows_of_tables(serving, self._reader, table, deadline, note)
        finally:
            # By a single step: Ctrl-C at the beginning of a function would leave it inside.
            serving.inside.pop()
            if serving.retired:
                serving.close_if_empty()

    def rows_at(
        self, table: str, ids: ArrayLike, *, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Return rows by their numbers from 0, also of a table that is asked by keys.

        Everything else is as with :meth:`multi_get`.
        """
        deadline = None if self._deadline_ms is None else Deadline.after(self._deadline_ms)
        note = self._recording.note
        with self._inside() as serving:
            return rows_of(serving, self._reader, table, ids, out, None, deadline, note, by_number)

    def keys(self, table: str) -> NDArray[Any] | None:
        """Return the keys of a table's rows in their order; None: it is asked by ids.

        int64 or uint64 (rows,); of text and bytes the 128 bits that stand for them, uint64
        (rows, 2). Cost: a pass over the index of keys.

        Raises
        ------
        TableNotFoundError, FormatError
            As :meth:`multi_get`; or the index is damaged.
        """
        index = self._served(table).keys
        return None if index is None else index.keys_in_order()

    def row_numbers(self, table: str) -> NDArray[np.int64]:
        """Return the numbers of a table's rows, rising, int64 (rows,): what `rows_at` takes.

        They are 0 to rows - 1, but where keys were deleted. In the order of :meth:`keys`.

        Raises
        ------
        TableNotFoundError, InputError
            As :meth:`multi_get`. Cost: 8 bytes a row.
        """
        served = self._served(table)
        return np.arange(served.rows) if served.keys is None else served.keys.live_ids()

    def key_changes(self, table: str) -> ChangedKeys | None:
        """Return which row each key of a table is, as it is served; None: it is asked by ids."""
        return self._served(table).keys

    def multi_get_raw(self, table: str, ids: ArrayLike) -> NDArray[np.uint8]:
        """Return rows as they are stored: with :func:`bandana_kv.load`'s `store_as`, encoded.

        Parameters
        ----------
        table, ids
            As :meth:`multi_get` takes them.

        Returns
        -------
        ndarray
            uint8, ``ids.shape + (row_bytes,)``; what the bytes are, `bandana_kv.codecs` says.

        Raises
        ------
        InputError, TableNotFoundError, IdError, BlockCorruptError, AdapterError, DeadlineError
            As :meth:`multi_get`. Cost: as there.
        """
        deadline = None if self._deadline_ms is None else Deadline.after(self._deadline_ms)
        note = self._recording.note
        with self._inside() as serving:
            return raw_rows_of(serving, self._reader, table, ids, deadline, note)

    def batch(self, tables: Sequence[str]) -> Batch:
        """Prepare requests to the same tables in the same order, again and again.

        Parameters
        ----------
        tables
            Their names, distinct.

        Returns
        -------
        Batch
            Its ``multi_get(ids, offsets)`` costs no Python for each table.

        Raises
        ------
        TableNotFoundError, InputError
            As :meth:`multi_get`.
        """
        names = tuple(tables)
        if not names or len(set(names)) < len(names):
            raise InputError(f"a batch is of one or more tables, each once, not {names!r}")
        for name in names:
            self._served(name)
        return Batch(self._batch_rows, names)

    def _batch_rows(
        self,
        names: tuple[str, ...],
        ids: ArrayLike,
        offsets: ArrayLike,
        out: NDArray[Any] | Sequence[NDArray[Any]] | None,
    ) -> NDArray[Any] | list[NDArray[Any]]:
        deadline = None if self._deadline_ms is None else Deadline.after(self._deadline_ms)
        note = self._recording.note
        serving = self._enter()
        try:
            return rows_of_batch(serving, self._reader, names, ids, offsets, out, deadline, note)
        finally:
            # By a single step: Ctrl-C at the beginning of a function would leave it inside.
            serving.inside.pop()
            if serving.retired:
                serving.close_if_empty()

    @overload
    def embedding_bag(
        self,
        table: str,
        ids: ArrayLike,
        offsets: ArrayLike | None = None,
        mode: Mode = "mean",
        *,
        per_sample_weights: ArrayLike | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]: ...

    @overload
    def embedding_bag(
        self,
        table: Mapping[str, Bagged],
        *,
        mode: Mode = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        out: Mapping[str, NDArray[Any]] | None = None,
        threads: int = 1,
    ) -> dict[str, NDArray[Any]]: ...

    def embedding_bag(
        self,
        table: str | Mapping[str, Bagged],
        ids: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
        mode: Mode = "mean",
        *,
        per_sample_weights: ArrayLike | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        out: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
        threads: int = 1,
    ) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """Return rows that are pooled by bags, as PyTorch's ``embedding_bag`` does.

        Parameters
        ----------
        table
            Name of the table; or (ids, offsets) or (ids, offsets, per_sample_weights) by table
            name, and none of these besides: all tables are asked at once.
        ids
            Integers (n,) with `offsets`, or (bags, n) without; or keys, as :meth:`multi_get`.
        offsets
            Integers (bags,): where each bag begins in `ids`; with `include_last_offset` also where
            the last one ends. None for ids (bags, n).
        mode
            ``"mean"``, ``"sum"`` or ``"max"``.
        per_sample_weights
            Floats, of the shape of `ids`: what each row is multiplied by; with ``"sum"`` alone.
        include_last_offset
            See `offsets`.
        padding_idx
            This id counts for nothing, not even in a mean, and is not looked up. A negative one
            counts from the end of the table; of a table that is asked by keys it is a key.
        out
            Where to put the rows: (bags, dim), of the table's dtype or another that `dtype` of
            :meth:`multi_get` may be; of several tables, by table name, for as many as you like.
        threads
            How many threads may share a request to several tables, if it is large: of tens of
            thousands of rows.

        Returns
        -------
        ndarray or dict of ndarray
            (bags, dim), of the table's dtype. A bag without ids gives zeros.

        Raises
        ------
        InputError, TableNotFoundError, IdError, BlockCorruptError, AdapterError, DeadlineError
            As :meth:`multi_get`; or the rows are no floats, or an argument is wrong. What `out`
            has after an error is not defined.

        Notes
        -----
        Rows are added in the order of the ids, from zero, in float32, those of float64 in
        float64: equal, bit for bit, to the same additions over what :meth:`multi_get` returns.
        All is as PyTorch 2.13 has it on processors: a mean is the sum divided by the count; a
        weight is multiplied and added with one rounding (fused), but with two in float64, and
        where there is a `padding_idx`; the largest of numbers with NaN among them is NaN if the
        first is. Rows of float16 are added in float32 and rounded once, at the end, and so is what
        goes into an `out` of fewer bits: there PyTorch's own means, and sums of bfloat16, may
        differ in the last bit.

        Cost: as of :meth:`multi_get`, but a row that DRAM holds, or its block, is added from where
        it lies. Only bags of which some rows are in DRAM and others are not have the former copied
        aside meanwhile.
        """
        how = How(mode, include_last_offset, padding_idx)
        deadline = None if self._deadline_ms is None else Deadline.after(self._deadline_ms)
        note, reader, weights = self._recording.note, self._reader, per_sample_weights
        serving = self._enter()
        try:
            if isinstance(table, str) and not isinstance(out, Mapping):
                return pooled_of(
                    serving, reader, table, ids, offsets, weights, how, out, deadline, note
                )
            others = any(each is not None for each in (ids, offsets, weights))
            outs = {} if out is None else out
            if not isinstance(table, Mapping) or not isinstance(outs, Mapping) or others:
                raise InputError(
                    "give a table's name, ids and offsets; or (ids, offsets) or (ids, offsets, "
                    "weights) by table name, and out by table name"
                )
            return pooled_of_tables(
                serving, reader, table, how, outs, deadline, note, checked_threads(threads)
            )
        finally:
            # By a single step: Ctrl-C at the beginning of a function would leave it inside.
            serving.inside.pop()
            if serving.retired:
                serving.close_if_empty()

    @without_interrupts()
    def record(
        self,
        path: str | os.PathLike[str],
        sample: float = 1.0,
        *,
        max_bytes: int = 1 << 30,
        file_bytes: int = 64 << 20,
        burst: int = 4096,
    ) -> Recorder:
        """Record requests from now on, to learn from them: an access log, while serving.

        Parameters
        ----------
        path
            A directory of its own; made if it is not there. What was recorded there before stays,
            as far as there is room.
        sample
            Share of the requests: of each cycle a burst of consecutive ones.
        max_bytes, file_bytes
            Of all files, and of one. The oldest files make room for new ones.
        burst
            Requests of a burst. The longer it is, the better a replay of what was recorded tells
            block reads; the seldomer it comes.

        Returns
        -------
        Recorder
            Close it to end; closing the store does so too. It is a context manager, and has
            ``metrics()``.

        Raises
        ------
        InputError
            An argument is wrong, the directory cannot be written to, holds something else or is
            recorded to by somebody else; or this store records already, or is closed.
        ThreadError
            No thread could be started; nothing is recorded.

        Notes
        -----
        :func:`bandana_kv.logs.recording.read_recording` reads it back, and so does
        :meth:`bandana_kv.AccessLog.read`. Recorded are lookups that were answered, by table. Ids
        take 4 bytes a lookup. A crash of the process loses half a second, one of the machine
        what the kernel had not written. Where the device cannot follow, and where files cannot be
        written any more, requests are dropped and counted, and lookups go on. A forked child does
        not record.

        Cost: a microsecond or two a request, and a thread that writes twice a second; 64 MiB of
        memory at most.
        """
        return self._recording.begin(Path(path), sample, max_bytes, file_bytes, burst)

    async def multi_get_async(
        self, table: str, ids: ArrayLike, *, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Return rows as :meth:`multi_get` does, without blocking the event loop.

        `out` is written when this returns, and not at all where it is cancelled or fails.

        Raises
        ------
        InputError, TableNotFoundError, IdError, BlockCorruptError, AdapterError, DeadlineError
            As :meth:`multi_get`.

        Notes
        -----
        Any number of requests may be pending, of any number of loops that can watch a descriptor
        (``add_reader``), and cancelled; what a cancelled one has begun to read still goes into the
        cache. Closing the store answers those that are pending, and waits for that.

        Cost: what DRAM holds is answered at once, on the loop's thread. For the rest, one thread
        reads for all loops of the store, where reads of the engine can be begun without waiting:
        of ``blockfile`` with io_uring. With other engines, a deadline or a fallback a few threads
        do, as many as `readers`, a request each.
        """
        serving, request = self._enter(), None
        try:
            served = named(serving, table)
            wanted, shape = addressed(served, ids)
            if out is not None:
                checked_out((*shape, served.dim), served.dtype, out)
            flat = np.empty((wanted.size, served.row_bytes), np.uint8)
            asked = served.ask(wanted, flat) if wanted.size else None
            if asked is not None:
                ms = self._deadline_ms
                deadline = None if ms is None else Deadline.after(ms)
                request = Request(serving, served, wanted, *asked, flat, deadline)
                await self._loops.answer(request)
        finally:
            if request is None or not request.taken:
                serving.leave()
        if wanted.size:
            note = self._recording.note
            if note is not None:
                note(table, wanted)
        rows = np.empty((*shape, served.dim), served.dtype) if out is None else out
        answer_into(served, flat, rows.reshape(wanted.size, served.dim))
        return rows

    @without_interrupts()
    def prefetch(
        self, table: str, ids: ArrayLike, *, missing: Literal["error", "skip"] = "error"
    ) -> None:
        """Begin to read the blocks of rows that will be asked for soon, and return at once.

        Parameters
        ----------
        table
            Name of the table.
        ids
            Integers of any shape, or keys, as :meth:`multi_get` takes them.
        missing
            Of ids or keys that the table has not: ``"error"``, or ``"skip"``.

        Raises
        ------
        TableNotFoundError, IdError, InputError
            As :meth:`multi_get`. A read that fails is not reported here: the lookup that
            needs the block reads it again, and says what is wrong.

        Notes
        -----
        The blocks wait outside the cache, 1,024 a table at most, until a lookup takes them or
        later ones crowd them out. A block counts as read when it arrives.
        """
        serving, turns = self._enter(), itertools.count()

        def leave() -> None:
            if not next(turns):  # once, although an exception may come when it is over already
                serving.leave()

        try:
            served = named(serving, table)
            wanted = ids_to_prefetch(served, ids, missing)
            if not wanted.size or not served.prefetch(self._reader, wanted, leave):
                leave()
        except BaseException:
            leave()
            raise

    def _served(self, table: str) -> ServedTable:
        if self._closing.is_set():
            raise InputError("the store is closed")
        return named(self._current.serving, table)

    def stats(self) -> dict[str, dict[str, int]]:
        """Return counters by table, since it was opened: by :func:`open`, or :meth:`refresh`.

        Returns
        -------
        dict
            By table name: ``lookups``, ``hits`` (answered from DRAM), ``block_reads``,
            ``neighbours_admitted``, ``neighbours_hit`` (first lookups of rows that came
            along with another's read), ``copies_read`` (missed rows that were read from
            their second copy), ``bytes_read`` (block reads x payload), ``bad_blocks`` and
            ``late_blocks`` (that did not come, once for each request that wanted them),
            ``fallback_rows`` (answered from the fallback), ``breaker_open`` (1 while misses go
            to the fallback unread) and ``breaker_openings``.
        """
        return {name: served.stats() for name, served in self._tables.items()}

    def metrics(self) -> list[Metric]:
        """Return what the store says of itself, for whoever exports or logs it.

        Returns
        -------
        list of Metric
            By table, with the label ``table``: the counters of :meth:`stats`, how many requests
            were made, what those took that had to wait for blocks; rows in DRAM, updates
            that are not in blocks, and what the plan predicts, where this is the DRAM that it was
            made for. Of the store: its version, what updates wrote, what the ledger says of
            the last 24 hours.

        Notes
        -----
        Counters only rise from :func:`open` on: also where another version is served meanwhile,
        and those of a table that is not in it stay. A forked child goes on from its parent's.

        Cost: some 0.1 ms a table; the ledger is read once in ten seconds. No block is read.
        """
        current, totals = self._current, self._options.totals.by_table()
        return metrics_of(current.serving, totals, current.updates, self._wear)

    @property
    def cache_bytes(self) -> int:
        """DRAM that the caches take when full, rows and bookkeeping."""
        return sum(served.cache_bytes for served in self._tables.values())

    def policy(self, table: str) -> Policy:
        """Return how the table's cache is run."""
        return self._served(table).policy

    def capacity_rows(self, table: str) -> int:
        """Return how many rows the table's cache holds when full."""
        return self._served(table).capacity_rows

    def shape(self, table: str) -> tuple[int, int]:
        """Return how many rows the table has, and how many numbers a row."""
        served = self._served(table)
        return served.rows, served.dim

    def dtype(self, table: str) -> np.dtype[Any]:
        """Return the dtype of the table's rows."""
        return self._served(table).dtype

    @property
    def has_fallback(self) -> bool:
        """Whether rows of bad blocks come from a fallback."""
        return self._options.source is not None

    def check(self) -> None:
        """Assert every invariant of the caches, and that cached rows equal stored ones.

        Raises
        ------
        AssertionError
            Says what is broken. Cost: reads the blocks of all cached rows.
        """
        with self._inside() as serving:
            for served in serving.tables.values():
                served.check(self._reader)

    def close(self) -> None:
        """Wait for calls inside, then release threads, files and engines.

        A store that is dropped without it is closed, with a ResourceWarning; and so are those that
        are open when the interpreter ends, where calls that are under way have five seconds.
        """
        self._close(None)

    def end(self) -> None:
        """Close it at the end of the interpreter, without waiting for a device that hangs."""
        self._close(PATIENCE_S)

    def __del__(self) -> None:
        if hasattr(self, "_process") and not self._closing.is_set():
            if self._process == os.getpid():
                close_dropped(f"the store at {self._options.root}", self.close)
            else:
                self.close()  # a child of the process that opened it has done with it

    @without_interrupts()
    def _close(self, patience_s: float | None) -> None:
        with self._closing_lock:
            if self._closing.is_set():
                return
            self._closing.set()
        if self._watcher is not None:
            self._watcher.stop()
        self._loops.close(patience_s)
        self._recording.close()
        self._current.close(patience_s)
        self._options.versions.close()
        self._loops.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


_stores_lock = threading.Lock()
_stores: weakref.WeakSet[EmbeddingStore] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    _stores_lock.release()
    for store in _stores:
        store.after_fork_in_child()


at_fork(
    "stores",
    before=_stores_lock.acquire,
    in_parent=_stores_lock.release,
    in_child=_after_fork_in_child,
)
