"""A version of a store -> its tables, open for serving, each with its share of the DRAM."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bandana_kv import adapters
from bandana_kv.cache.allocation import allocate
from bandana_kv.cache.policy import WHOLE, Policy
from bandana_kv.cache.state import cache_bytes_of, capacity_for
from bandana_kv.codecs import codec_named
from bandana_kv.disk import manifest
from bandana_kv.disk.arrays import map_array
from bandana_kv.disk.block_map import read_block_map
from bandana_kv.disk.table_keys import open_keys
from bandana_kv.errors import AdapterError, BandanaError, FormatError, InputError
from bandana_kv.kernels.bitpack import unpack, words_for
from bandana_kv.kernels.layout import Layout
from bandana_kv.rows.source import Source, check_tables
from bandana_kv.serve.counters import Totals
from bandana_kv.serve.failsafe import FailSafe
from bandana_kv.serve.reader import StoredTable
from bandana_kv.serve.table import ServedTable
from bandana_kv.serve.version import ServedVersion, SharedEngine
from bandana_kv.serve.versions import InDirectory, Versions
from bandana_kv.system.maps import let_go
from bandana_kv.system.permission import check_permission

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["Options", "open_current", "open_version"]

DEFAULT_CACHE_BYTES = 64 << 20
_CHECKED_ROWS = 1 << 20


@dataclass(frozen=True)
class Options:
    """How a store is to be served, whatever the version.

    Attributes
    ----------
    root : Path
    cache_bytes, adapter, coalesce
        As for :func:`bandana_kv.open`.
    policy : Policy or None
        Overrides the plan.
    source : Source or None
        Where rows come from whose blocks do not.
    version : int or None
        The only one to serve; None: whichever is current.
    totals : Totals
        What is counted meanwhile.
    elsewhere : Versions or None
        Who says which version is current, and keeps it; None: the directory does.
    """

    root: Path
    cache_bytes: int | Mapping[str, int] | None
    adapter: Adapter | None
    policy: Policy | None
    coalesce: bool
    source: Source | None
    version: int | None = None
    totals: Totals = field(default_factory=Totals)
    elsewhere: Versions | None = None

    @property
    def versions(self) -> Versions:
        """Who says which version is current, and keeps it."""
        return self.elsewhere or InDirectory(self.root)


def open_current(options: Options, before: ServedVersion | None = None) -> ServedVersion:
    """Open the store's current version for serving, or the one that `options` name.

    Parameters
    ----------
    options
        What the user asked for.
    before
        The version that is served now, and stays so meanwhile. Tables that are in both go
        over as they are, with their caches; so do engines.

    Raises
    ------
    BandanaError
        As :func:`bandana_kv.open`; nothing stays open.
    """
    return _opened_version(options, options.version, before)


def open_version(options: Options, version: int, before: ServedVersion | None) -> ServedVersion:
    """Open a version for serving that need not be the current one.

    One that is not yet: only with the writer's lock held. Raises as :func:`open_current`, and a
    FormatError where the version has gone.
    """
    return _opened_version(options, version, before)


def _opened_version(
    options: Options, version: int | None, before: ServedVersion | None
) -> ServedVersion:
    try:
        return _opened_tables(options, version, before)
    except OSError as error:
        check_permission(error, options.root)
        if isinstance(error, BandanaError):
            raise
        # Such as too many open files; whoever refreshes goes on with what it has.
        raise AdapterError(f"{options.root}: cannot be opened for now ({error})") from error


def _opened_tables(
    options: Options, version: int | None, before: ServedVersion | None
) -> ServedVersion:
    with contextlib.ExitStack() as stack:
        current = options.versions.hold(version, stack)
        held = manifest.manifest_path(options.root, current.version).stat()
        check_tables(options.source, current.tables)
        same = {} if before is None else _unchanged(current, before)
        shares = _shares(current, options.cache_bytes, same)
        engines = _engines(stack, options, current, before)
        tables = {
            name: before.tables[name]
            if before is not None
            and same.get(name) == shares[name]
            and engines[_key_of(entry)] is before.engines.get(_key_of(entry))
            else _serve(options, name, entry, engines, shares[name])
            for name, entry in current.tables.items()
        }
        return ServedVersion(current, tables, shares, engines, stack.pop_all(), held)
    raise AssertionError  # an ExitStack does not swallow errors


def _unchanged(current: manifest.Manifest, before: ServedVersion) -> dict[str, int]:
    """Return the tables that are in both versions, with the DRAM that they have now.

    Where tables come or go, all shares are worked out anew.
    """
    old = before.manifest.tables
    if old.keys() != current.tables.keys():
        return {}
    return {
        name: before.cache_bytes[name]
        for name, entry in current.tables.items()
        if entry == old[name]
    }


def _engines(
    stack: contextlib.ExitStack,
    options: Options,
    current: manifest.Manifest,
    before: ServedVersion | None,
) -> dict[tuple[int, int], SharedEngine]:
    """Open every engine that some table needs and that is not open, by segment and pages."""
    engines: dict[tuple[int, int], SharedEngine] = {}
    for table in current.tables.values():
        key = _key_of(table)
        if key in engines:
            continue
        engine = before.engines.get(key) if before is not None else None
        if engine is None or before is None or not _sees(engine, key, current, before.manifest):
            engine = _opened(options, current.segments[table.segment], key)
        engine.take()
        stack.callback(engine.give_back)
        engines[key] = engine
        expected = current.segments[table.segment].payload_bytes[table.pages]
        if engine.adapter.payload_bytes != expected:
            raise InputError(
                f"{options.root}: loaded with blocks of {expected} bytes, this engine's are "
                f"{engine.adapter.payload_bytes}; open it with the engine it was loaded with"
            )
    return engines


def _key_of(table: manifest.Table) -> tuple[int, int]:
    return table.segment, table.pages


def _sees(
    engine: SharedEngine,
    key: tuple[int, int],
    current: manifest.Manifest,
    before: manifest.Manifest,
) -> bool:
    """Return whether an open engine has all blocks, also of tables that were placed anew."""
    placed, then = (
        {(table.space, table.files) for table in each.tables.values() if _key_of(table) == key}
        for each in (current, before)
    )
    return engine.sees_all or placed <= then


def _opened(options: Options, segment: manifest.Segment, key: tuple[int, int]) -> SharedEngine:
    """Open the engine of a segment, or take the one that the user holds."""
    if segment.owned:
        path = manifest.engine_path(options.root, *key)
        engine = adapters.open_existing(segment.adapter, path, pages=key[1])
        return SharedEngine(engine, owned=True)
    held = options.adapter
    if held is None or held.name != segment.adapter:
        raise InputError(
            f"{options.root}: its blocks lie in a {segment.adapter} engine that you hold; "
            "pass adapter=, on the same handle that it was loaded through"
        )
    return SharedEngine(held, owned=False)


def _serve(
    options: Options,
    name: str,
    entry: manifest.Table,
    engines: Mapping[tuple[int, int], SharedEngine],
    cache_bytes: int,
) -> ServedTable:
    dtype = np.dtype(entry.dtype)
    row_bytes = entry.row_bytes
    stored = StoredTable(
        name,
        engines[_key_of(entry)].newest,
        entry.space,
        entry.rows,
        entry.copies,
        row_bytes,
        entry.rows_per_block,
        read_block_map(options.root, entry),
    )
    mapped = partial(_mapped, options.root, entry)
    policy = options.policy or entry.plan.policy_for(cache_bytes, row_bytes, entry.rows)
    served = ServedTable(
        stored,
        dtype,
        entry.dim,
        _index(options.root, entry),
        Layout(
            entry.rows_per_block,
            mapped("heat", np.uint8, entry.rows),
            mapped("original-of", np.uint32, entry.copies, entry.rows),
            mapped("by-position", np.uint32, entry.copies, entry.copies),
        ),
        capacity_for(policy, cache_bytes, row_bytes, entry.rows),
        policy,
        fail_safe=FailSafe(name, options.source, remote=stored.adapter.capabilities.remote),
        coalesce=options.coalesce,
        codec=codec_named(entry.codec) if entry.codec else None,
        # Verified: a row of another key would be a wrong row.
        keys=open_keys(options.root, entry, verify=True),
        in_flight=engines[_key_of(entry)].in_flight,
    )
    options.totals.follow(name, served.counts, served)
    return served


def _index(root: Path, entry: manifest.Table) -> NDArray[np.uint64]:
    """Map the positions of ids; kernels trust them to lie within the table."""
    words = _mapped(root, entry, "positions", np.uint64, words_for(entry.rows))
    for first in range(0, entry.rows, _CHECKED_ROWS):
        part = unpack(words, entry.rows, first, min(_CHECKED_ROWS, entry.rows - first))
        if int(part.max()) >= entry.rows:
            path = manifest.table_file(root, entry.files, entry.space, "positions")
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
    path = manifest.table_file(root, entry.files, entry.space, kind)
    return map_array(path, kind, dtype, items, below)


def _shares(
    current: manifest.Manifest,
    cache_bytes: int | Mapping[str, int] | None,
    same: Mapping[str, int],
) -> dict[str, int]:
    """Return the DRAM of each table; what is shared out leaves those in `same` what they have."""
    tables = current.tables
    if isinstance(cache_bytes, Mapping):
        for name in cache_bytes:
            if name not in tables:
                raise InputError(f"cache_bytes names table {name!r}, which the store has not")
        return {name: _checked_bytes(cache_bytes.get(name, 0)) for name in tables}
    shares: dict[str, int] = {}
    total = DEFAULT_CACHE_BYTES
    if cache_bytes is not None:
        total = _checked_bytes(cache_bytes)
    else:
        shares = {
            name: table.plan.choice.cache_bytes
            for name, table in tables.items()
            if table.plan.choice is not None
        }
    kept = {name: held for name, held in same.items() if name not in shares}
    shares |= kept
    rest = {name: table for name, table in tables.items() if name not in shares}
    return shares | _shared_out(rest, max(0, total - sum(kept.values())))


def _shared_out(tables: Mapping[str, manifest.Table], total: int) -> dict[str, int]:
    """Share DRAM by the bytes that were looked up; among simulated tables, by what it saves.

    Where it holds all tables whole it is shared by what that takes.
    """
    whole = {
        name: cache_bytes_of(WHOLE, table.rows, table.row_bytes, table.rows)
        for name, table in tables.items()
    }
    most = sum(whole.values())
    if most <= total:
        return {name: total * part // most for name, part in whole.items()}
    used = {name: table.looked_up_rows * table.row_bytes for name, table in tables.items()}
    everything = max(1, sum(used.values()))
    shares = {name: total * part // everything for name, part in used.items()}
    curves = {
        name: curve
        for name, table in tables.items()
        if (curve := table.plan.curve(table.row_bytes, table.rows))
    }
    if len(curves) < 2:
        return shares
    # Without DRAM a lookup costs a read at most.
    saved = {name: [(0, float(tables[name].plan.lookups)), *curves[name]] for name in curves}
    return shares | allocate(saved, sum(shares[name] for name in curves))


def _checked_bytes(cache_bytes: int) -> int:
    if not isinstance(cache_bytes, (int, np.integer)) or cache_bytes < 0:
        raise InputError(f"cache_bytes {cache_bytes!r} is not a whole number from 0 up")
    return int(cache_bytes)
