"""A new placement for a table that is served: blocks beside those there are, then one switch.

In this order, so that a crash at any step leaves the version before as it was: blocks under
numbers of the key space that no version's map names; the new version's arrays and its manifest,
which nobody reads yet; the rename of ``CURRENT``. See ``docs/decisions/0011-placing-anew.md``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.contract import MAX_BLOCK, empty_payloads
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.disk import ledger, manifest, retention
from bandana_kv.disk.arrays import write_array
from bandana_kv.disk.block_map import KIND, entries_of, free_numbers, numbers_of, read_block_map
from bandana_kv.disk.blocks import HEADER_BYTES
from bandana_kv.disk.lock import writer_lock
from bandana_kv.disk.placement import Placement, check_copies, check_fits
from bandana_kv.disk.plan import TablePlan
from bandana_kv.disk.table_files import write_arrays
from bandana_kv.errors import AdapterError, BandanaError, InputError
from bandana_kv.kernels.bitpack import words_for
from bandana_kv.kernels.views import readable
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.progress import Progress
from bandana_kv.serve.following import replay
from bandana_kv.serve.moves import Moves, between, carried, sources_of, take_rows
from bandana_kv.serve.opener import Options, open_version
from bandana_kv.serve.updates import Updates
from bandana_kv.serve.warmup import carry_over
from bandana_kv.system.durable import disk_full_named, make_directory, sync_directory
from bandana_kv.system.interrupts import safe_point

if TYPE_CHECKING:
    from bandana_kv.serve.reader import BlockReader, StoredTable
    from bandana_kv.serve.table import ServedTable
    from bandana_kv.serve.version import ServedVersion

__all__ = ["Change", "PlacedAnew", "place_anew"]

_WINDOW_BYTES = 256 << 20
# Requests are answered meanwhile: after each piece the device, the GIL and the cores are theirs
# for as long as it took, times the last. A commit must be worth what an engine writes beside it.
_READ_AT_ONCE, _WRITTEN_AT_ONCE = 128, 2048
_REST = 1.0
_EVERY_VERSION = sys.maxsize

Switch = Callable[["ServedVersion", tuple[int, int], Callable[[], None]], None]


class PlacedAnew(NamedTuple):
    """What a re-placement has done.

    Attributes
    ----------
    version : int
        That is served now.
    blocks_rewritten : int
    bytes_written : int
        Handed over: these blocks, and the index beside them.
    """

    version: int
    blocks_rewritten: int
    bytes_written: int


@dataclass(frozen=True)
class Change:
    """What is asked for; see :meth:`bandana_kv.EmbeddingStore.place_anew`.

    More rows than the table has: it grows, and those that are added are spare.
    """

    table: str
    placement: Placement
    plan: TablePlan | None = None
    log: AccessLog | None = None


@dataclass(frozen=True)
class _Work:
    """What the stages of one re-placement share."""

    root: Path
    version: int
    old: ServedVersion
    change: Change
    moves: Moves
    reader: BlockReader
    stopped: Event
    progress: Progress
    still_there: Callable[[], None]

    @property
    def entry(self) -> manifest.Table:
        """The table, as it is served."""
        return self.old.manifest.tables[self.change.table]

    @property
    def table(self) -> ServedTable:
        """The same, open."""
        return self.old.tables[self.change.table]

    @property
    def changes_arrays(self) -> bool:
        """Whether more than the plan changes."""
        moved = self.moves.blocks.size > 0 or self.moves.copies.size != self.entry.copies
        return moved or self.change.log is not None

    @property
    def array_bytes(self) -> int:
        """What the arrays beside the blocks take, but for their headers."""
        rows, copies = self.moves.placement.rows, self.moves.copies.size
        return 8 * words_for(rows) + rows + 8 * copies + 8 * self.moves.block_count


def place_anew(
    options: Options,
    old: ServedVersion,
    change: Change,
    updates: Updates,
    reader: BlockReader,
    switch: Switch,
    stopped: Event,
    progress: Progress,
) -> PlacedAnew:
    """Make a version in which a table lies in another placement, and serve it.

    Parameters
    ----------
    options
        How the store is served.
    old
        The version that is served; nobody retires it meanwhile.
    change
        What is to change.
    updates
        Of this process: flushes wait until it is over.
    reader
        Of blocks.
    switch
        Serves a version that is open, with the updates since a bookmark, and does at the same
        moment what makes it current.
    stopped
        Set when the store is closed.
    progress
        Told of the blocks.

    Raises
    ------
    BandanaError
        As :meth:`bandana_kv.EmbeddingStore.place_anew`; `old` is served as before.
    """
    root, entry = options.root, old.manifest.tables[change.table]
    _check_kinds(change)
    change = dataclasses.replace(change, placement=_whole(change, entry))
    check_copies(change.table, entry.rows, change.placement)
    if change.log is not None:
        change.log.validate(rows=entry.rows)

    def forget(segment: int) -> bool:
        return retention.forget_blocks(root, segment, options.adapter)

    with disk_full_named(root), writer_lock(root) as still_there, updates.blocks_held():
        current = manifest.current_number(root)
        if current != old.number:
            raise InputError(
                f"{root}: version {current} is current, and {old.number} is served here; "
                "refresh() first"
            )
        served = old.tables[change.table].placement(entry.placement)
        moves = between(change.table, served, change.placement)
        # Before anything is dropped, so that no number is given twice.
        version = manifest.next_version(root)
        work = _Work(root, version, old, change, moves, reader, stopped, progress, still_there)
        wanted_bytes = work.moves.blocks.size * _payload_bytes(work)
        wanted_bytes += work.array_bytes if work.changes_arrays else 0
        updates.allowance.take(wanted_bytes)
        meter = ledger.Meter()
        written: list[int] = []
        try:
            manifest.settle_current(root)
            retention.drop_unused(root, _EVERY_VERSION, forget)
            _write(work, served, written)
            _serve(work, options, updates, switch)
        except BaseException:
            still_there()  # what lies here otherwise is not for this one to clear up
            retention.discard(root, version, forget)
            ledger.note(root, meter.entry("place-anew", None, (change.table,), sum(written)))
            raise
        finally:
            updates.allowance.give_back(wanted_bytes)
        ledger.note(root, meter.entry("place-anew", version, (change.table,), sum(written)))
        # The new version is served; what some call still reads, a later load drops.
        with contextlib.suppress(OSError, BandanaError):
            retention.drop_unused(root, _EVERY_VERSION, forget)
    return PlacedAnew(version, moves.blocks.size, sum(written))


def _whole(change: Change, entry: manifest.Table) -> Placement:
    """Return the placement, of spare rows as well: those that it leaves out lie behind the rest."""
    given, per_block = change.placement, entry.rows_per_block
    if entry.keys and given.rows >= entry.rows - entry.spare and given.rows_per_block == per_block:
        return given.extended(entry.rows)
    check_fits(change.table, entry.rows, per_block, given)
    return given


def _check_kinds(change: Change) -> None:
    """Refuse what is of another kind before anything is locked or written."""
    for name, value, kinds in (
        ("placement", change.placement, Placement),
        ("plan", change.plan, (TablePlan, type(None))),
        ("log", change.log, (AccessLog, type(None))),
    ):
        if not isinstance(value, kinds):
            wanted = kinds.__name__ if isinstance(kinds, type) else kinds[0].__name__
            raise InputError(f"{name} must be a {wanted}, not a {type(value).__name__}")


def _payload_bytes(work: _Work) -> int:
    return work.table.stored.adapter.payload_bytes


def _serve(work: _Work, options: Options, updates: Updates, switch: Switch) -> None:
    """Open the new version with a warm cache, and make it the one that is served."""
    since = updates.bookmark()
    new = open_version(options, work.version, work.old)
    try:
        table = new.tables[work.change.table]
        replay(work.root, [table])
        carry_over(table, work.table, work.moves.moved, work.stopped)
        _check_open(work)
        switch(new, since, lambda: manifest.point_at(work.root, work.version))
    except BaseException:
        new.retire()
        raise
    work.old.retire()


def _check_open(work: _Work, rest_s: float = 0.0) -> None:
    """Leave the machine to requests for so long; raise once the store is closed."""
    if work.stopped.wait(rest_s):
        raise InputError("the store is closed")
    safe_point()
    work.still_there()


# -- what is written --------------------------------------------------------------------------


def _write(work: _Work, served: Placement, written: list[int]) -> None:
    """Write blocks, arrays and manifest; add what was handed over to `written` as it is."""
    change, moves = work.change, work.moves
    of_log: dict[str, int] = {}
    rows = moves.placement.rows
    heat = carried(readable(work.table.heat), moves.moved, rows)
    if change.log is not None:
        heat = heat_by_position(change.log.ids, moves.placement.position_of_id)
        of_log = {"looked_up_rows": int(np.count_nonzero(heat)) or work.entry.rows}
    placed_by = work.entry.placed_by
    if work.changes_arrays:
        entries = _write_blocks(work, served, written)
        written.append(_write_arrays(work, heat, entries))
        placed_by = work.version
    entry = msgspec.structs.replace(
        work.entry,
        rows=rows,
        spare=work.entry.spare + rows - work.entry.rows,
        copies=moves.copies.size,
        placement=moves.placement.method,
        plan=work.entry.plan if change.plan is None else change.plan,
        placed_by=placed_by,
        **of_log,
    )
    before = work.old.manifest
    new = msgspec.structs.replace(
        before,
        format=manifest.FORMAT_VERSION,
        version=work.version,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        tables=before.tables | {change.table: entry},
        store=before.store or manifest.new_identity(),
        identity=manifest.new_identity(),
    )
    work.still_there()
    manifest.write_version(work.root, new)


def _write_blocks(work: _Work, served: Placement, written: list[int]) -> NDArray[np.int64]:
    """Write the blocks that differ under free numbers; return the map of all."""
    moves = work.moves
    entries = np.empty(moves.block_count, np.int64)
    before = _map_of(work.root, work.entry)
    kept = min(before.size, entries.size)
    entries[:kept] = before[:kept]  # those of other rows, of copies among them, come anew
    if not moves.blocks.size:
        return entries
    numbers = free_numbers(_numbers_in_use(work), moves.blocks.size)
    if numbers[-1] > MAX_BLOCK:
        raise AdapterError(f"table {work.change.table!r}: no free block numbers; load it again")
    entries[moves.blocks] = entries_of(numbers, moves.stamps)
    engine = work.old.writable(work.root, work.change.table)
    # An engine that was opened to read may not see what was repaired since.
    source = dataclasses.replace(work.table.stored, adapter=engine)
    rows, copies = moves.placement.rows, moves.copies.size
    target = dataclasses.replace(source, rows=rows, copies=copies, block_map=entries)
    work.progress.start(f"place {work.change.table} anew", moves.blocks.size, "blocks")
    window = max(1, _WINDOW_BYTES // engine.payload_bytes)
    for first in range(0, moves.blocks.size, window):
        blocks = moves.blocks[first : first + window]
        payloads = _assembled(work, source, served, blocks)
        for at in range(0, blocks.size, _WRITTEN_AT_ONCE):
            begun = time.monotonic()
            part, each = blocks[at : at + _WRITTEN_AT_ONCE], payloads[at : at + _WRITTEN_AT_ONCE]
            target.seal(each, part)
            engine.put_many(target.keys(part), each)
            written.append(each.nbytes)
            work.progress.advance(part.size)
            _check_open(work, _REST * (time.monotonic() - begun))
    work.progress.finish()
    return entries


def _map_of(root: Path, table: manifest.Table) -> NDArray[np.int64]:
    found = read_block_map(root, table)
    return np.arange(table.blocks, dtype=np.int64) if found is None else found


def _numbers_in_use(work: _Work) -> list[NDArray[np.int64]]:
    """Return the numbers that blocks of this key space have in the versions that are kept.

    Raises
    ------
    FormatError
        One of them is damaged, and what it still names not known.
    """
    maps = {}
    for version in manifest.numbers_in(work.root / "manifests"):
        for table in manifest.read_version(work.root, version).tables.values():
            if table.space == work.entry.space and table.files not in maps:
                maps[table.files] = numbers_of(_map_of(work.root, table))
    return list(maps.values())


def _assembled(
    work: _Work, source: StoredTable, served: Placement, blocks: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Read the rows of new `blocks` where they lie now: uint8 (n, payload_bytes), not sealed."""
    per_block = source.rows_per_block
    payloads = empty_payloads(blocks.size, source.adapter.payload_bytes)
    payloads[...] = 0
    positions, targets = sources_of(work.moves.ids_in(blocks), served.position_of_id)
    wanted = np.unique(positions // per_block)
    for at in range(0, wanted.size, _READ_AT_ONCE):
        begun = time.monotonic()
        part = wanted[at : at + _READ_AT_ONCE]
        low, high = np.searchsorted(positions, (part[0] * per_block, (part[-1] + 1) * per_block))
        take_rows(
            work.reader.read(source, part),
            part,
            positions[low:high],
            targets[low:high],
            per_block,
            source.row_bytes,
            HEADER_BYTES,
            payloads,
        )
        _check_open(work, _REST * (time.monotonic() - begun))
    return payloads


def _write_arrays(work: _Work, heat: NDArray[np.uint8], entries: NDArray[np.int64]) -> int:
    """Write what lies beside the blocks; return its bytes."""
    work.still_there()
    directory = manifest.segment_path(work.root, work.version)
    make_directory(directory)
    space = work.entry.space
    write_arrays(work.root, work.version, space, work.moves.placement, heat)
    write_array(manifest.table_file(work.root, work.version, space, KIND), KIND, entries)
    sync_directory(directory)
    sync_directory(directory.parent)
    return sum(path.stat().st_size for path in directory.iterdir())
