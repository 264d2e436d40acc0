"""Rows + plan -> a version in a store directory."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv import adapters, blocks, manifest
from bandana_kv.arrays import write_array
from bandana_kv.errors import BandanaError, DiskFullError, InputError
from bandana_kv.heat import count_lookups, heat_of_counts
from bandana_kv.placement import Placement, methods, place
from bandana_kv.placement.measure import layout_of
from bandana_kv.placement.registry import needs_values
from bandana_kv.placement.replication import replicate as add_copies
from bandana_kv.plan import Admission, PlannedPoint, TablePlan, parse_admission
from bandana_kv.progress import Progress
from bandana_kv.simulate.tune import LEARN_SHARE, tune
from bandana_kv.sources import RowSource, open_rows

if TYPE_CHECKING:
    from bandana_kv.access_log import AccessLog
    from bandana_kv.adapters.contract import Adapter, Keys, Payloads

__all__ = ["load"]

_CHUNK_BYTES = 8 << 20
_MOST_ROW_BYTES = 1 << 20
# What a block costs beside its rows, at most: our header, and the engine's own.
_OVERHEAD_BYTES = blocks.HEADER_BYTES + 64
_SPACES_FILE = "held-spaces"
_FIRST_SPACES = 1 << 23


@dataclass(frozen=True)
class _Job:
    """One table to load, after everything that can be checked beforehand was checked."""

    name: str
    source: RowSource
    log: AccessLog | None
    placement: str | Placement
    space: int
    pages: int

    @property
    def device_bytes(self) -> int:
        """About what the table will take on the device."""
        per_block = max(1, (self.pages * 4096 - _OVERHEAD_BYTES) // self.source.row_bytes)
        return -(-self.source.rows // per_block) * self.pages * 4096 + 5 * self.source.rows


@dataclass(frozen=True)
class _Load:
    """What the stages of one load share."""

    root: Path
    version: int
    seed: int
    replicate: float
    admission: Admission | None
    progress: Progress


def load(
    path: str | os.PathLike[str],
    tables: Mapping[str, str | os.PathLike[str] | NDArray[Any]],
    logs: Mapping[str, AccessLog] | None = None,
    *,
    adapter: str | Adapter = "lmdb",
    placement: str | Mapping[str, str | Placement] = "shp",
    replicate: float = 0.0,
    admission: str | None = None,
    threshold: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> int:
    """Load tables into the store at `path`, as a new version that then is the one served.

    Parameters
    ----------
    path
        The store's directory; made if it is not there.
    tables
        Rows by table name: an array (rows, dim) in memory, or the path of a ``.npy`` file
        of any size. Tables of the store that are not named stay as they are.
    logs
        Training log by table name. A table without one is placed by ``identity`` unless
        `placement` names a method that needs none.
    adapter
        The engine: a name, for an engine directory inside the store, or an adapter on
        handles that you hold.
    placement
        A method of :func:`bandana_kv.placement.methods`, for all tables or by table; or by
        table a :class:`~bandana_kv.placement.Placement` made before.
    replicate
        Share of extra blocks, 0 to 1, for second copies of rows that requests find alone in
        their block. Only for placements learnt here, from a log.
    admission, threshold
        Which neighbours enter DRAM: ``none``, ``all`` or ``threshold`` (looked up more than
        `threshold` times in the training log). By default simulation on a part of the
        training log that the placement has not seen decides, for several amounts of DRAM.
    seed
        Of placement and simulation.
    progress
        Told of every stage.

    Returns
    -------
    int
        The number of the new version.

    Raises
    ------
    InputError
        A table, log or option is wrong; found before anything is written.
    LoadInProgressError
        Another load holds the store.
    DiskFullError
        No room. This and every other failure leaves the version served before in place and
        removes what was begun.

    Notes
    -----
    Cost: each row is read once, each block written once. Resident memory is some 25 bytes a
    row, what placement takes (it grows with the log), and a few dozen MiB, whatever the
    size of the rows.
    """
    root = Path(path)
    _check_seed(seed)
    if not 0 <= replicate <= 1:
        raise InputError(f"replicate {replicate!r} is not a share of the blocks from 0 to 1")
    fixed = None if admission is None else parse_admission(admission, threshold)
    if fixed is None and threshold is not None:
        raise InputError("a threshold goes with admission='threshold'; no admission was named")
    held = _held_adapter(adapter)
    with contextlib.ExitStack() as stack:
        jobs = _checked_jobs(stack, tables, logs or {}, placement, held)
        stack.enter_context(manifest.disk_full_named(root))
        stack.enter_context(manifest.writer_lock(root))
        manifest.drop_unused(root, lambda segment: _forget(root, segment, held))
        old = manifest.read_current(root) if manifest.has_store(root) else None
        version = manifest.next_version(root)
        jobs = _with_spaces(jobs, old, held)
        _check_room(root, jobs, replicate, held)
        begun = _Load(root, version, seed, replicate, fixed, progress or Progress())
        try:
            new = _write_segment(begun, jobs, adapter, old)
            manifest.switch_to(root, new)
        except BaseException:
            manifest.discard(root, version, lambda segment: _forget(root, segment, held))
            raise
        # The new version is served; what cannot be dropped now, the next load drops.
        with contextlib.suppress(OSError, BandanaError):
            manifest.drop_unused(root, lambda segment: _forget(root, segment, held))
    return version


def _check_seed(seed: int) -> None:
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed {seed!r} is not a whole number from 0 up")


def _held_adapter(adapter: str | Adapter) -> Adapter | None:
    """Return the adapter that the caller holds, or None for a name, which is checked."""
    if isinstance(adapter, str):
        adapters.adapter_class(adapter)
        return None
    if not isinstance(adapter, adapters.Adapter):
        raise InputError(f"adapter {adapter!r} is neither a name nor an open adapter")
    return adapter


def _checked_jobs(
    stack: contextlib.ExitStack,
    tables: Mapping[str, str | os.PathLike[str] | NDArray[Any]],
    logs: Mapping[str, AccessLog],
    placement: str | Mapping[str, str | Placement],
    held: Adapter | None,
) -> list[_Job]:
    """Return what is to be loaded; all that is wrong with it is found here."""
    if not tables:
        raise InputError("no tables to load; name at least one")
    named = {} if isinstance(placement, str) else placement
    for what, names in (("log", logs), ("placement", named)):
        for name in names:
            if name not in tables:
                raise InputError(f"a {what} is given for table {name!r}, which is not loaded")
    jobs = []
    for name, rows in tables.items():
        _check_table_name(name)
        source = stack.enter_context(open_rows(name, rows))
        log = logs.get(name)
        if log is not None:
            _check_log(name, log, source.rows)
        wanted = placement if isinstance(placement, str) else named.get(name, "shp")
        pages = held.pages if held else -(-(source.row_bytes + _OVERHEAD_BYTES) // 4096)
        job = _Job(name, source, log, _checked_placement(wanted, log), 0, pages)
        _check_row_bytes(job, held)
        jobs.append(job)
    return jobs


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


def _check_row_bytes(job: _Job, held: Adapter | None) -> None:
    if job.source.row_bytes > _MOST_ROW_BYTES:
        raise InputError(
            f"table {job.name!r}: rows of {job.source.row_bytes} bytes; "
            f"a row has at most {_MOST_ROW_BYTES}"
        )
    if held is not None:
        blocks.rows_per_block(held.payload_bytes, job.source.row_bytes)


def _with_spaces(
    jobs: list[_Job], old: manifest.Manifest | None, held: Adapter | None
) -> list[_Job]:
    """Give each table a key space of its own: never used before, and empty.

    A user may hold several engines and mistake one for another. So that the blocks of
    another store are neither served nor deleted then, a store's first space in such an
    engine is drawn by lot.
    """
    first = 1 if old is None else old.next_space
    if held is not None and (old is None or all(each.owned for each in old.segments.values())):
        first = max(first, 1 + secrets.randbelow(_FIRST_SPACES))
    spaced = []
    for job in jobs:
        while held is not None and not held.space_is_empty(first):
            first += 1
        spaced.append(replace(job, space=first))
        first += 1
    return spaced


def _check_room(root: Path, jobs: list[_Job], replicate: float, held: Adapter | None) -> None:
    """Refuse early what cannot fit; a device that fills up later is caught as well."""
    need = int((1 + replicate) * sum(job.device_bytes for job in jobs))
    free = shutil.disk_usage(root).free
    if held is None and need > free:
        raise DiskFullError(
            errno.ENOSPC,
            f"{root}: the load needs about {need >> 20} MiB and {free >> 20} MiB are free; "
            "free some and load again, nothing was lost",
        )


def _write_segment(
    begun: _Load, jobs: list[_Job], adapter: str | Adapter, old: manifest.Manifest | None
) -> manifest.Manifest:
    """Write the tables' blocks and arrays; return the manifest that makes them a version."""
    directory = manifest.segment_path(begun.root, begun.version)
    directory.mkdir(parents=True)
    payload_bytes: dict[int, int] = {}
    tables = dict(old.tables) if old else {}
    if not isinstance(adapter, str):
        spaces = "".join(f"{adapter.name} {job.space}\n" for job in jobs)
        (directory / _SPACES_FILE).write_text(spaces)
    for pages in sorted({job.pages for job in jobs}):
        alike = [job for job in jobs if job.pages == pages]
        with _engine(begun, alike, adapter) as engine:
            payload_bytes[pages] = engine.payload_bytes
            for job in alike:
                tables[job.name] = _write_table(begun, job, engine)
    manifest.sync_directory(directory)
    manifest.sync_directory(directory.parent)
    name = adapter if isinstance(adapter, str) else adapter.name
    segments = {
        begun.version: manifest.Segment(name, isinstance(adapter, str), payload_bytes),
        **{
            table.segment: old.segments[table.segment]
            for table in tables.values()
            if old and table.segment != begun.version
        },
    }
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    next_space = 1 + max(job.space for job in jobs)
    return manifest.Manifest(
        manifest.FORMAT_VERSION, begun.version, now, next_space, segments, tables
    )


