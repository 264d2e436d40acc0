"""A table of a store -> a file, its rows in the order of their ids: the way back."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from bandana_kv.care.versions import versions
from bandana_kv.disk import manifest
from bandana_kv.errors import DiskFullError, InputError, TableNotFoundError
from bandana_kv.migration.export_formats import (
    PARQUET,
    SAFETENSORS,
    SUFFIXES,
    dtype_in,
    write_around,
    write_parquet,
)
from bandana_kv.migration.export_keys import keys_of
from bandana_kv.migration.row_file import HEADER_BYTES, shape_file, write_rows
from bandana_kv.progress import Progress
from bandana_kv.serve.opening import open_kept
from bandana_kv.serve.store import EmbeddingStore
from bandana_kv.system.addresses import by_address
from bandana_kv.system.durable import NO_ROOM, replacing, sync_directory, sync_file
from bandana_kv.system.permission import check_permission, permission_named

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["Exported", "export"]

_CHUNK_BYTES = 8 << 20


class Exported(msgspec.Struct, frozen=True):
    """What an export wrote.

    Attributes
    ----------
    table : str
    version : int
        Of the store.
    rows, dim, dtype
        Shape and numpy dtype of the table.
    bytes : int
        Of all rows.
    path : str
        The file.
    keys : str
        The kind of the keys that were written beside the rows; empty: none.
    """

    table: str
    version: int
    rows: int
    dim: int
    dtype: str
    bytes: int
    path: str
    keys: str = ""


@by_address()
@permission_named()
def export(
    path: str | os.PathLike[str],
    table: str,
    out: str | os.PathLike[str],
    version: int | None = None,
    *,
    adapter: Adapter | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a table back to a file, all rows (rows, dim) in the order of the ids.

    Parameters
    ----------
    path
        A directory that :func:`bandana_kv.load` made. Processes may be serving from it, loading
        into it and updating rows.
    table
        Its name.
    out
        The file: an array in ``.npy``, a tensor of the table's name in ``.safetensors``, or columns
        `id` and `values` in ``.parquet``. It is there when all of it is, or not at all. Keys go
        along as a tensor ``TABLE.keys``, or a column `key`; a ``.npy`` has rows alone.
    version
        One of :func:`bandana_kv.versions`; by default the current one.
    adapter
        The adapter on your own handles, for a store that was loaded through one.
    overwrite
        Replace the file if it is there.
    progress
        Told of the rows.

    Returns
    -------
    Exported

    Raises
    ------
    StoreNotFoundError, TableNotFoundError
        There is no such store, or no such table in that version.
    InputError
        The store does not keep that version, or the file is there, cannot be made, or is to be
        of a format that is not written.
    BlockMissingError, BlockCorruptError, AdapterError
        A block cannot be read, or is not what was written.
    FormatError
        The store is damaged.
    MissingExtraError
        What writes such a file is not installed.
    DiskFullError, DurabilityError
        The file's device is full, or failed.

    Notes
    -----
    Cost: reads each block once, in the order of the blocks, and verifies it. Memory: 8 bytes a row,
    20 more of one with a key, and some 32 MiB; for Parquet some 160 MiB, and room for all rows in
    the file's directory, where they are put in order first. Updates that were acknowledged before
    are in it; of those that are made meanwhile, some may be.
    """
    target = Path(out).absolute()
    _check_target(target, overwrite)
    progress = progress or Progress()
    with _opened(path, table, version, adapter) as store:
        (rows, dim), dtype = store.shape(table), store.dtype(table)
        written = dtype_in(target, table, dtype)
        has_keys = target.suffix.lower() in (PARQUET, SAFETENSORS)
        keys = keys_of(Path(path).absolute(), table, store) if has_keys else None
        with _written(target, overwrite) as file:
            if target.suffix.lower() == PARQUET:
                # Rows come in the order of their blocks, and a Parquet file in that of the ids.
                with tempfile.TemporaryFile(dir=target.parent) as ordered:
                    _copy(store, table, ordered.fileno(), 0, written, progress)
                    write_parquet(file, ordered.fileno(), (rows, dim), written, keys, progress)
            elif target.suffix.lower() == SAFETENSORS:
                first_byte = write_around(file, table, (rows, dim), written, keys)
                _copy(store, table, file, first_byte, written, progress)
            else:
                _copy(store, table, file, HEADER_BYTES, written, progress)
                shape_file(file, rows, dim, written)
        nbytes = rows * dim * dtype.itemsize
        kind = keys.kind if keys else ""
        return Exported(table, store.version, rows, dim, dtype.str, nbytes, str(target), kind)


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse before all is read what would fail after it."""
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{target}: only {', '.join(SUFFIXES)} files are written; name one so, and convert "
            "it from there"
        )
    if not target.parent.is_dir():
        raise InputError(f"{target}: there is no directory {target.parent}")
    if target.is_dir():
        raise InputError(f"{target}: is a directory")
    if not overwrite and os.path.lexists(target):
        raise InputError(f"{target}: is there already; overwrite=True (--force) replaces it")


@contextlib.contextmanager
def _opened(
    path: str | os.PathLike[str], table: str, version: int | None, adapter: Adapter | None
) -> Iterator[EmbeddingStore]:
    """Open the store if it has that version, and that the table."""
    root = Path(path).absolute()
    number = manifest.current_number(root) if version is None else version
    kept = {each.number: each.tables for each in versions(root)}
    if number not in kept:
        manifest.read_current(root)  # says what is wrong if it is that one
        listed = ", ".join(map(str, kept))
        raise InputError(f"{root}: keeps no version {number}; it has {listed}")
    if table not in kept[number]:
        listed = ", ".join(kept[number])
        raise TableNotFoundError(f"no table {table!r} in version {number}; it has {listed}")
    with open_kept(root, number, adapter=adapter) as store:
        yield store


@contextlib.contextmanager
def _written(target: Path, overwrite: bool) -> Iterator[int]:
    """Give a new file to write to, which takes its place at the end; or nothing is left of it."""
    try:
        with contextlib.ExitStack() as stack:
            try:
                temporary = stack.enter_context(replacing(target))
            except OSError as error:
                check_permission(error, target)
                raise InputError(f"{target}: cannot be made ({error.strerror})") from error
            with open(temporary, "r+b", buffering=0) as file:
                yield file.fileno()
                sync_file(file.fileno(), target)
            _check_target(target, overwrite)  # somebody may have been faster
    except OSError as error:
        if error.errno in NO_ROOM:
            message = f"{target}: no space left; free some and export again"
            raise DiskFullError(error.errno, message) from error
        raise
    sync_directory(target.parent)


def _copy(
    store: EmbeddingStore,
    table: str,
    file: int,
    first_byte: int,
    dtype: np.dtype[Any],
    progress: Progress,
) -> None:
    """Write all rows from a byte on, read in the order in which they lie: each block once."""
    placement = store.placement(table)
    ids, numbers = placement.id_of_position(), store.row_numbers(table)
    there = np.zeros(ids.size, np.bool_)
    there[numbers] = True
    ids = ids[there[ids]]  # in the order of their blocks
    row_bytes = store.shape(table)[1] * store.dtype(table).itemsize
    per_block = placement.rows_per_block
    chunk = per_block * max(1, _CHUNK_BYTES // (per_block * row_bytes))
    progress.start(f"export {table}", ids.size, "rows")
    for first in range(0, ids.size, chunk):
        part = np.sort(ids[first : first + chunk]).astype(np.int64)
        rows = store.rows_at(table, part).astype(dtype, copy=False)
        raw = rows.view(np.uint8).reshape(part.size, row_bytes)
        write_rows(file, np.searchsorted(numbers, part), raw, first_byte)
        progress.advance(part.size)
    progress.finish()
