"""Row updates on disk before they are in blocks: what was acknowledged survives a crash.

``DIR/journal/000001.log`` and so on: a header of 16 bytes (magic ``BKVJ``, u16 format, two zeros,
u64 number of the file), then records, one an update. A record is 40 bytes (magic ``ROWS``, u32
space, u32 rows, u32 bytes of a row, u64 sequence, u64 how many bytes of the file were safe on
the device when it was written, u64 XXH3 of the record without this field), the ids (u32) and
the rows. All little-endian.

The last record that was not yet safe may be torn by a crash: it was not acknowledged, and is
left out. A damaged record with a later one that knows it was safe is damage, and an error.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.errors import DiskFullError, FormatError, InputError, UpdateInProgressError
from bandana_kv.manifest import sync_directory

__all__ = ["Journal", "Record", "journal_files", "read_records"]

_HEADER = struct.Struct("<4sHxxQ")
_RECORD = struct.Struct("<4sIIIQQQ")
_MAGIC, _RECORD_MAGIC = b"BKVJ", b"ROWS"
_FORMAT_VERSION = 1
_MOST_ROW_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Record:
    """One update.

    Attributes
    ----------
    space : int
        Key space of the table version.
    sequence : int
        Rises from update to update.
    ids : uint32 (n,)
    rows : uint8 (n, row_bytes)
    """

    space: int
    sequence: int
    ids: NDArray[np.uint32]
    rows: NDArray[np.uint8]


def journal_path(root: Path) -> Path:
    """Return the directory of a store's journal."""
    return root / "journal"


def journal_files(root: Path) -> list[Path]:
    """Return the files of a store's journal, the oldest first."""
    directory = journal_path(root)
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if re.fullmatch(r"\d{6,}\.log", path.name))


