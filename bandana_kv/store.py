"""What a user holds: rows by table and id, from DRAM or from blocks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from bandana_kv import adapters, manifest
from bandana_kv.advice import DEFAULT_DEPTH, depth_of, given_profile
from bandana_kv.arrays import let_go, map_array
from bandana_kv.cache.state import capacity_for
from bandana_kv.device import DeviceProfile
from bandana_kv.errors import (
    BandanaError,
    FormatError,
    IdError,
    InputError,
    TableNotFoundError,
)
from bandana_kv.failsafe import Deadline, FailSafe, checked_deadline
from bandana_kv.fallback import Source, check_tables, source_of
from bandana_kv.layout import Layout
from bandana_kv.packed import unpack, words_for
from bandana_kv.plan.allocate import allocate
from bandana_kv.policy import Policy, asked_policy
from bandana_kv.reader import BlockReader, StoredTable
from bandana_kv.table import ServedTable

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["EmbeddingStore", "open"]

DEFAULT_CACHE_BYTES = 64 << 20
_CHECKED_ROWS = 1 << 20

Fallback = Callable[[str, NDArray[np.int64]], NDArray[Any]]
"""A function of a table's name and ids (n,) that returns rows (n, dim)."""


class EmbeddingStore:
    """Embedding tables served from one version of a store; made by :func:`open`.

    Safe to use from many threads. Use it as a context manager, or call :meth:`close`.
    """

    def __init__(
        self,
        version: int,
        tables: Mapping[str, ServedTable],
        reader: BlockReader,
        resources: contextlib.ExitStack,
        deadline_ms: float | None,
    ) -> None:
        self._version = version
        self._deadline_ms = deadline_ms
        self._tables = dict(tables)
        self._reader = reader
        self._resources = resources
        self._closed = False
        self._executors: ThreadPoolExecutor | None = None
        self._executor_lock = threading.Lock()

    @property
    def version(self) -> int:
        """The version that is served."""
        return self._version

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(self._tables)

    def get(self, table: str, id: int) -> NDArray[Any]:
        """Return the row of one id: (dim,), of the table's dtype.

        Raises, and costs, as :meth:`multi_get` does.
        """
        row: NDArray[Any] = self.multi_get(table, [id])[0]
        return row

    @overload
    def multi_get(
        self, table: str, ids: ArrayLike, *, out: NDArray[Any] | None = None
    ) -> NDArray[Any]: ...

    @overload
    def multi_get(self, table: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]: ...

    def multi_get(
        self,
        table: str | Mapping[str, ArrayLike],
        ids: ArrayLike | None = None,
        *,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """Return rows, in the order of `ids`, repeats included.

        Parameters
        ----------
        table
            Name of the table; or ids by table name, and no `ids`.
        ids
            Integers (n,); an empty list is fine.
        out
            Where to put the rows: (n, dim), the table's dtype, C-contiguous.

        Returns
        -------
        ndarray or dict of ndarray
            (n, dim), the table's dtype; by table name where ids were given so.

        Raises
        ------
        TableNotFoundError
            Names the tables there are.
        IdError
            An id is out of range, negative, or not an integer; nothing was read.
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
        if isinstance(table, str):
            return self._rows(table, ids, out, deadline)
        if not isinstance(table, Mapping) or ids is not None or out is not None:
            raise InputError("give a table's name and ids, or ids by table name and nothing else")
        for name in table:
            self._served(name)
        return {
            name: self._rows(name, of_table, None, deadline) for name, of_table in table.items()
        }

    def _rows(
        self, table: str, ids: ArrayLike | None, out: NDArray[Any] | None, deadline: Deadline | None
    ) -> NDArray[Any]:
        served = self._served(table)
        wanted = _checked_ids(table, ids)
        rows = _checked_out(served, wanted.size, out)
        if wanted.size:
            flat = rows.view(np.uint8).reshape(wanted.size, served.stored.row_bytes)
            served.multi_get(self._reader, wanted, flat, deadline)
        return rows

    async def multi_get_async(
        self, table: str, ids: ArrayLike, *, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Return rows as :meth:`multi_get` does, without blocking the event loop.

        Cost: a hand-over to another thread and back, some 100 us.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._executor(), lambda: self.multi_get(table, ids, out=out)
        )

    def prefetch(self, table: str, ids: ArrayLike) -> None:
        """Begin to read the blocks of rows that will be asked for soon, and return at once.

        Parameters
        ----------
        table
            Name of the table.
        ids
            Integers (n,).

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
        served = self._served(table)
        wanted = _checked_ids(table, ids)
        if wanted.size:
            served.prefetch(self._reader, wanted)

    def _executor(self) -> ThreadPoolExecutor:
        """Return the threads that wait for lookups of event loops; made when first needed."""
        with self._executor_lock:
            if self._closed:
                raise InputError("the store is closed")
            if self._executors is None:
                self._executors = ThreadPoolExecutor(
                    self._reader.depth, thread_name_prefix="bandana-kv-async"
                )
            return self._executors

    def _served(self, table: str) -> ServedTable:
        if self._closed:
            raise InputError("the store is closed")
        served = self._tables.get(table)
        if served is None:
            raise TableNotFoundError(
                f"no table {table!r} in this store; it has {', '.join(map(repr, self._tables))}"
            )
        return served

    def stats(self) -> dict[str, dict[str, int]]:
        """Return counters since the store was opened, by table.

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

    def check(self) -> None:
        """Assert every invariant of the caches, and that cached rows equal stored ones.

        Raises
        ------
        AssertionError
            Says what is broken. Cost: reads the blocks of all cached rows.
        """
        for served in self._tables.values():
            served.check(self._reader)

    def close(self) -> None:
        """Wait for running reads, then release threads, files and engines."""
        with self._executor_lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        if self._executors is not None:
            self._executors.shutdown()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open(
    path: str | os.PathLike[str],
    cache_bytes: int | Mapping[str, int] | None = None,
    *,
    adapter: Adapter | None = None,
    policy: Policy | None = None,
    admission: str | None = None,
    threshold: int | None = None,
    readers: int | None = None,
    profile: DeviceProfile | str | os.PathLike[str] | None = None,
    fallback: EmbeddingStore | Source | Fallback | Mapping[str, Any] | None = None,
    deadline_ms: float | None = None,
    coalesce: bool = True,
) -> EmbeddingStore:
    """Open the newest version of the store at `path` for serving.

    Parameters
    ----------
    path
        A directory that :func:`bandana_kv.load` made.
    cache_bytes
        DRAM for cached rows and their bookkeeping. One number is shared out among the
        tables where it saves most block reads, as their logs' simulations say; by the bytes of
        the rows that their logs looked up where nothing was simulated. By default what each
        table's plan says, or 64 MiB where there is none.
    adapter
        The adapter on your own handles, for a store that was loaded through one.
    policy, admission, threshold
        Override the plan for all tables, as in :func:`bandana_kv.load`.
    readers
        Threads that read; with engines that read one block after the other in a thread,
        this is the queue depth that the device sees. By default the profile's.
    profile
        What ``tools/profile_device.py`` found on this device, or the path of it. By default
        what the store was loaded with; without any, 16 reads are in flight.
    fallback
        Where rows come from whose blocks are torn, missing, unreadable or late: another open
        store with the same rows, rows by key in an engine (:mod:`bandana_kv.adapters.rows`), a
        function ``(table, ids)`` that returns (n, dim), or one of these for each table by name.
        It stays yours to close. With it there is a circuit breaker: when a device fails again
        and again, misses go to the fallback for some seconds without being read.
    deadline_ms
        How long a lookup waits for the device, over all its tables. Blocks that come later are
        answered from the fallback, whose own time comes on top, or are a DeadlineError. Reads
        then are done by other threads, some 50 us more for each lookup that misses.
    coalesce
        Read a block once for a request. False reads one block for each missed row, which
        is what a store without blocks costs: a yardstick, without a deadline.

    Returns
    -------
    EmbeddingStore

    Raises
    ------
    StoreNotFoundError
        The path is mistyped, or holds no store; nothing is created.
    FormatError
        The store is damaged, or newer than this release.
    MissingExtraError
        The store's engine is not installed.
    InputError
        An option is wrong.

    Notes
    -----
    Cost: reads the id index once to check it (up to 5 bytes a row) and maps it; no row is read.
    Beside `cache_bytes`, the index is page cache that all processes share.
    """
    root = Path(path)
    override = asked_policy(policy, admission, threshold)
    advice = given_profile(profile)
    if readers is None:
        readers = depth_of(root, advice) if root.is_dir() else DEFAULT_DEPTH
    if not isinstance(readers, (int, np.integer)) or readers < 1:
        raise InputError(f"readers {readers!r} is not a whole number from 1 up")
    deadline_ms = checked_deadline(deadline_ms)
    if deadline_ms is not None and not coalesce:
        raise InputError("coalesce=False goes without a deadline")
    source = None if fallback is None else source_of(fallback)
    while True:
        current = manifest.read_current(root)
        try:
            return _open_version(
                root,
                current,
                cache_bytes,
                adapter,
                override,
                readers,
                coalesce,
                source,
                deadline_ms,
            )
        except BandanaError:
            # Two loads in a row drop the version that was current when the first began.
            if manifest.read_current(root).version == current.version:
                raise


def _open_version(
    root: Path,
    current: manifest.Manifest,
    cache_bytes: int | Mapping[str, int] | None,
    adapter: Adapter | None,
    override: Policy | None,
    readers: int,
    coalesce: bool,
    source: Source | None,
    deadline_ms: float | None,
) -> EmbeddingStore:
    shares = _shares(current, cache_bytes)
    check_tables(source, current.tables)
    with contextlib.ExitStack() as stack:
        engines = _engines(stack, root, current, adapter)
        tables = {
            name: _serve(root, name, entry, engines, shares[name], override, coalesce, source)
            for name, entry in current.tables.items()
        }
        reader = BlockReader(int(readers))
        stack.callback(reader.close)
        return EmbeddingStore(current.version, tables, reader, stack.pop_all(), deadline_ms)
    raise AssertionError  # an ExitStack does not swallow errors


def _engines(
    stack: contextlib.ExitStack, root: Path, current: manifest.Manifest, held: Adapter | None
) -> dict[tuple[int, int], Adapter]:
    """Open every engine that some table needs, by segment and pages of a block."""
    engines: dict[tuple[int, int], Adapter] = {}
    for table in current.tables.values():
        key = (table.segment, table.pages)
        if key in engines:
            continue
        segment = current.segments[table.segment]
        if segment.owned:
            path = manifest.engine_path(root, *key)
            engine = adapters.open_existing(segment.adapter, path, pages=table.pages)
            engines[key] = stack.enter_context(engine)
        elif held is None or held.name != segment.adapter:
            raise InputError(
                f"{root}: its blocks lie in a {segment.adapter} engine that you hold; "
                "pass adapter=, on the same handle that it was loaded through"
            )
        else:
            engines[key] = held
        expected = segment.payload_bytes[table.pages]
        if engines[key].payload_bytes != expected:
            raise InputError(
                f"{root}: loaded with blocks of {expected} bytes, this engine's are "
                f"{engines[key].payload_bytes}; open it with the engine it was loaded with"
            )
    return engines


def _serve(
    root: Path,
    name: str,
    entry: manifest.Table,
    engines: Mapping[tuple[int, int], Adapter],
    cache_bytes: int,
    override: Policy | None,
    coalesce: bool,
    source: Source | None,
) -> ServedTable:
    dtype = np.dtype(entry.dtype)
    row_bytes = entry.dim * dtype.itemsize
    stored = StoredTable(
        name,
        engines[entry.segment, entry.pages],
        entry.space,
        entry.rows,
        entry.copies,
        row_bytes,
        entry.rows_per_block,
    )
    mapped = partial(_mapped, root, entry)
    policy = override or entry.plan.policy_for(cache_bytes, row_bytes, entry.rows)
    return ServedTable(
        stored,
        dtype,
        entry.dim,
        _index(root, entry),
        Layout(
            entry.rows_per_block,
            mapped("heat", np.uint8, entry.rows),
            mapped("original-of", np.uint32, entry.copies, entry.rows),
            mapped("by-position", np.uint32, entry.copies, entry.copies),
        ),
        capacity_for(policy, cache_bytes, row_bytes, entry.rows),
        policy,
        fail_safe=FailSafe(name, source),
        coalesce=coalesce,
    )


def _index(root: Path, entry: manifest.Table) -> NDArray[np.uint64]:
    """Map the positions of ids; kernels trust them to lie within the table."""
    words = _mapped(root, entry, "positions", np.uint64, words_for(entry.rows))
    for first in range(0, entry.rows, _CHECKED_ROWS):
        part = unpack(words, entry.rows, first, min(_CHECKED_ROWS, entry.rows - first))
        if int(part.max()) >= entry.rows:
            path = manifest.table_file(root, entry.segment, entry.space, "positions")
            raise FormatError(f"{path}: a position lies beyond the table; load the table again")
    let_go(words)
    return words


def _mapped(
    root: Path,
    entry: manifest.Table,
    kind: str,
    dtype: DTypeLike,
    items: int,
    below: int | None = None,
) -> NDArray[Any]:
    """Map one of a table's files; what has no items has no file."""
    if items == 0:
        return np.zeros(0, dtype)
    path = manifest.table_file(root, entry.segment, entry.space, kind)
    return map_array(path, kind, dtype, items, below)


def _shares(
    current: manifest.Manifest, cache_bytes: int | Mapping[str, int] | None
) -> dict[str, int]:
    """Return the DRAM of each table."""
    tables = current.tables
    if isinstance(cache_bytes, Mapping):
        for name in cache_bytes:
            if name not in tables:
                raise InputError(f"cache_bytes names table {name!r}, which the store has not")
        return {name: _checked_bytes(cache_bytes.get(name, 0)) for name in tables}
    if cache_bytes is not None:
        return _shared_out(tables, _checked_bytes(cache_bytes))
    planned = {
        name: table.plan.choice.cache_bytes
        for name, table in tables.items()
        if table.plan.choice is not None
    }
    rest = {name: table for name, table in tables.items() if name not in planned}
    return planned | _shared_out(rest, DEFAULT_CACHE_BYTES)


def _shared_out(tables: Mapping[str, manifest.Table], total: int) -> dict[str, int]:
    """Share DRAM by the bytes that were looked up; among simulated tables, by what it saves."""
    used = {
        name: table.looked_up_rows * table.dim * np.dtype(table.dtype).itemsize
        for name, table in tables.items()
    }
    everything = max(1, sum(used.values()))
    shares = {name: total * part // everything for name, part in used.items()}
    curves = {
        name: curve
        for name, table in tables.items()
        if (curve := table.plan.curve(table.dim * np.dtype(table.dtype).itemsize, table.rows))
    }
    if len(curves) < 2:
        return shares
    # Without DRAM a lookup costs a read at most.
    whole = {name: [(0, float(tables[name].plan.lookups)), *curves[name]] for name in curves}
    return shares | allocate(whole, sum(shares[name] for name in curves))


def _checked_bytes(cache_bytes: int) -> int:
    if not isinstance(cache_bytes, (int, np.integer)) or cache_bytes < 0:
        raise InputError(f"cache_bytes {cache_bytes!r} is not a whole number from 0 up")
    return int(cache_bytes)


def _checked_ids(table: str, ids: ArrayLike | None) -> NDArray[np.integer[Any]]:
    if ids is None:
        raise InputError(f"table {table!r}: no ids given")
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError) as error:
        raise IdError(f"table {table!r}: ids are not an array of integers ({error})") from error
    if array.ndim != 1:
        raise InputError(f"table {table!r}: ids must be one-dimensional, not {array.shape}")
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise IdError(f"table {table!r}: ids must be integers, not {array.dtype}")
    if array.dtype not in (np.int64, np.int32, np.uint32):
        # Few dtypes reach the kernels, so that few are compiled.
        if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
            raise IdError(f"table {table!r}: id {array.max()} is out of range")
        array = array.astype(np.int64)
    return np.ascontiguousarray(array)


def _checked_out(served: ServedTable, count: int, out: NDArray[Any] | None) -> NDArray[Any]:
    shape = (count, served.dim)
    if out is None:
        return np.empty(shape, served.dtype)
    if (
        not isinstance(out, np.ndarray)
        or out.shape != shape
        or out.dtype != served.dtype
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        raise InputError(
            f"out must be a writeable C-contiguous array of shape {shape} and dtype {served.dtype}"
        )
    return out
