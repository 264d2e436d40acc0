"""Rows + plan -> a version in a store directory."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv import adapters
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Policy, asked_policy
from bandana_kv.device import DeviceProfile
from bandana_kv.device.advice import PROFILE_FILE, given_profile, pages_of
from bandana_kv.disk import blocks, budget, ledger, manifest, retention
from bandana_kv.disk.lock import writer_lock
from bandana_kv.disk.placement import check_fits, check_permutation
from bandana_kv.disk.plan import Plan, PlannedPoint, TablePlan
from bandana_kv.disk.table_files import write_arrays
from bandana_kv.errors import BandanaError, DiskFullError, InputError
from bandana_kv.keys import build_index
from bandana_kv.keys.texts import TEXT_KINDS, TEXTS, write_texts
from bandana_kv.load.jobs import Job, check_seed, checked_jobs, held_adapter, is_remote
from bandana_kv.load.numbers import Numbers, first_free_space, first_of_store, with_spaces
from bandana_kv.load.sealed_blocks import one_ahead, sealed_blocks
from bandana_kv.load.stored_rows import StoredRows
from bandana_kv.placement import Placement, place
from bandana_kv.placement.replication import replicate as add_copies
from bandana_kv.plan.points import best_points, capacities_of, judged, split
from bandana_kv.progress import Progress
from bandana_kv.rows.given import Rows
from bandana_kv.system.addresses import by_address
from bandana_kv.system.durable import disk_full_named, make_directory, sync_directory
from bandana_kv.system.permission import permission_named
from bandana_kv.system.threads import threads_named

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter
    from bandana_kv.adapters.rows import KeyedRows
    from bandana_kv.logs.access_log import AccessLog

__all__ = ["load"]


@dataclass(frozen=True)
class _Load:
    """What the stages of one load share."""

    root: Path
    version: int
    seed: int
    replicate: float
    policy: Policy | None
    progress: Progress


@by_address()
@permission_named()
@threads_named()
def load(
    path: str | os.PathLike[str],
    tables: Mapping[str, str | os.PathLike[str] | NDArray[Any] | KeyedRows | Rows],
    logs: Mapping[str, AccessLog] | None = None,
    *,
    store_as: str | Mapping[str, str] | None = None,
    adapter: str | Adapter = "lmdb",
    placement: str | Mapping[str, str | Placement] = "shp",
    plan: Plan | None = None,
    replicate: float = 0.0,
    spare: float = 0.1,
    policy: Policy | None = None,
    admission: str | None = None,
    threshold: int | None = None,
    profile: DeviceProfile | str | os.PathLike[str] | None = None,
    seed: int = 0,
    keep: int = 2,
    progress: Progress | None = None,
    check: Callable[[manifest.Manifest], None] | None = None,
    numbers: Numbers | None = None,
) -> int:
    """Load tables into the store at `path`, as a new version that then is the one served.

    Parameters
    ----------
    path
        The store's directory; made if it is not there. Or the address of a cluster, such as
        ``redis://host:port,host:port/?prefix=shop``: :func:`bandana_kv.cluster.load` is called
        then, and says what it takes.
    tables
        Rows by table name: an array (rows, dim), or the path of a ``.npy`` file of any size.
        An array that is mapped from a file, or any slice of one, is read as a file is; masked
        ones are refused. Rows in an engine, opened by :func:`bandana_kv.adapters.rows.open_rows`,
        have the ids that its keys say. :class:`bandana_kv.Rows` says more of them. Tables of the
        store that are not named stay as they are.
    logs
        Training log by table name. A table without one is placed by ``identity`` unless
        `placement` names a method that needs none.
    store_as
        How rows are stored, for all tables or by table: ``"float32"``, ``"float16"``,
        ``"bfloat16"``, ``"int8-rowwise"`` or ``"int4-rowwise"`` (:mod:`bandana_kv.codecs`). Rows
        are answered as float32 then. By default they are stored as they are, and lose nothing.
    adapter
        The engine: a name, for an engine directory inside the store, or an adapter on
        handles that you hold.
    placement
        A method of :func:`bandana_kv.placement.methods`, for all tables or by table; or by
        table a :class:`~bandana_kv.placement.Placement` made before.
    plan
        What :func:`bandana_kv.plan.choose_plan` made of the same logs: it names each table's
        placement, policy and DRAM, and `open` obeys it. A placement that is named by table
        goes before it.
    replicate
        Share of extra blocks, 0 to 1, for second copies of rows that requests find alone in
        their block. Only for placements learnt here, from a log.
    spare
        Room for the rows of new keys (:meth:`bandana_kv.EmbeddingStore.upsert`), in tables that
        are asked by keys: as a share of their rows, from 0 to 1. It grows when it is used up.
    policy
        How every table's cache is run. By default simulation on a part of the training log
        that the placement has not seen decides, for several amounts of DRAM.
    admission, threshold
        Short for LRU with that :class:`~bandana_kv.cache.policy.Admission`.
    profile
        What ``tools/profile_device.py`` found, or the path of it. Blocks then are as long as it
        advises, whole pages, and the store keeps it: `open` obeys its queue depth. Without
        one, neither now nor kept from before, blocks are the pages that a row needs.
    seed
        Of placement and simulation.
    keep
        How many versions stay, the new one included, to roll back to. What some process
        still serves stays beside them until a later load.
    progress
        Told of every stage.
    check
        Called with the new version's manifest when all of it is written, before it is served;
        what it raises ends the load as any failure does.
    numbers
        Who gives out the number of the version and key spaces; by default the next ones in
        the directory.

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
    WriteBudgetError
        More would be written in 24 hours than :func:`bandana_kv.set_write_budget` allows;
        found before anything is written.
    DiskFullError
        No room. This and every other failure leaves the version served before in place and
        removes what was begun.

    Notes
    -----
    Cost: each row is read once, each block written once; a placed table is read in up to 16
    passes of its file's pages. Resident memory is some 25 bytes a row, what placement takes (it
    grows with the log), and 100 to 300 MiB, whatever the size of the rows.
    """
    root = Path(path).absolute()
    check_seed(seed)
    if not isinstance(keep, (int, np.integer)) or keep < 1:
        raise InputError(f"keep {keep!r} is not a number of versions from 1 up")
    if not 0 <= replicate <= 1:
        raise InputError(f"replicate {replicate!r} is not a share of the blocks from 0 to 1")
    if not 0 <= spare <= 1:
        raise InputError(f"spare {spare!r} is not a share of the rows from 0 to 1")
    fixed = asked_policy(policy, admission, threshold)
    held = held_adapter(adapter, profile)
    advice = given_profile(profile)

    def forget(segment: int) -> bool:
        return retention.forget_blocks(root, segment, held)

    with contextlib.ExitStack() as stack:
        pages, named = pages_of(root, advice), logs or {}
        jobs = checked_jobs(stack, tables, named, store_as, placement, plan, pages, held, spare)
        stack.enter_context(disk_full_named(root))
        still_there = stack.enter_context(writer_lock(root))
        # Before anything is dropped, so that no number is given twice.
        version, first_space = manifest.next_version(root), first_free_space(root)
        wanted_bytes = int((1 + replicate) * sum(job.device_bytes for job in jobs))
        if not is_remote(held):
            budget.check_budget(root, wanted_bytes)
        if manifest.has_store(root):
            manifest.settle_current(root)
        retention.drop_unused(root, keep, forget)
        old = manifest.read_current(root) if manifest.has_store(root) else None
        if numbers is None:
            next_space = itertools.count(first_of_store(old, held, first_space)).__next__
        else:
            version, next_space = numbers.version, numbers.next_space
        jobs = with_spaces(jobs, held, next_space)
        _check_room(root, wanted_bytes, held)
        begun = _Load(root, version, seed, replicate, fixed, progress or Progress())
        meter = ledger.Meter()
        try:
            new = _write_segment(begun, jobs, adapter, old)
            if check is not None:
                check(new)
            still_there()
            if advice is not None:
                advice.write(root / PROFILE_FILE)
            manifest.switch_to(root, new)
        except BaseException:
            still_there()  # what lies here otherwise is not for this load to clear up
            if manifest.has_store(root):
                lost_bytes = manifest.disk_bytes(manifest.segment_path(root, version))
                ledger.note(root, meter.entry("load", None, tables, lost_bytes))
            retention.discard(root, version, forget)
            raise
        ledger.note(root, meter.entry("load", version, tables, _handed_bytes(root, new, held)))
        # The new version is served; what cannot be dropped now, the next load drops.
        with contextlib.suppress(OSError, BandanaError):
            retention.drop_unused(root, keep, forget)
    return version


def _check_room(root: Path, need: int, held: Adapter | None) -> None:
    """Refuse early what cannot fit; a device that fills up later is caught as well."""
    free = shutil.disk_usage(root).free
    if held is None and need > free:
        raise DiskFullError(
            errno.ENOSPC,
            f"{root}: the load needs about {need >> 20} MiB and {free >> 20} MiB are free; "
            "free some and load again, nothing was lost",
        )


def _handed_bytes(root: Path, new: manifest.Manifest, held: Adapter | None) -> int:
    """Return what a load gave to engines of this machine and wrote beside them."""
    written = new.segments[new.version]
    beside = manifest.segment_path(root, new.version).iterdir()
    return sum(path.stat().st_size for path in beside if path.is_file()) + sum(
        table.blocks * written.payload_bytes[table.pages]
        for table in new.tables.values()
        if table.segment == new.version and not is_remote(held)
    )


def _write_segment(
    begun: _Load, jobs: list[Job], adapter: str | Adapter, old: manifest.Manifest | None
) -> manifest.Manifest:
    """Write the tables' blocks and arrays; return the manifest that makes them a version."""
    directory = manifest.segment_path(begun.root, begun.version)
    make_directory(directory)
    payload_bytes: dict[int, int] = {}
    tables = dict(old.tables) if old else {}
    if not isinstance(adapter, str):
        spaces = (job.space for job in jobs)
        retention.note_held_spaces(begun.root, begun.version, adapter.name, spaces)
    for pages in sorted({job.pages for job in jobs}):
        alike = [job for job in jobs if job.pages == pages]
        with _engine(begun, alike, adapter) as engine:
            payload_bytes[pages] = engine.payload_bytes
            for job in alike:
                tables[job.name] = _write_table(begun, job, engine)
    sync_directory(directory)
    sync_directory(directory.parent)
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
    next_space = 1 + max(table.space for table in tables.values())
    return manifest.Manifest(
        manifest.FORMAT_VERSION,
        begun.version,
        now,
        next_space,
        segments,
        tables,
        (old.store if old else "") or manifest.new_identity(),
        manifest.new_identity(),
    )