@contextlib.contextmanager
def _engine(begun: _Load, jobs: list[_Job], adapter: str | Adapter) -> Iterator[Adapter]:
    if not isinstance(adapter, str):
        yield adapter
        return
    path = manifest.engine_path(begun.root, begun.version, jobs[0].pages)
    size_bytes = int((1 + begun.replicate) * sum(job.device_bytes for job in jobs))
    with adapters.create(adapter, path, size_hint_bytes=size_bytes, pages=jobs[0].pages) as engine:
        yield engine


def _write_table(begun: _Load, job: _Job, engine: Adapter) -> manifest.Table:
    source = job.source
    per_block = blocks.rows_per_block(engine.payload_bytes, source.row_bytes)
    placement, plan = _placed_and_planned(begun, job, per_block)
    _check_permutation(job, placement)
    counts = np.zeros(source.rows, np.int64)
    if job.log is not None:
        counts = count_lookups(job.log.ids, source.rows)
    heat = np.empty(source.rows, np.uint8)
    heat[placement.position_of_id] = heat_of_counts(counts)
    touched = int(np.count_nonzero(counts)) or source.rows
    del counts
    file = partial(manifest.table_file, begun.root, begun.version, job.space)
    write_array(file("positions"), "positions", placement.position_of_id)
    write_array(file("heat"), "heat", heat)
    original_of, by_position = layout_of(placement, heat)[2:]
    if original_of.size:
        write_array(file("original-of"), "original-of", original_of)
        write_array(file("by-position"), "by-position", by_position)
    count = placement.blocks + -(-original_of.size // per_block)
    begun.progress.start(f"load {job.name}", count, "blocks")
    engine.bulk_load(_sealed_blocks(begun, job, placement, engine.payload_bytes), count)
    begun.progress.finish()
    return manifest.Table(
        segment=begun.version,
        space=job.space,
        pages=job.pages,
        rows=source.rows,
        dim=source.dim,
        dtype=source.dtype.str,
        rows_per_block=per_block,
        copies=original_of.size,
        placement=placement.method,
        looked_up_rows=touched,
        plan=plan,
    )


def _placed_and_planned(begun: _Load, job: _Job, per_block: int) -> tuple[Placement, TablePlan]:
    """Return the placement from the whole log, and the plan from a part held back from it."""
    rows = job.source.rows

    def placed(log: AccessLog | None) -> Placement:
        if not isinstance(job.placement, str):
            _check_fits(job, per_block)
            return job.placement
        found = place(
            log,
            rows=rows,
            rows_per_block=per_block,
            method=job.placement,
            seed=begun.seed,
            values=job.source,
            progress=begun.progress,
        )
        if log is None or not begun.replicate:
            return found
        return add_copies(log, found, begun.replicate, seed=begun.seed, progress=begun.progress)

    if begun.admission is not None:
        # One choice for any amount of DRAM; no simulation says what it would read.
        point = PlannedPoint(1.0, begun.admission, None)
        return placed(job.log), TablePlan((point,))
    if job.log is None:
        return placed(None), TablePlan()
    learn, validate = job.log.split(train=LEARN_SHARE, ordered=True)
    plan = tune(learn, validate, placed(learn), seed=begun.seed, progress=begun.progress)
    return placed(job.log), plan


def _check_fits(job: _Job, per_block: int) -> None:
    given = job.placement
    assert isinstance(given, Placement)
    if (given.rows, given.rows_per_block) != (job.source.rows, per_block):
        raise InputError(
            f"table {job.name!r}: the placement is for {given.rows} rows, "
            f"{given.rows_per_block} a block; the table has {job.source.rows} rows, "
            f"{per_block} a block in this engine"
        )


def _check_permutation(job: _Job, placement: Placement) -> None:
    """Refuse what would serve rows of other ids, whoever made the placement."""
    positions = placement.position_of_id
    taken = np.zeros(job.source.rows, np.bool_)
    if positions.dtype == np.uint32 and positions.shape == taken.shape:
        taken[positions[positions < taken.size]] = True
    if not taken.all():
        raise InputError(
            f"table {job.name!r}: the placement {placement.method!r} is not a permutation of "
            f"{taken.size} positions as uint32, so rows would be lost"
        )
    copies = placement.replicas
    if (
        copies is not None
        and copies.size
        and (
            copies.dtype != np.uint32
            or int(copies.max()) >= taken.size
            or np.unique(copies).size != copies.size
        )
    ):
        raise InputError(
            f"table {job.name!r}: the placement {placement.method!r} has copies that are not "
            "distinct ids of the table as uint32"
        )


def _sealed_blocks(
    begun: _Load, job: _Job, placement: Placement, payload_bytes: int
) -> Iterator[tuple[Keys, Payloads]]:
    """Seal the table's blocks, then those of copies, in the order of their keys."""
    ids = placement.id_of_position()
    yield from _sealed_run(begun, job, placement, payload_bytes, 0, ids)
    if placement.replicas is not None:
        copies = placement.replicas
        yield from _sealed_run(begun, job, placement, payload_bytes, placement.blocks, copies)


def _sealed_run(
    begun: _Load,
    job: _Job,
    placement: Placement,
    payload_bytes: int,
    first_block: int,
    ids: NDArray[np.uint32],
) -> Iterator[tuple[Keys, Payloads]]:
    """Gather rows `ids` into blocks from `first_block` on, and seal them, a few MiB at a time."""
    source, per_block = job.source, placement.rows_per_block
    row_bytes = source.row_bytes
    copies = 0 if placement.replicas is None else placement.replicas.size
    chunk = max(1, _CHUNK_BYTES // payload_bytes)
    for first in range(0, -(-ids.size // per_block), chunk):
        part = ids[first * per_block : (first + chunk) * per_block]
        count = -(-part.size // per_block)
        numbers = np.arange(first, first + count, dtype=np.int64) + first_block
        rows = np.zeros((count * per_block, row_bytes), np.uint8)
        source.gather(part, rows[: part.size])
        payloads = np.zeros((count, payload_bytes), np.uint8)
        end = blocks.HEADER_BYTES + per_block * row_bytes
        payloads[:, blocks.HEADER_BYTES : end] = rows.reshape(count, -1)
        blocks.seal(payloads, job.space, numbers, source.rows, copies, per_block, row_bytes)
        yield adapters.block_keys(job.space, numbers), payloads
        begun.progress.advance(count)


def _forget(root: Path, segment: int, held: Adapter | None) -> bool:
    """Delete a segment's blocks from the engine that the user holds.

    Returns False, to try again at a later load, where that engine is not at hand or fails.
    """
    spaces = manifest.segment_path(root, segment) / _SPACES_FILE
    if not spaces.exists():
        return True
    named = [line.split() for line in spaces.read_text().splitlines()]
    if held is None or any(name != held.name for name, _ in named):
        return False
    try:
        for _, space in named:
            held.delete_space(int(space))
    except BandanaError:
        return False
    return True
