"""Extract, load, compare: only then is the new version served."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.device.advice import given_profile
from bandana_kv.disk import ledger
from bandana_kv.disk.manifest import Manifest
from bandana_kv.errors import InputError
from bandana_kv.load.jobs import held_adapter
from bandana_kv.load.loader import load
from bandana_kv.migration.comparison import Compared, compare, expected_digests
from bandana_kv.migration.extraction import Reading
from bandana_kv.migration.staging import Staging, staged
from bandana_kv.progress import Progress
from bandana_kv.system.durable import disk_full_named
from bandana_kv.system.permission import permission_named
from bandana_kv.system.threads import threads_named

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter
    from bandana_kv.adapters.rows import KeyedRows
    from bandana_kv.device import DeviceProfile
    from bandana_kv.disk.plan import Plan
    from bandana_kv.logs.access_log import AccessLog

__all__ = ["Migrated", "migrate"]

_LISTED = 5
_MISSING = ("error", "zeros")


class Migrated(msgspec.Struct, frozen=True):
    """What a migration did. Every row in the store is the one of the source: else it had failed.

    Attributes
    ----------
    table : str
    version : int
        Of the store, served now.
    rows, dim, dtype
        Shape and numpy dtype of the table.
    bytes : int
        Of all rows.
    read, filled : int
        Rows that the source has, and those that it has not, which are zeros.
    skipped : int
        Keys with the prefix that were of no id.
    resumed_from : int
        Rows that an earlier process had brought in, which were not read again for the load.
    checksum_source, checksum_store : str
        Sum over the rows of the XXH64 of id and row, modulo 2^64, in hexadecimal: of the source as
        it was read after the load, and of the blocks.
    extract_seconds, load_seconds, compare_seconds : float
        Loading is without comparing.
    """

    table: str
    version: int
    rows: int
    dim: int
    dtype: str
    bytes: int
    read: int
    filled: int
    skipped: int
    resumed_from: int
    checksum_source: str
    checksum_store: str
    extract_seconds: float
    load_seconds: float
    compare_seconds: float


@permission_named()
@threads_named()
def migrate(
    source: KeyedRows,
    path: str | os.PathLike[str],
    table: str,
    *,
    log: AccessLog | None = None,
    adapter: str | Adapter = "lmdb",
    plan: Plan | None = None,
    profile: DeviceProfile | str | os.PathLike[str] | None = None,
    rows: int | None = None,
    dim: int | None = None,
    missing: str = "error",
    skip_others: bool = False,
    restart: bool = False,
    keep: int = 2,
    progress: Progress | None = None,
) -> Migrated:
    """Move a table out of an engine with a row per key into the store at `path`.

    Repeated after it was killed, it goes on behind the last rows that were durable.

    Parameters
    ----------
    source
        What :func:`bandana_kv.adapters.rows.open_rows` opened; stays open.
    path, log, adapter, plan, profile, keep
        As of :func:`bandana_kv.load`, for this table.
    table
        Its name.
    rows, dim
        Shape of the table, if it is known: checked. By default it ends with the largest id, and
        rows are as long as the first value.
    missing
        For ids without a row: ``"error"``, or ``"zeros"``.
    skip_others
        Skip keys, within the prefix, that are of no id; by default they are an error.
    restart
        Forget what an earlier process has brought in.
    progress
        Told of every stage.

    Returns
    -------
    Migrated

    Raises
    ------
    InputError
        The source is no table: keys of no id, values of several lengths, two keys of one id, ids
        without a row, no row at all; or an option is wrong.
    MigrationError
        The source is not in the state any more in which an earlier process read it, or rows in
        the new blocks differ from the source.
    LoadInProgressError
        Another process moves this table, or loads into the store.
    DiskFullError, AdapterError, WriteBudgetError
        As of :func:`bandana_kv.load`.

    Notes
    -----
    The version served before stays so until every row of the new one was compared. After a
    failure, what was brought in durably stays in ``migrations/`` of the store for the next try.
    *Cost*: reads the source twice, in the order of its keys; writes the rows twice, and four bytes
    a row, and needs the room until it ends. Resident memory: as of the load.
    """
    if missing not in _MISSING:
        raise InputError(f"missing {missing!r} is none of {', '.join(_MISSING)}")
    root, told = Path(path).absolute(), progress or Progress()
    held = held_adapter(adapter)
    given_profile(profile)
    reading = Reading(
        source, table, rows, None if dim is None else dim * source.dtype.itemsize, skip_others
    )
    with (
        disk_full_named(root),
        staged(root, table, source.origin(), restart=restart) as staging,
    ):
        begun, meter = time.perf_counter(), ledger.Meter()
        _extract(reading, staging, told)
        count, absent = _shape(reading, staging, missing)
        brought_bytes = (staging.state.read - staging.resumed_from) * (4 + (reading.row_bytes or 0))
        brought = meter.entry("migrate", None, (table,), brought_bytes)
        extracted = time.perf_counter()
        compared: list[Compared] = []
        comparing_seconds = 0.0

        def check(new: Manifest) -> None:
            nonlocal comparing_seconds
            at = time.perf_counter()
            expected = expected_digests(reading, count, absent, told)
            compared.append(compare(root, new, table, expected, held, told))
            comparing_seconds = time.perf_counter() - at

        version = load(
            root,
            {table: staging.path},
            None if log is None else {table: log},
            adapter=adapter,
            plan=plan,
            profile=profile,
            keep=keep,
            progress=told,
            check=check,
        )
        if brought_bytes:
            ledger.note(root, brought)
        state = staging.state
        staging.discard()
        return Migrated(
            table=table,
            version=version,
            rows=count,
            dim=state.row_bytes // source.dtype.itemsize,
            dtype=source.dtype.str,
            bytes=count * state.row_bytes,
            read=state.read,
            filled=absent.size,
            skipped=state.skipped,
            resumed_from=staging.resumed_from,
            checksum_source=f"{compared[0].source:016x}",
            checksum_store=f"{compared[0].store:016x}",
            extract_seconds=extracted - begun,
            load_seconds=time.perf_counter() - extracted - comparing_seconds,
            compare_seconds=comparing_seconds,
        )


def _extract(reading: Reading, staging: Staging, progress: Progress) -> None:
    """Bring in what the source has behind what was brought in before."""
    state = staging.state
    if reading.row_bytes and state.row_bytes not in (0, reading.row_bytes):
        raise InputError(
            f"table {reading.table!r}: rows of {state.row_bytes} bytes were brought in, not of "
            f"{reading.row_bytes}"
        )
    reading.row_bytes = state.row_bytes or reading.row_bytes
    if state.ended:
        return
    total = reading.rows or max(reading.source.count(), state.read)
    progress.start(f"extract {reading.table}", total, "rows")
    progress.advance(state.read)
    for batch in reading.batches(state.last_key):
        staging.add(batch)
        progress.advance(batch.ids.size)
    staging.end()
    progress.finish()


def _shape(reading: Reading, staging: Staging, missing: str) -> tuple[int, NDArray[np.int64]]:
    """Make the staged rows a table; return how many they are, and which are missing."""
    state, table = staging.state, reading.table
    if not state.read:
        raise InputError(
            f"table {table!r}: its source has no row of it; are prefix and key codec right?"
        )
    rows = reading.rows or state.top
    if state.top > rows:
        raise InputError(f"table {table!r}: the source has id {state.top - 1}, not {rows} rows")
    absent = staging.missing(rows)
    if absent.size and missing == "error":
        listed = ", ".join(map(str, absent[:_LISTED].tolist()))
        raise InputError(
            f"table {table!r}: of {rows} ids, {absent.size} have no row: "
            f"{listed}{', ...' if absent.size > _LISTED else ''}; move it again with "
            "missing='zeros' (--missing zeros), which goes on from here, or fill them in the source"
        )
    staging.shape(rows, reading.source.dtype)
    return rows, absent