@contextlib.contextmanager
def _engine(begun: _Load, jobs: list[Job], adapter: str | Adapter) -> Iterator[Adapter]:
    if not isinstance(adapter, str):
        yield adapter
        return
    path = manifest.engine_path(begun.root, begun.version, jobs[0].pages)
    size_bytes = int((1 + begun.replicate) * sum(job.device_bytes for job in jobs))
    with adapters.create(adapter, path, size_hint_bytes=size_bytes, pages=jobs[0].pages) as engine:
        yield engine


def _write_table(begun: _Load, job: Job, engine: Adapter) -> manifest.Table:
    source = job.source
    per_block = blocks.rows_per_block(engine.payload_bytes, job.stored.row_bytes)
    placement, plan = _placed_and_planned(begun, job, per_block)
    check_permutation(job.name, source.rows, placement)
    placement = placement.extended(job.rows_with_spare(per_block))
    heat = np.zeros(placement.rows, np.uint8)
    touched = source.rows
    if job.log is not None:
        heat = heat_by_position(job.log.ids, placement.position_of_id)
        touched = int(np.count_nonzero(heat)) or source.rows
    copies = write_arrays(begun.root, begun.version, job.space, placement, heat)
    if job.keys is not None:
        path = manifest.table_file(begun.root, begun.version, job.space, "keys")
        build_index(path, job.keys.kind, job.keys.words)
        if job.keys.kind in TEXT_KINDS:
            texts = manifest.table_file(begun.root, begun.version, job.space, TEXTS)
            write_texts(texts, job.keys.kind, job.keys.given)
    count = placement.blocks + -(-copies // per_block)
    begun.progress.start(f"load {job.name}", count, "blocks")
    sealed = sealed_blocks(job, placement, engine.payload_bytes, begun.progress)
    with contextlib.closing(one_ahead(sealed)) as batches:
        engine.bulk_load(batches, count)
    begun.progress.finish()
    return manifest.Table(
        segment=begun.version,
        space=job.space,
        pages=job.pages,
        rows=placement.rows,
        dim=source.dim,
        dtype=job.dtype.str,
        rows_per_block=per_block,
        copies=copies,
        placement=placement.method,
        looked_up_rows=touched,
        plan=plan,
        codec=job.codec.name if job.codec else "",
        loss=job.stored.loss if isinstance(job.stored, StoredRows) else None,
        keys=job.keys.kind if job.keys else "",
        spare=placement.rows - source.rows,
    )


def _placed_and_planned(begun: _Load, job: Job, per_block: int) -> tuple[Placement, TablePlan]:
    """Return the placement from the whole log, and the plan from a part held back from it."""
    rows = job.source.rows

    def placed(log: AccessLog | None) -> Placement:
        if not isinstance(job.placement, str):
            check_fits(job.name, rows, per_block, job.placement)
            return job.placement
        found = place(
            log,
            rows=rows,
            rows_per_block=per_block,
            method=job.placement,
            seed=begun.seed,
            resident=_resident_share(job),
            values=job.source,
            progress=begun.progress,
        )
        if log is None or not begun.replicate:
            return found
        return add_copies(log, found, begun.replicate, seed=begun.seed, progress=begun.progress)

    if begun.policy is not None:
        # One choice for any amount of DRAM; no simulation says what it would read.
        return placed(job.log), TablePlan((PlannedPoint(rows, begun.policy, None),))
    if job.log is None:
        return placed(None), TablePlan()
    if job.plan is not None:
        return placed(job.log), job.plan
    parts = split(job.log)
    if parts is None:
        return placed(job.log), TablePlan()
    stream, layout = judged(*parts, placed(parts[0]))
    points = best_points(stream, layout, capacities_of(rows), begun.seed, begun.progress, job.name)
    return placed(job.log), TablePlan(points, job.log.lookups)


def _resident_share(job: Job) -> float | None:
    """Return the share of the rows that the plan expects DRAM to hold all the time."""
    if job.plan is None or job.plan.choice is None or not job.plan.choice.resident_rows:
        return None
    return min(1.0, job.plan.choice.resident_rows / job.source.rows)
