"""Rows on their way, in a .npy file that a killed process leaves so that another can go on.

``STORE/migrations/<XXH3 of the table's name>/``: ``rows.npy``, each row at the place of its id;
``ids``, the ids written so far, uint32 in the order of their coming; and ``state.json``, which
says what of both counts. It is replaced by a rename after both are durable.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.errors import BandanaError, InputError, LoadInProgressError, MigrationError
from bandana_kv.kernels.compile import kernel, signed
from bandana_kv.migration.extraction import Batch
from bandana_kv.migration.row_file import shape_file, write_rows
from bandana_kv.system.durable import (
    NO_ROOM,
    make_directory,
    sync_directory,
    sync_file,
    write_durably,
)
from bandana_kv.system.permission import check_permission

__all__ = ["Staging", "State", "staged"]

_FORMAT_VERSION = 1
# Rows held back until so many can be sorted and written at once, and made durable.
CHECKPOINT_BYTES = 16 << 20
_IDS_AT_ONCE = 1 << 20


class State(msgspec.Struct, forbid_unknown_fields=True):
    """What is durable.

    Attributes
    ----------
    origin : dict
        Where the rows come from and how they are read; another origin is another migration.
    row_bytes : int
        0 until the first row has come.
    read : int
        Rows written, all of different ids.
    top : int
        The largest id and one.
    skipped : int
        Keys of no id.
    last_key : bytes or None
        Behind which the source is read on.
    ended : bool
        Whether the source has no more.
    """

    origin: dict[str, str | int]
    row_bytes: int = 0
    read: int = 0
    top: int = 0
    skipped: int = 0
    last_key: bytes | None = None
    ended: bool = False
    format: int = _FORMAT_VERSION


@kernel
def _mark(seen: np.ndarray, ids: np.ndarray) -> int:
    """Set the bit of each id; return where one was set already, or -1."""
    for i in range(ids.size):
        byte, bit = signed(ids[i]) >> 3, np.uint8(1 << (signed(ids[i]) & 7))
        if seen[byte] & bit:
            return i
        seen[byte] |= bit
    return -1


class Staging:
    """The files of one migration, and what of them counts. Made by :func:`staged`.

    Attributes
    ----------
    path : Path
        The .npy file; to be read after :meth:`shape`.
    state : State
    resumed_from : int
        Rows that an earlier process had written.
    """

    def __init__(self, directory: Path, origin: dict[str, str | int]) -> None:
        self._directory = directory
        self.path = directory / "rows.npy"
        self._seen = np.zeros(1 << 10, np.uint8)
        self._held: list[Batch] = []
        self._held_bytes = self._held_skipped = 0
        self._last_key: bytes | None = None
        self.state = self._earlier_state(origin) or State(origin)
        self.resumed_from = self.state.read
        self._rows = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self._ids = os.open(directory / "ids", os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._ids, 4 * self.state.read)
        for ids in self._written_ids():
            self._mark(ids)

    def _earlier_state(self, origin: dict[str, str | int]) -> State | None:
        path = self._directory / "state.json"
        if not path.exists():
            return None
        try:
            state = msgspec.json.decode(path.read_bytes(), type=State)
        except msgspec.MsgspecError as error:
            raise MigrationError(f"{path}: cannot be read ({error}); restart it") from error
        if state.format != _FORMAT_VERSION:
            raise MigrationError(f"{path}: of another release; restart it")
        changed = [key for key in origin if origin[key] != state.origin.get(key)]
        if changed:
            what = ", ".join(
                f"{key} was {state.origin.get(key)!r} and is {origin[key]!r}" for key in changed
            )
            raise MigrationError(
                f"a migration of these rows has been begun, and its source is another or has "
                f"changed since ({what}): restart it (restart=True, --restart), which reads all "
                "anew"
            )
        kept = (self._directory / "ids", 4 * state.read), (self.path, int(state.read > 0))
        if any(not file.exists() or file.stat().st_size < size for file, size in kept):
            raise MigrationError(f"{self._directory}: files are missing or cut short; restart it")
        return state

    def _written_ids(self) -> Iterator[NDArray[np.int64]]:
        for first in range(0, self.state.read, _IDS_AT_ONCE):
            count = min(_IDS_AT_ONCE, self.state.read - first)
            raw = os.pread(self._ids, 4 * count, 4 * first)
            yield np.frombuffer(raw, "<u4").astype(np.int64)

    def _mark(self, ids: NDArray[np.int64]) -> None:
        if not ids.size:
            return
        needed = (int(ids.max()) >> 3) + 1
        if needed > self._seen.size:
            larger = np.zeros(max(needed, 2 * self._seen.size), np.uint8)
            larger[: self._seen.size] = self._seen
            self._seen = larger
        again = _mark(self._seen, ids)
        if again >= 0:
            raise InputError(
                f"id {ids[again]} has two keys in the source, such as 7 and 007: remove one, or "
                "name a prefix or a codec that tells them apart"
            )

    def add(self, batch: Batch) -> None:
        """Take more rows; many of them are written and made durable at once.

        Raises
        ------
        InputError
            There is a row of such an id already.
        """
        self._mark(batch.ids)
        self._held_skipped += batch.skipped
        self._last_key = batch.last_key
        if batch.ids.size:
            self._held.append(batch)
            self._held_bytes += batch.rows.nbytes
        if self._held_bytes >= CHECKPOINT_BYTES:
            self._checkpoint()

    def end(self) -> None:
        """Note that the source has no more rows; where it had none, nothing stays."""
        if self.state.read or self._held:
            self.state.ended = True
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Write what is held back, sorted, and make it durable."""
        state = self.state
        if self._held:
            ids = np.concatenate([batch.ids for batch in self._held])
            rows = np.concatenate([batch.rows for batch in self._held])
            os.pwrite(self._ids, ids.astype("<u4").tobytes(), 4 * state.read)
            if bool((np.diff(ids) < 0).any()):
                order = np.argsort(ids)
                ids, rows = ids[order], rows[order]
            state.row_bytes = rows.shape[1]
            write_rows(self._rows, ids, rows)
            state.read += ids.size
            state.top = max(state.top, int(ids[-1]) + 1)
        state.skipped += self._held_skipped
        state.last_key = self._last_key or state.last_key
        self._held, self._held_bytes, self._held_skipped = [], 0, 0
        sync_file(self._rows, self.path)
        sync_file(self._ids, self._directory / "ids")
        write_durably(self._directory / "state.json", msgspec.json.encode(state))

    def missing(self, rows: int) -> NDArray[np.int64]:
        """Return the ids below `rows` of which no row came, int64 (n,), rising."""
        bits = np.unpackbits(self._seen, count=min(rows, 8 * self._seen.size), bitorder="little")
        beyond = np.arange(bits.size, rows, dtype=np.int64)
        return np.concatenate([np.flatnonzero(bits == 0), beyond])

    def shape(self, rows: int, dtype: np.dtype[Any]) -> None:
        """Make the file a table of `rows` rows; those that did not come are zeros."""
        dim = self.state.row_bytes // dtype.itemsize
        shape_file(self._rows, rows, dim, dtype)
        sync_file(self._rows, self.path)

    def close(self) -> None:
        """Close the files; where nothing is durable, nothing stays."""
        os.close(self._rows)
        os.close(self._ids)
        if not (self._directory / "state.json").exists():
            self.discard()

    def discard(self) -> None:
        """Remove what is on its way, and first the state, which counts on the rest."""
        with contextlib.suppress(OSError):
            (self._directory / "state.json").unlink(missing_ok=True)
            sync_directory(self._directory)
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def staged(
    root: Path, table: str, origin: dict[str, str | int], *, restart: bool
) -> Iterator[Staging]:
    """Go on with the migration of `table` into the store at `root`, or begin it.

    Raises
    ------
    LoadInProgressError
        Another process is at it.
    MigrationError
        It was begun from another source, or from another state of it.
    InputError
        The directory cannot be made.
    """
    directory = root / "migrations" / xxhash.xxh3_64_hexdigest(table.encode())
    made = [path for path in (directory.parent, *directory.parents[1:]) if not path.exists()]
    try:
        handle = _locked(directory)
    except OSError as error:
        check_permission(error, root)
        if isinstance(error, BandanaError) or error.errno in NO_ROOM:
            raise
        raise InputError(f"{root}: cannot be made a store directory ({error.strerror})") from error
    try:
        if restart:
            for path in directory.iterdir():
                path.unlink()
        sync_directory(directory)
        with Staging(directory, {"table": table, **origin}) as staging:
            sync_directory(directory)  # files must not be gone where the state counts on them
            yield staging
    finally:
        with contextlib.suppress(OSError):
            directory.parent.rmdir()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        os.close(handle)


def _locked(directory: Path) -> int:
    """Make the directory and lock it; another process may just be removing it."""
    while True:
        handle = -1
        try:
            make_directory(directory)
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), directory.stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise LoadInProgressError(
                f"{directory}: another process moves this table; wait for it or stop it"
            ) from None
        except FileNotFoundError:
            pass
        if handle >= 0:
            os.close(handle)
