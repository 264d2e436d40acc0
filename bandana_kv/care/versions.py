"""The versions that a store keeps, and the way back to one of them."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bandana_kv.disk import manifest, retention
from bandana_kv.disk.journal_files import journal_files, read_records
from bandana_kv.disk.lock import writer_lock
from bandana_kv.errors import FormatError, InputError, StoreNotFoundError
from bandana_kv.system.addresses import by_address
from bandana_kv.system.durable import disk_full_named
from bandana_kv.system.permission import permission_named

__all__ = ["Details", "Version", "details", "rollback", "versions"]


@dataclass(frozen=True)
class Version:
    """A version that a store keeps.

    Attributes
    ----------
    number : int
    created : str
        When it was loaded: ISO 8601, UTC.
    tables : tuple of str
    current : bool
        Whether `open` and `refresh` serve it.
    """

    number: int
    created: str
    tables: tuple[str, ...]
    current: bool


@dataclass(frozen=True)
class Details:
    """A version that a store keeps, and how much is in it.

    Attributes
    ----------
    number, created, tables, current
        As of :class:`Version`.
    identity : str
        Random, and of this version alone; empty where it is of a format before 5.
    rows, bytes : int
        Of all tables; bytes of their blocks, which versions may share.
    journal : int
        Rows of its tables in the journal: they were updated, and are not known to be in blocks.
    """

    number: int
    created: str
    tables: tuple[str, ...]
    current: bool
    identity: str
    rows: int
    bytes: int
    journal: int


@by_address()
@permission_named()
def versions(path: str | os.PathLike[str]) -> list[Version]:
    """Return the versions that the store at `path` keeps, oldest first.

    A version after the current one was rolled back from, or its load died just before it
    was switched to; the next load removes it. What is damaged, or is removed just now, is
    left out, and so is what nobody may go back to: a version with a placement of a table that
    gave way to another one by :meth:`~bandana_kv.EmbeddingStore.place_anew`.

    Raises
    ------
    StoreNotFoundError, FormatError
        There is no store, or it does not say which version is current.
    """
    root = Path(path).absolute()
    current = manifest.current_number(root)
    kept = retention.readable(root)
    old = retention.superseded(kept, current)
    return [
        Version(number, each.created, tuple(each.tables), number == current)
        for number, each in kept.items()
        if number not in old
    ]


@by_address()
@permission_named()
def details(path: str | os.PathLike[str]) -> list[Details]:
    """Return the versions that the store at `path` keeps, with what is in them, oldest first.

    Raises
    ------
    StoreNotFoundError, FormatError
        As :func:`versions`; or the journal is damaged.

    Notes
    -----
    Cost: reads manifests and the journal. No engine is opened, no block read.
    """
    root = Path(path).absolute()
    kept = versions(root)
    found = retention.readable(root)
    updated = _updated_rows(root)
    return [_details(each, found[each.number], updated) for each in kept if each.number in found]


def _updated_rows(root: Path) -> Counter[int]:
    """Return how many rows the journal has, by key space."""
    updated: Counter[int] = Counter()
    for path in journal_files(root):
        with contextlib.suppress(FileNotFoundError):  # it has just gone into blocks
            for record, _ in read_records(path):
                updated[record.space] += record.ids.size
    return updated


def _details(version: Version, found: manifest.Manifest, updated: Counter[int]) -> Details:
    tables = found.tables.values()
    return Details(
        version.number,
        version.created,
        version.tables,
        version.current,
        identity=found.identity,
        rows=sum(table.rows - table.spare for table in tables),
        bytes=sum(
            table.blocks * found.segments[table.segment].payload_bytes[table.pages]
            for table in tables
        ),
        journal=sum(updated[table.space] for table in tables),
    )


@by_address()
@permission_named()
def rollback(path: str | os.PathLike[str], version: int | None = None) -> int:
    """Make an earlier version of the store at `path` the current one again.

    What `open` and `refresh` serve from now on; processes that serve another version go on
    until they refresh. The next load makes a version with a new number, and removes those
    that were rolled back from.

    Parameters
    ----------
    path
        The store's directory.
    version
        One of :func:`versions`, a later one too; by default the one before the current.

    Returns
    -------
    int
        The number of the version that is current now.

    Raises
    ------
    StoreNotFoundError
        The path holds no store.
    InputError
        The store does not keep that version, or a table of it was placed anew since.
    FormatError
        That version is damaged; the current one stays.
    LoadInProgressError
        A load holds the store.

    Notes
    -----
    Cost: one small file is written and made durable; the switch is its rename.
    """
    root = Path(path).absolute()
    if not manifest.has_store(root):
        raise StoreNotFoundError(f"{root} holds no store; make one with bandana_kv.load")
    with disk_full_named(root), writer_lock(root) as still_there:
        current = manifest.current_number(root)
        manifest.settle_current(root)
        # Not later: which placements are in use is known by what is current.
        old = retention.drop_superseded(root)
        if version in old:
            raise InputError(
                f"{root}: of version {version} a table was placed anew, and updates since then "
                "are only in its new blocks; place it as it was, or load its rows again"
            )
        kept = [each for each in manifest.numbers_in(root / "manifests") if each not in old]
        if version is None:
            version = max((number for number in kept if number < current), default=None)
        if version is None or version not in kept:
            wanted = "no version before the current one" if version is None else f"no {version}"
            raise InputError(
                f"{root}: keeps {wanted}; it has {', '.join(map(str, kept))}, "
                "and load(..., keep=) says how many stay"
            )
        wanted_manifest = manifest.read_version(root, version)
        for segment in sorted(wanted_manifest.directories):
            if not manifest.segment_path(root, segment).is_dir():
                raise FormatError(
                    f"{root}: version {version} has lost its segment {segment}; "
                    "restore it from a backup, or roll back to another version"
                )
        still_there()
        manifest.point_at(root, version)
    return int(version)
