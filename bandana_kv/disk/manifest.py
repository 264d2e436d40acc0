"""Versions of a store directory, and the atomic switch between them.

    DIR/CURRENT                 the number of the version that `open` serves
    DIR/manifests/000003.json   what version 3 is made of; never changed once written
    DIR/segments/000003/        what the load that made version 3 wrote: the engine's files,
                                and per table the positions and the heat of its rows; or only
                                these, and block maps, where a re-placement made the version
    DIR/lock                    held by a load, so that there is one at a time, see `lock`
    DIR/ledger.jsonl            what loads, updates and repairs wrote, see `ledger`
    DIR/write-budget.json       what they may write a day, if that is limited, see `budget`

A version may use segments of earlier loads: loading one table leaves the others where they
are. The switch is one rename of ``CURRENT``; a segment that no manifest names, because its
load died, is litter that the next load removes. Paths are made from numbers only, so that
no manifest can point outside the store.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

import msgspec
import xxhash

from bandana_kv.codecs import codec_names
from bandana_kv.disk.blocks import HEADER_BYTES
from bandana_kv.disk.manifest_data import Loss, Manifest, Segment, Table
from bandana_kv.disk.plan import check_numbers
from bandana_kv.errors import FormatError, InputError, StoreNotFoundError
from bandana_kv.system.durable import NO_ROOM, make_directory, sync_directory, write_durably
from bandana_kv.system.permission import check_permission

__all__ = [
    "FORMAT_VERSION",
    "Loss",
    "Manifest",
    "Segment",
    "Table",
    "current_number",
    "current_path",
    "disk_bytes",
    "engine_path",
    "has_store",
    "key_changes_path",
    "manifest_path",
    "new_identity",
    "next_version",
    "numbers_in",
    "point_at",
    "read_current",
    "read_version",
    "segment_path",
    "settle_current",
    "switch_to",
    "table_file",
    "write_version",
]

FORMAT_VERSION = 7
# Format 6 has no spare rows, 5 no codecs, 4 no identities; the tables of 3 lie as they were
# loaded, too.
_OLDEST_FORMAT = 3


class _File(msgspec.Struct):
    checksum: str
    manifest: msgspec.Raw


class _Format(msgspec.Struct):
    format: int


def new_identity() -> str:
    """Return 64 random bits, by which a store or a version is known wherever it lies."""
    return secrets.token_hex(8)


def segment_path(root: Path, segment: int) -> Path:
    """Return the directory of what one load wrote."""
    return root / "segments" / f"{segment:06d}"


def engine_path(root: Path, segment: int, pages: int) -> Path:
    """Return the directory of the segment's engine for blocks of `pages` pages."""
    return segment_path(root, segment) / f"blocks-{pages}"


def table_file(root: Path, files: int, space: int, kind: str) -> Path:
    """Return the file that holds the positions, say, or the heat of a table."""
    return segment_path(root, files) / f"{kind}-{space}"


def key_changes_path(root: Path, table: Table) -> Path:
    """Return the file of the keys that came and went; it lies with the index of those it had."""
    return table_file(root, table.segment, table.space, "key-changes")


def manifest_path(root: Path, version: int) -> Path:
    """Return the file that says what a version is made of."""
    return root / "manifests" / f"{version:06d}.json"


def current_path(root: Path) -> Path:
    """Return the file that says which version is served."""
    return root / "CURRENT"


def has_store(root: Path) -> bool:
    """Return whether some version was ever switched to at `root`."""
    return current_path(root).exists()


def read_current(root: Path) -> Manifest:
    """Return the manifest of the version to serve.

    Raises
    ------
    StoreNotFoundError
        The path is mistyped, or holds no store.
    FormatError
        The store is damaged, or of a newer format.
    """
    while True:
        version = current_number(root)
        try:
            return read_version(root, version)
        except FormatError:
            # Loads may have dropped the version that was current before.
            if current_number(root) == version:
                raise


def current_number(root: Path) -> int:
    """Return the number of the version to serve. Cost: reads a file of a few bytes.

    Raises
    ------
    StoreNotFoundError, FormatError
        As :func:`read_current`.
    """
    path = current_path(root)
    try:
        text = path.read_text("ascii")
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "holds no store" if root.is_dir() else "does not exist"
        raise StoreNotFoundError(f"{root} {what}; make one with bandana_kv.load") from error
    except (OSError, UnicodeDecodeError) as error:
        check_permission(error, path)
        raise FormatError(f"{path}: cannot be read ({error})") from error
    if not re.fullmatch(r"[1-9][0-9]{0,8}\n", text):
        raise FormatError(f"{path}: damaged; it should hold a version number")
    return int(text)