def read_records(path: Path, start: int = 0) -> Iterator[tuple[Record, int]]:
    """Read the updates of one file, each with the offset behind it.

    Parameters
    ----------
    path
        A file of a journal.
    start
        Where to begin: 0, or an offset that was returned before.

    Raises
    ------
    FormatError
        It is no journal, of a newer format, or an update that was acknowledged is damaged.
    FileNotFoundError
        Its updates are in blocks by now.

    Notes
    -----
    Cost: reads the file through the page cache; arrays are copies.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _HEADER.size:
            return  # a crash came before its header was safe
        with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as data:
            _check_header(path, data)
            at = max(start, _HEADER.size)
            while (found := _record_at(data, at)) is not None:
                record, _, at = found
                yield record, at
            _refuse_damage(path, data, at)


def _check_header(path: Path, data: mmap.mmap) -> None:
    magic, version, _ = _HEADER.unpack(data[: _HEADER.size])
    if magic != _MAGIC:
        raise FormatError(f"{path}: not a journal of bandana_kv; restore it from a backup")
    if version > _FORMAT_VERSION:
        raise FormatError(
            f"{path}: format {version} is newer than this release reads ({_FORMAT_VERSION}); "
            "upgrade bandana_kv"
        )


def _record_at(data: mmap.mmap, at: int) -> tuple[Record, int, int] | None:
    """Return the record at an offset, what it knew to be safe, and its end; None: there is none."""
    if at + _RECORD.size > len(data):
        return None
    head = data[at : at + _RECORD.size]
    magic, space, count, row_bytes, sequence, safe, digest = _RECORD.unpack(head)
    end = at + _RECORD.size + count * (4 + row_bytes)
    if magic != _RECORD_MAGIC or not count or row_bytes > _MOST_ROW_BYTES or end > len(data):
        return None
    body = data[at + _RECORD.size : end]
    if digest != _digest(head[:-8], body):
        return None
    ids = np.frombuffer(body, "<u4", count)
    rows = np.frombuffer(body, np.uint8, count * row_bytes, 4 * count).reshape(count, row_bytes)
    return Record(space, sequence, ids, rows), safe, end


def _digest(head: bytes, body: bytes) -> int:
    digest = xxhash.xxh3_64(head)
    digest.update(body)
    return digest.intdigest()


def _refuse_damage(path: Path, data: mmap.mmap, at: int) -> None:
    """Raise if a record behind `at`, where none can be read, says that `at` was safe."""
    later = data.find(_RECORD_MAGIC, at + 1)
    while later >= 0:
        found = _record_at(data, later)
        if found is not None and found[1] > at:
            raise FormatError(
                f"{path}: damaged at byte {at}, before updates that were acknowledged; restore "
                "it from a backup, or delete it and update those rows again"
            )
        later = data.find(_RECORD_MAGIC, later + 1)


def _locked(root: Path) -> int:
    """Return a descriptor of the lock file, locked; the directory is made if need be."""
    try:
        journal_path(root).mkdir(exist_ok=True)
        handle = os.open(journal_path(root) / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{root}: cannot be updated ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UpdateInProgressError(
            f"{root}: another process updates its rows; update through that one, or close it"
        ) from error
    return handle


class Journal:
    """Takes updates; safe to use from many threads, in the process that opened it.

    Parameters
    ----------
    root
        The store. One process at a time may hold its journal for writing.

    Raises
    ------
    UpdateInProgressError
        Another process holds it.
    InputError
        The directory cannot be written to.
    """

    def __init__(self, root: Path) -> None:
        self._directory = journal_path(root)
        self._process = os.getpid()
        self._writing = threading.Lock()
        self._syncing = threading.Lock()
        self._handle = self._end = self._safe = -1
        self._older_bytes = 0
        self.written_bytes = 0
        """Bytes written since it was opened."""
        self._lock = _locked(root)
        try:
            files = journal_files(root)
            self.number = max((int(path.stem) for path in files), default=0)
            self._sequence = max(
                (record.sequence for path in files for record, _ in read_records(path)), default=0
            )
            self.rotate()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def sequence(self) -> int:
        """The sequence of the last update."""
        return self._sequence

    @property
    def end(self) -> tuple[int, int]:
        """The number of the file that is written to, and its length."""
        return self.number, self._end

    @property
    def size_bytes(self) -> int:
        """Length of all files that this one has written and not dropped."""
        return self._older_bytes + self._end

    def rotate(self) -> int:
        """Begin a new file, and return the last sequence of those before it."""
        with self._writing, self._syncing:
            path = self._directory / f"{self.number + 1:06d}.log"
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            header = _HEADER.pack(_MAGIC, _FORMAT_VERSION, self.number + 1)
            os.write(handle, header)
            os.fsync(handle)
            sync_directory(self._directory)
            if self._handle >= 0:
                os.fdatasync(self._handle)
                os.close(self._handle)
                self._older_bytes += self._end
            self._handle = handle
            self.number += 1
            self._end = self._safe = _HEADER.size
            return self._sequence

    def append(self, space: int, ids: NDArray[np.uint32], rows: NDArray[np.uint8]) -> int:
        """Write one update, and return its sequence once it is safe on the device.

        Threads that write at the same time share a sync.

        Raises
        ------
        DiskFullError
            There is no room; nothing was updated.
        InputError
            The process is a fork of the one that opened the journal.
        """
        if os.getpid() != self._process:
            raise InputError("a store is updated by the process that opened it, not by its fork")
        with self._writing:
            sequence = self._sequence + 1
            self._write(Record(space, sequence, ids, rows))
            self._sequence = sequence
            handle, end = self._handle, self._end
        self._sync(handle, end)
        return sequence

    def keep(self, record: Record) -> None:
        """Write an update of an earlier file anew, as it was."""
        with self._writing:
            self._write(record)
            handle, end = self._handle, self._end
        self._sync(handle, end)

    def _sync(self, handle: int, end: int) -> None:
        with self._syncing:
            # Of a file that was rotated away meanwhile, rotate has made all safe.
            if handle == self._handle and self._safe < end:
                upto = self._end
                os.fdatasync(handle)
                self._safe = upto

    def _write(self, record: Record) -> None:
        body = record.ids.astype("<u4").tobytes() + record.rows.tobytes()
        size, sequence = record.rows.shape, record.sequence
        fields = (_RECORD_MAGIC, record.space, *size, sequence, self._safe)
        head = _RECORD.pack(*fields, 0)[:-8]
        self._write_bytes(head + _digest(head, body).to_bytes(8, "little") + body)

    def _write_bytes(self, record: bytes) -> None:
        done = 0
        try:
            while done < len(record):
                done += os.pwrite(self._handle, record[done:], self._end + done)
        except OSError as error:
            os.ftruncate(self._handle, self._end)
            if error.errno in _FULL:
                raise DiskFullError(
                    error.errno, f"{self._directory}: no space left; nothing was updated"
                ) from error
            raise
        self._end += len(record)
        self.written_bytes += len(record)

    def drop_before(self, number: int) -> None:
        """Delete the files before `number`: their updates are in blocks."""
        for path in journal_files(self._directory.parent):
            if int(path.stem) < number:
                path.unlink()
        self._older_bytes = 0
        sync_directory(self._directory)

    def after_fork_in_child(self) -> None:
        """Let go of the lock, which stays the parent's."""
        self.close()

    def close(self) -> None:
        """Let other processes update."""
        if self._lock < 0:
            return
        os.close(self._handle)
        os.close(self._lock)
        self._lock = -1
