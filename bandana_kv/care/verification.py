"""An offline check of a whole store: every retained version, every file, every block."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from bandana_kv import adapters
from bandana_kv.care.table_arrays import TableFiles
from bandana_kv.device.advice import DEFAULT_DEPTH, PROFILE_FILE
from bandana_kv.device.record import DeviceProfile
from bandana_kv.disk import manifest
from bandana_kv.disk.block_map import read_block_map
from bandana_kv.errors import (
    BandanaError,
    FormatError,
    InputError,
    MissingExtraError,
    NoPermissionError,
    StoreNotFoundError,
)
from bandana_kv.progress import Progress
from bandana_kv.serve.copies import bad_copies
from bandana_kv.serve.reader import BlockReader, Errors, StoredTable
from bandana_kv.system.addresses import by_address
from bandana_kv.system.permission import permission_named

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = [
    "Finding",
    "Report",
    "bad_blocks_of",
    "opened_engine",
    "stored",
    "verify",
]

_LISTED = 100
_CHUNK_BYTES = 16 << 20


class Finding(msgspec.Struct, frozen=True):
    """Something that is bad.

    Attributes
    ----------
    kind : str
        ``"current"``, ``"manifest"``, ``"device-profile"``, ``"positions"``, ``"heat"``,
        ``"copies"``, ``"block-map"``, ``"keys"``, ``"engine"`` or ``"block"``.
    version : int or None
        The newest version that is concerned.
    table : str or None
    block : int or None
    message : str
        What is wrong, and the way out.
    """

    kind: str
    version: int | None
    table: str | None
    block: int | None
    message: str


@dataclass
class Report:
    """What :func:`verify` found.

    Attributes
    ----------
    versions : list of int
        That are retained, all of them checked.
    current : int or None
        The one that is served.
    tables : int
        Of all versions, each once for each placement, however many versions share it.
    blocks, bytes : int
        That were read.
    bad_blocks : int
    problems : int
        Everything that is bad, blocks included.
    findings : list of Finding
        The first hundred of them.
    repaired_blocks : int
        That a repair wrote anew.
    """

    versions: list[int] = field(default_factory=list)
    current: int | None = None
    tables: int = 0
    blocks: int = 0
    bytes: int = 0
    bad_blocks: int = 0
    problems: int = 0
    findings: list[Finding] = field(default_factory=list)
    repaired_blocks: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is bad."""
        return self.problems == 0

    def add(
        self,
        kind: str,
        message: str,
        version: int | None = None,
        table: str | None = None,
        block: int | None = None,
    ) -> None:
        """Count something bad, and list it while there is room."""
        self.problems += 1
        if len(self.findings) < _LISTED:
            self.findings.append(Finding(kind, version, table, block, message))


