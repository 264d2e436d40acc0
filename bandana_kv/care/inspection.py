"""What a store holds, what it takes on disk, and how fast it wears its drive: only looked at."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bandana_kv.cache.policy import Policy
from bandana_kv.disk import ledger, manifest
from bandana_kv.disk.budget import write_budget
from bandana_kv.disk.journal_files import journal_files
from bandana_kv.disk.plan import Choice
from bandana_kv.disk.table_keys import open_keys
from bandana_kv.errors import FormatError, InputError
from bandana_kv.system.permission import permission_named

__all__ = [
    "Inspection",
    "Rating",
    "SegmentSpace",
    "Space",
    "TableSummary",
    "VersionSummary",
    "Wear",
    "inspect",
]

_DAYS_A_YEAR = 365.25
_TERABYTE = 10**12


class VersionSummary(msgspec.Struct, frozen=True):
    """A version that the store keeps; `created` and `tables` are empty where it is damaged."""

    number: int
    current: bool
    created: str
    tables: tuple[str, ...]
    damage: str | None


class TableSummary(msgspec.Struct, frozen=True):
    """A table of the current version.

    Attributes
    ----------
    block_bytes : int
        Of all its blocks, as the engine gets them.
    policies : tuple of str
        The one for the DRAM that a plan chose; else those that simulation found best for several
        amounts of DRAM, rising, each once.
    chosen : Choice or None
        What a plan with a DRAM budget decided, with the reads that it predicted.
    codec : str
        How rows are stored; empty: as they are answered.
    row_bytes : int
        Of a row as it is stored.
    loss : Loss or None
        What that cost; None: nothing, or the rows came so.
    keys : str
        The kind of keys that callers ask by; empty: by ids. Then `rows` is how many keys there are,
        but for what the journal has.
    changed_keys : int
        That came, went or came again since the load.
    spare_rows : int
        For so many new keys there is room, until the table grows.
    """

    name: str
    rows: int
    dim: int
    dtype: str
    placement: str
    copies: int
    blocks: int
    pages: int
    block_bytes: int
    segment: int
    adapter: str
    policies: tuple[str, ...]
    chosen: Choice | None
    codec: str
    row_bytes: int
    loss: manifest.Loss | None
    keys: str
    changed_keys: int
    spare_rows: int


class SegmentSpace(msgspec.Struct, frozen=True):
    """What a load or a re-placement wrote.

    Attributes
    ----------
    adapter, owned
        Of the engine; None where no kept version has blocks in it.
    disk_bytes : int
        On disk.
    block_bytes : int
        Of blocks that the kept versions have in it: what the engine takes beside them is its own
        room, and that of blocks which were written anew since.
    versions : tuple of int
        That use it.
    """

    segment: int
    adapter: str | None
    owned: bool | None
    disk_bytes: int
    block_bytes: int
    versions: tuple[int, ...]


class Space(msgspec.Struct, frozen=True):
    """Bytes on disk.

    Attributes
    ----------
    disk_bytes : int
        Of the whole directory.
    other_versions_bytes : int
        In segments that only versions use which are not current: ``load(..., keep=1)`` frees them.
    litter_bytes : int
        In segments that no version uses: the next load frees them. A load that runs just now
        counts here, too.
    journal_bytes : int
        Of updates that are not yet in blocks.
    free_bytes : int
        On the file system.
    """

    disk_bytes: int
    other_versions_bytes: int
    litter_bytes: int
    journal_bytes: int
    free_bytes: int


class Wear(msgspec.Struct, frozen=True):
    """How fast the drive wears.

    Attributes
    ----------
    last_day_bytes, week_bytes, mean_bytes, total_bytes, measured_bytes, days
        As :class:`bandana_kv.disk.ledger.PerDay` says.
    entries, damaged_lines : int
        Of the ledger.
    device_bytes : int
        Capacity of the device.
    device_bytes_given : bool
        The caller said so; False: the size of the file system stands for it.
    drive_writes_per_day : float
        `week_bytes` / `device_bytes`.
    rated_bytes : int or None
        What may be written in all, by the rating.
    years_left : float or None
        At `week_bytes` a day, of what the rating leaves after `total_bytes`; None without a
        rating, or if nothing was written within the week.
    budget_bytes, budget_left_bytes : int or None
        What may be written in 24 hours, and what of it is left now.
    """

    last_day_bytes: int
    week_bytes: float
    mean_bytes: float
    total_bytes: int
    measured_bytes: int
    days: float
    entries: int
    damaged_lines: int
    device_bytes: int
    device_bytes_given: bool
    drive_writes_per_day: float
    rated_bytes: int | None
    years_left: float | None
    budget_bytes: int | None
    budget_left_bytes: int | None


class Inspection(msgspec.Struct, frozen=True):
    """All of it; `current` is the number of the version that is served."""

    path: str
    current: int
    versions: list[VersionSummary]
    tables: list[TableSummary]
    segments: list[SegmentSpace]
    space: Space
    wear: Wear


@dataclass(frozen=True)
class Rating:
    """How much a drive may write, as its maker says it, in one of two ways.

    Attributes
    ----------
    tbw : float or None
        Terabytes (10^12 bytes) written, in all.
    dwpd : float or None
        Drive writes per day, over `warranty_years`.
    warranty_years : float
    """

    tbw: float | None = None
    dwpd: float | None = None
    warranty_years: float = 5.0

    def total_bytes(self, device_bytes: int) -> int:
        """Return what a drive of that capacity may write in all.

        Raises
        ------
        InputError
            Not one of both ways is given, or a number is not above 0.
        """
        numbers = [each for each in (self.tbw, self.dwpd) if each is not None]
        if len(numbers) != 1 or not all(
            0 < number < 1e9 for number in (*numbers, self.warranty_years)
        ):
            raise InputError("rate a drive by tbw or by dwpd, and by a number above 0")
        if self.tbw is not None:
            return int(self.tbw * _TERABYTE)
        return int(numbers[0] * device_bytes * self.warranty_years * _DAYS_A_YEAR)


@permission_named()
def inspect(
    path: str | os.PathLike[str],
    *,
    rating: Rating | None = None,
    device_bytes: int | None = None,
    now: float | None = None,
) -> Inspection:
    """Look at the store at `path`, and change nothing.

    Parameters
    ----------
    path
        The store's directory. Processes may be serving from it, loading or updating.
    rating
        Of the drive, to know the years that are left to it.
    device_bytes
        Capacity of the drive; by default the size of the file system that the store lies on.
    now
        Seconds since 1970; by default the clock's.

    Raises
    ------
    StoreNotFoundError, FormatError
        There is no store, or its current version or its ledger cannot be read.
    InputError
        The rating or the capacity is none.

    Notes
    -----
    Cost: reads manifests and the ledger, and asks for the size of every file. No engine is opened,
    no block read.
    """
    root = Path(path).absolute()
    if device_bytes is not None and device_bytes < 1:
        raise InputError(f"device_bytes {device_bytes!r} is not a number of bytes from 1 up")
    # Looked for first: what a load puts there meanwhile is not taken for litter.
    written = manifest.numbers_in(root / "segments")
    current = manifest.read_current(root)
    versions, kept = _versions(root, current)
    segments = [_segment(root, number, kept) for number in written]
    return Inspection(
        path=str(root),
        current=current.version,
        versions=versions,
        tables=[_table(root, current, name) for name in current.tables],
        segments=segments,
        space=_space(root, current, segments),
        wear=_wear(root, rating, device_bytes, time.time() if now is None else now),
    )


def _versions(
    root: Path, current: manifest.Manifest
) -> tuple[list[VersionSummary], list[manifest.Manifest]]:
    summaries, kept = [], []
    for number in manifest.numbers_in(root / "manifests"):
        is_current = number == current.version
        try:
            found = current if is_current else manifest.read_version(root, number)
        except FormatError as error:
            if manifest.manifest_path(root, number).exists():  # and was not removed just now
                summaries.append(VersionSummary(number, is_current, "", (), str(error)))
            continue
        kept.append(found)
        summaries.append(
            VersionSummary(number, is_current, found.created, tuple(found.tables), None)
        )
    return summaries, kept


def _table(root: Path, current: manifest.Manifest, name: str) -> TableSummary:
    table = current.tables[name]
    keys = open_keys(root, table, verify=False)
    segment = current.segments[table.segment]
    chosen = table.plan.choice
    policies = dict.fromkeys(str(point.policy) for point in table.plan.points)
    if chosen is not None:
        policies = {str(chosen.policy): None}
    return TableSummary(
        name=name,
        rows=table.rows if keys is None else len(keys),
        dim=table.dim,
        dtype=table.dtype,
        placement=table.placement,
        copies=table.copies,
        blocks=table.blocks,
        pages=table.pages,
        block_bytes=table.blocks * segment.payload_bytes[table.pages],
        segment=table.segment,
        adapter=segment.adapter,
        policies=tuple(policies) or (str(Policy()),),
        chosen=chosen,
        codec=table.codec,
        row_bytes=table.row_bytes,
        loss=table.loss,
        keys=table.keys,
        changed_keys=0 if keys is None else keys.changed,
        spare_rows=0 if keys is None else table.rows - keys.next_id,
    )


def _segment(root: Path, number: int, kept: list[manifest.Manifest]) -> SegmentSpace:
    users = [each for each in kept if number in each.directories]
    known = next((each.segments[number] for each in users if number in each.segments), None)
    blocks = {
        table.space: table.blocks * known.payload_bytes[table.pages]
        for each in users
        for table in each.tables.values()
        if known is not None and table.segment == number
    }
    return SegmentSpace(
        segment=number,
        adapter=known.adapter if known else None,
        owned=known.owned if known else None,
        disk_bytes=manifest.disk_bytes(manifest.segment_path(root, number)),
        block_bytes=sum(blocks.values()),
        versions=tuple(each.version for each in users),
    )


def _space(root: Path, current: manifest.Manifest, segments: list[SegmentSpace]) -> Space:
    unused = [each for each in segments if current.version not in each.versions]
    system = os.statvfs(root)
    journal_bytes = 0
    for path in journal_files(root):
        if path.exists():
            journal_bytes += path.stat().st_size
    return Space(
        disk_bytes=manifest.disk_bytes(root),
        other_versions_bytes=sum(each.disk_bytes for each in unused if each.versions),
        litter_bytes=sum(each.disk_bytes for each in unused if not each.versions),
        journal_bytes=journal_bytes,
        free_bytes=system.f_bavail * system.f_frsize,
    )


def _wear(root: Path, rating: Rating | None, device_bytes: int | None, now: float) -> Wear:
    found, damaged = ledger.read_ledger(root)
    per_day = ledger.per_day(found, now)
    system = os.statvfs(root)
    capacity = device_bytes or max(1, system.f_blocks * system.f_frsize)
    rated = None if rating is None else rating.total_bytes(capacity)
    years = None
    if rated is not None and per_day.week_bytes:
        left = max(0, rated - per_day.total_bytes)
        years = left / per_day.week_bytes / _DAYS_A_YEAR
    budget = write_budget(root)
    return Wear(
        **per_day._asdict(),
        entries=len(found),
        damaged_lines=damaged,
        device_bytes=capacity,
        device_bytes_given=device_bytes is not None,
        drive_writes_per_day=per_day.week_bytes / capacity,
        rated_bytes=rated,
        years_left=years,
        budget_bytes=budget,
        budget_left_bytes=None if budget is None else max(0, budget - per_day.last_day_bytes),
    )
