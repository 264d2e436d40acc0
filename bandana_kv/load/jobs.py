"""What a load is asked to do, with all that is wrong with it found before anything is written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv import adapters
from bandana_kv.adapters.contract import PAGE_BYTES
from bandana_kv.adapters.rows import KeyedRows
from bandana_kv.codecs import Codec, codec_named
from bandana_kv.disk import blocks
from bandana_kv.disk.plan import Plan, TablePlan
from bandana_kv.errors import InputError
from bandana_kv.keys import checked_keys, key_kind
from bandana_kv.load.engine_rows import EngineRows
from bandana_kv.load.stored_rows import EncodedRows, StoredRows
from bandana_kv.placement import Placement, methods
from bandana_kv.placement.registry import needs_values
from bandana_kv.rows.files import RowSource, open_rows
from bandana_kv.rows.given import Rows

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter
    from bandana_kv.logs.access_log import AccessLog

__all__ = [
    "Job",
    "check_seed",
    "checked_jobs",
    "held_adapter",
    "is_remote",
]

_MOST_ROW_BYTES = 1 << 20
# What a block costs beside its rows, at most: our header, and the engine's own.
_OVERHEAD_BYTES = blocks.HEADER_BYTES + 64


@dataclass(frozen=True, eq=False)
class Keys:
    """What callers ask by: of which kind, as words of an index, and as given."""

    kind: str
    words: NDArray[np.uint64]
    given: Any


@dataclass(frozen=True, eq=False)
class Job:
    """One table to load, after everything that can be checked beforehand was checked.

    Attributes
    ----------
    source, stored : RowSource
        The rows as numbers, and as they are stored; the same where there is no `codec`.
    spare : float
        Room for further rows, as a share of them.
    """

    name: str
    source: RowSource
    codec: Codec | None
    log: AccessLog | None
    placement: str | Placement
    plan: TablePlan | None
    space: int
    pages: int
    stored: RowSource
    keys: Keys | None = None
    spare: float = 0.0

    def rows_with_spare(self, per_block: int) -> int:
        """Return how many rows the table has with room for others: then whole blocks of them."""
        rows = self.source.rows
        wanted = rows + int(np.ceil(rows * self.spare))
        return rows if wanted == rows else -(-wanted // per_block) * per_block

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows as they are answered: what a codec decodes to, or their own."""
        return self.source.dtype if self.codec is None else np.dtype(np.float32)

    @property
    def device_bytes(self) -> int:
        """About what the table will take on the device."""
        per_block = max(1, (self.pages * PAGE_BYTES - _OVERHEAD_BYTES) // self.stored.row_bytes)
        rows = self.rows_with_spare(per_block)
        return -(-rows // per_block) * self.pages * PAGE_BYTES + 5 * rows


def check_seed(seed: int) -> None:
    """Refuse what cannot seed a generator."""
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed {seed!r} is not a whole number from 0 up")


def held_adapter(adapter: str | Adapter, profile: object = None) -> Adapter | None:
    """Return the adapter that the caller holds, or None for a name, which is checked."""
    if isinstance(adapter, str):
        adapters.adapter_class(adapter)
        return None
    if not isinstance(adapter, adapters.Adapter):
        raise InputError(f"adapter {adapter!r} is neither a name nor an open adapter")
    if profile is not None and is_remote(adapter):
        raise InputError("a profile is of a device of this machine; the blocks go to a cluster")
    return adapter


def is_remote(held: Adapter | None) -> bool:
    """Return whether blocks go to other machines: no device of this one is worn by that."""
    return held is not None and held.capabilities.remote


def checked_jobs(
    stack: contextlib.ExitStack,
    tables: Mapping[str, str | os.PathLike[str] | NDArray[Any] | KeyedRows | Rows],
    logs: Mapping[str, AccessLog],
    store_as: str | Mapping[str, str] | None,
    placement: str | Mapping[str, str | Placement],
    plan: Plan | None,
    least_pages: int,
    held: Adapter | None,
    spare: float,
) -> list[Job]:
    """Return what is to be loaded; all that is wrong with it is found here."""
    if not tables:
        raise InputError("no tables to load; name at least one")
    named = {} if isinstance(placement, str) else placement
    planned = {} if plan is None else plan.tables
    forms = store_as if isinstance(store_as, Mapping) else dict.fromkeys(tables, store_as)
    parts = (("log", logs), ("placement", named), ("plan", planned), ("store_as", forms))
    for what, names in parts:
        for name in names:
            if name not in tables:
                raise InputError(f"a {what} is given for table {name!r}, which is not loaded")
    jobs = []
    for name, rows in tables.items():
        _check_table_name(name)
        source, codec, stored = _opened(stack, name, rows, forms.get(name))
        log = logs.get(name)
        if log is not None:
            _check_log(name, log, source.rows)
        wanted = placement if isinstance(placement, str) else named.get(name, "shp")
        fitting = -(-(stored.row_bytes + _OVERHEAD_BYTES) // PAGE_BYTES)
        pages = held.pages if held else max(least_pages, fitting)
        of_table = planned.get(name)
        if of_table is not None and of_table.choice is not None and name not in named:
            wanted = of_table.choice.placement
        if of_table is not None and log is None:
            raise InputError(
                f"table {name!r}: its plan places rows by a log; give the log it was made from"
            )
        wanted = _checked_placement(wanted, log)
        keys = _keys_of(name, rows, source)
        room = spare if keys is not None else 0.0
        job = Job(name, source, codec, log, wanted, of_table, 0, pages, stored, keys, room)
        if job.rows_with_spare(1) >= 1 << 32:
            raise InputError(f"table {name!r}: more than 2^32 rows, with those that are spare")
        _check_row_bytes(job, held)
        jobs.append(job)
    return jobs


def _opened(
    stack: contextlib.ExitStack,
    name: str,
    rows: str | os.PathLike[str] | NDArray[Any] | KeyedRows | Rows,
    store_as: str | None,
) -> tuple[RowSource, Codec | None, RowSource]:
    """Return a table's rows as numbers, how they are stored, and as they are stored."""
    given = rows if isinstance(rows, Rows) else Rows(rows)
    source = stack.enter_context(_open_table(name, given))
    codec = None if store_as is None else codec_named(store_as)
    if given.encoded is not None:
        codec = codec_named(given.encoded)
        if store_as not in (None, codec.name):
            raise InputError(
                f"table {name!r}: its rows are {codec.name} already, and not stored as {store_as}"
            )
        return EncodedRows(f"table {name!r}", source, codec), codec, source
    if codec is not None and codec.exact == source.dtype and source.dtype.kind == "f":
        codec = None  # that is what they are
    elif codec is None and source.dtype.kind == "V":
        codec = codec_named(source.dtype.name)  # of which numpy has no numbers to answer
    if codec is None:
        return source, None, source
    return source, codec, StoredRows(f"table {name!r}", source, codec)


def _open_table(name: str, given: Rows) -> RowSource:
    """Return the rows of a table, of an engine's too; raises as what opens them."""
    if isinstance(given.values, KeyedRows):
        kind = given.keys if isinstance(given.keys, str) else None
        return EngineRows(name, given.values, kind)
    return open_rows(name, given.values)


def _keys_of(name: str, rows: object, source: RowSource) -> Keys | None:
    """Return a table's keys: those that the user gives, else those that its source brings."""
    given = rows.keys if isinstance(rows, Rows) else None
    if given is None or (isinstance(given, str) and isinstance(source, EngineRows)):
        given = source.keys
    if given is None:
        return None
    kind = key_kind(name, given)
    words = checked_keys(name, given, kind)
    if len(words) != source.rows:
        raise InputError(f"table {name!r}: {len(words)} keys for {source.rows} rows")
    return Keys(kind, words, given)


def _check_log(name: str, log: AccessLog, rows: int) -> None:
    # A path is a likely mistake here.
    if not hasattr(log, "validate"):
        raise InputError(
            f"table {name!r}: its log is a {type(log).__name__}, not an AccessLog; "
            "read it with AccessLog.read"
        )
    log.validate(rows=rows)


def _check_table_name(name: str) -> None:
    # What is printable can be encoded, so the order of these matters.
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name.encode()) <= 255:
        raise InputError(f"{name!r} cannot name a table: use 1 to 255 printable bytes")


def _checked_placement(wanted: str | Placement, log: AccessLog | None) -> str | Placement:
    if isinstance(wanted, str):
        if wanted not in methods():
            raise InputError(
                f"placement {wanted!r} is unknown; choose one of {', '.join(methods())}"
            )
        if log is None and wanted not in ("identity", "shuffled") and not needs_values(wanted):
            return "identity"
    elif not isinstance(wanted, Placement):
        raise InputError(f"placement {wanted!r} is neither a method's name nor a Placement")
    return wanted


def _check_row_bytes(job: Job, held: Adapter | None) -> None:
    if job.stored.row_bytes > _MOST_ROW_BYTES:
        raise InputError(
            f"table {job.name!r}: rows of {job.stored.row_bytes} bytes; "
            f"a row has at most {_MOST_ROW_BYTES}"
        )
    if held is not None:
        blocks.rows_per_block(held.payload_bytes, job.stored.row_bytes)