def read_version(root: Path, version: int) -> Manifest:
    """Return the manifest of one version.

    Raises
    ------
    FormatError
        It is not there, damaged, or of another format.
    """
    return _read_manifest(manifest_path(root, version), version)


def _read_manifest(path: Path, version: int) -> Manifest:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        body = bytes(file.manifest)
        found = msgspec.json.decode(body, type=_Format).format
        if found > FORMAT_VERSION:
            raise FormatError.newer(path, found, FORMAT_VERSION)
        if found < _OLDEST_FORMAT:
            raise FormatError(
                f"{path}: format {found} is older than this release reads "
                f"({FORMAT_VERSION}); load the tables again into another directory"
            )
        if file.checksum != xxhash.xxh3_64_hexdigest(body):
            raise FormatError(f"{path}: its checksum does not match; restore it from a backup")
        manifest = msgspec.json.decode(body, type=Manifest)
        for table in manifest.tables.values():
            check_numbers(table.plan)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        check_permission(error, path)
        raise FormatError(f"{path}: damaged ({error}); restore it from a backup") from error
    _check(path, manifest, version)
    return manifest


def _check(path: Path, manifest: Manifest, version: int) -> None:
    """Check what the types cannot: numbers that later size arrays or name directories."""
    good = manifest.version == version and 0 < manifest.next_space < 1 << 24
    for name, table in manifest.tables.items():
        segment = manifest.segments.get(table.segment)
        good = (
            good
            and segment is not None
            and 0 < table.segment <= version
            and (table.placed_by == 0 or table.segment < table.placed_by <= version)
            and 0 < table.space < manifest.next_space
            and 0 < table.rows < 1 << 32
            and 0 < table.dim < 1 << 32
            and 0 < table.rows_per_block <= segment.payload_bytes.get(table.pages, 0) < 1 << 24
            and 0 <= table.looked_up_rows <= table.rows
            and 0 <= table.copies <= table.rows
            and 0 <= table.spare < table.rows
            and _is_named_well(name)
            and table.codec in ("", *codec_names())
            and re.fullmatch(r"[<>|][biufc][0-9]{1,2}", table.dtype) is not None
            and _fits(table, segment.payload_bytes[table.pages])
        )
    if not good:
        raise FormatError(f"{path}: its numbers contradict each other; restore it from a backup")


def _is_named_well(name: str) -> bool:
    return name.isprintable() and 0 < len(name.encode()) <= 255


def _fits(table: Table, payload_bytes: int) -> bool:
    """Return whether rows of that type lie in blocks of that length."""
    try:
        row_bytes = table.row_bytes
    except (TypeError, InputError):
        return False
    return HEADER_BYTES + table.rows_per_block * row_bytes <= payload_bytes


def switch_to(root: Path, manifest: Manifest) -> None:
    """Make `manifest` the version that `open` serves.

    The switch is the rename of ``CURRENT``: before it the old version is served, after it
    the new one, whatever happens to the process or the machine.
    """
    write_version(root, manifest)
    point_at(root, manifest.version)


def write_version(root: Path, manifest: Manifest) -> None:
    """Put a manifest where :func:`point_at` can make it the current one."""
    make_directory(root / "manifests")
    body = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    file = _File(xxhash.xxh3_64_hexdigest(body), msgspec.Raw(body))
    write_durably(manifest_path(root, manifest.version), msgspec.json.encode(file) + b"\n")
    sync_directory(root)


def point_at(root: Path, version: int) -> None:
    """Make a version, whose manifest is there and durable, the one that `open` serves."""
    write_durably(current_path(root), b"%d\n" % version)


def settle_current(root: Path) -> None:
    """Make durable which version is the current one, before anything is dropped by it.

    Who wrote that may have died, or seen a sync fail, before its rename was: then another one may
    be current after a power failure, and must still be there. Only with the writer's lock held.

    Raises
    ------
    FormatError, DurabilityError
        It cannot be read; or the device failed.
    """
    try:
        point_at(root, current_number(root))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        sync_directory(root)  # dropping what is old may be what makes room


def disk_bytes(directory: Path) -> int:
    """Return what the files below a directory take on disk; what goes meanwhile is left out."""
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += 512 * (Path(where) / name).lstat().st_blocks
    return total


def numbers_in(directory: Path) -> list[int]:
    """Return the numbers, rising, that name what a directory of manifests or segments holds."""
    if not directory.is_dir():
        return []
    stems = (path.name.removesuffix(".json") for path in directory.iterdir())
    return sorted(int(stem) for stem in stems if re.fullmatch(r"[0-9]{6,9}", stem))


def next_version(root: Path) -> int:
    """Return a version number that neither a version nor litter bears."""
    numbers = numbers_in(root / "manifests") + numbers_in(root / "segments")
    return 1 + max(numbers, default=0)