@by_address()
@permission_named()
def verify(
    path: str | os.PathLike[str],
    *,
    adapter: Adapter | None = None,
    readers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check everything that the store at `path` holds, and change nothing.

    Parameters
    ----------
    path
        A directory that :func:`bandana_kv.load` made. Processes may be serving from it; none
        may be writing.
    adapter
        The adapter on your own handles, for a store that was loaded through one.
    readers
        Reads in flight; by default what the store's device profile says.
    progress
        Told of every table's blocks.

    Returns
    -------
    Report

    Raises
    ------
    StoreNotFoundError
        The path is mistyped, or holds no store.
    InputError
        The blocks lie in an engine that you hold, and `adapter` is not given.
    MissingExtraError
        The store's engine is not installed.

    Notes
    -----
    Cost: reads every block once, in the order of the keys, at the device's queue depth. Memory:
    17 bytes a row of the largest table while its placement is checked, and some 32 MiB. That rows
    are the right ones cannot be seen, only that they are those that were written.
    """
    root = Path(path).absolute()
    report = Report()
    manifests = _manifests(root, report)
    with contextlib.closing(BlockReader(readers or _depth(root, report))) as reader:
        for version, name in _distinct(manifests).values():
            held = manifests[version]
            report.tables += 1
            files = TableFiles(root, held.tables[name])
            _check_files(files, report, version, name)
            _check_blocks(root, held, name, adapter, reader, report, progress or Progress())
    return report


def _depth(root: Path, report: Report) -> int:
    path = root / PROFILE_FILE
    if path.exists():
        try:
            return DeviceProfile.read(path).queue_depth
        except NoPermissionError:
            raise
        except BandanaError as error:
            report.add("device-profile", f"{error}; or remove it")
    return DEFAULT_DEPTH


def _manifests(root: Path, report: Report) -> dict[int, manifest.Manifest]:
    """Read the manifest of every version that is retained."""
    try:
        report.current = manifest.read_current(root).version
    except StoreNotFoundError:
        raise
    except FormatError as error:
        report.add("current", str(error))
    found = {}
    report.versions = manifest.numbers_in(root / "manifests")
    for version in report.versions:
        try:
            found[version] = manifest.read_version(root, version)
        except FormatError as error:
            way_out = "" if version == report.current else "; or remove it, it is not served"
            report.add("manifest", f"{error}{way_out}", version)
    return found


def _distinct(manifests: dict[int, manifest.Manifest]) -> dict[tuple[int, int], tuple[int, str]]:
    """Return every table that some version has, by files and space: newest version, name."""
    return {
        (table.files, table.space): (version, name)
        for version, held in sorted(manifests.items())
        for name, table in held.tables.items()
    }


def _check_files(files: TableFiles, report: Report, version: int, name: str) -> None:
    checks = {
        "positions": files.positions,
        "heat": files.heat,
        "copies": files.original_of,
        "block-map": files.block_map,
        "keys": files.check_keys,
    }
    for kind, check in checks.items():
        try:
            check()
        except FormatError as error:
            report.add(kind, str(error), version, name)


def _check_blocks(
    root: Path,
    held: manifest.Manifest,
    name: str,
    adapter: Adapter | None,
    reader: BlockReader,
    report: Report,
    progress: Progress,
) -> None:
    table = held.tables[name]
    with contextlib.ExitStack() as stack:
        try:
            engine = opened_engine(stack, root, held, table, adapter, read_only=True)
        except BandanaError as error:
            theirs = not held.segments[table.segment].owned
            if theirs or isinstance(error, (MissingExtraError, NoPermissionError)):
                raise
            report.add("engine", str(error), held.version, name)
            report.bad_blocks += table.blocks
            return
        try:
            where = stored(root, name, table, engine)
        except FormatError:
            report.bad_blocks += table.blocks  # its map is among the findings
            return
        for count, errors in bad_blocks_of(where, table.blocks, reader, progress):
            report.blocks += count
            report.bytes += count * engine.payload_bytes
            report.bad_blocks += len(errors)
            for block in sorted(errors):
                report.add("block", str(errors[block]), held.version, name, block)


def bad_blocks_of(
    where: StoredTable, blocks: int, reader: BlockReader, progress: Progress
) -> Iterator[tuple[int, Errors]]:
    """Read all `blocks` of a table; yield for each chunk how many, and what is wrong."""
    progress.start(f"verify {where.name}", blocks, "blocks")
    chunk = max(1, _CHUNK_BYTES // where.adapter.payload_bytes)
    for first in range(0, blocks, chunk):
        numbers = np.arange(first, min(first + chunk, blocks), dtype=np.int64)
        errors = reader.read_sound(where, numbers)[1]
        if where.adapter.capabilities.remote:
            errors |= bad_copies(where, np.setdiff1d(numbers, list(errors)))
        yield numbers.size, errors
        progress.advance(numbers.size)
    progress.finish()


def opened_engine(
    stack: contextlib.ExitStack,
    root: Path,
    held: manifest.Manifest,
    table: manifest.Table,
    adapter: Adapter | None,
    *,
    read_only: bool,
) -> Adapter:
    """Return the engine that holds a table's blocks, closed with `stack` if it is the store's.

    Raises
    ------
    InputError
        It is one that the user holds, and `adapter` is not on it.
    BandanaError
        It cannot be opened.
    """
    segment = held.segments[table.segment]
    if segment.owned:
        path = manifest.engine_path(root, table.segment, table.pages)
        engine = stack.enter_context(
            adapters.open_existing(segment.adapter, path, read_only=read_only, pages=table.pages)
        )
    elif adapter is None or adapter.name != segment.adapter:
        raise InputError(
            f"{root}: blocks lie in a {segment.adapter} engine that you hold; pass adapter= "
            "on the same handle"
        )
    else:
        engine = adapter
    if engine.payload_bytes != segment.payload_bytes[table.pages]:
        raise FormatError(
            f"{root}: loaded with blocks of {segment.payload_bytes[table.pages]} bytes, this "
            f"engine's are {engine.payload_bytes}"
        )
    return engine


def stored(root: Path, name: str, table: manifest.Table, engine: Adapter) -> StoredTable:
    """Return where a table's blocks lie.

    Raises
    ------
    FormatError
        Its map is damaged.
    """
    return StoredTable(
        name,
        engine,
        table.space,
        table.rows,
        table.copies,
        table.row_bytes,
        table.rows_per_block,
        read_block_map(root, table),
    )
