"""Row updates on disk before they are in blocks: what was acknowledged survives a crash.

``DIR/journal/000001.log`` and so on: a header of 16 bytes (magic ``BKVJ``, u16 format, two zeros,
u64 number of the file), then records, one an update. A record is 40 bytes (magic ``ROWS``, u32
space, u32 rows, u32 bytes of a row, u64 sequence, u64 how many bytes of the file were safe on
the device when it was written, u64 XXH3 of the record without this field), the ids (u32) and
the rows. All little-endian. From format 2 on there are records of keys, too: their magic is
``KEY1`` or ``KEY2``, by the 64-bit words of a key, which lie behind the ids: these are the ids that
the keys have from then on. Where a row has no bytes, the keys are deleted that had the ids. Behind
the words of ``KEY2`` are the keys as they were given: u64 how many bytes these are, a length (u32)
of each, text as UTF-8; none where keys are deleted.

The last record that was not yet safe may be torn by a crash: it was not acknowledged, and is
left out. A damaged record with a later one that knows it was safe is damage, and an error.

A sync that fails ends the writer: what it left in the page cache may never reach the device,
whatever later syncs say. Records that were not safe are cut off, and whoever opens the journal next
writes the last ones of each file anew before they count.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.errors import DurabilityError, FormatError
from bandana_kv.keys.texts import packed, unpacked

__all__ = [
    "HEADER_BYTES",
    "Record",
    "encoded",
    "header",
    "journal_files",
    "journal_path",
    "read_records",
    "settle",
    "sync_journal",
    "write_at",
]

_log = logging.getLogger("bandana_kv")

_HEADER = struct.Struct("<4sHxxQ")
HEADER_BYTES = _HEADER.size
_RECORD = struct.Struct("<4sIIIQQQ")
_LENGTH = struct.Struct("<Q")
_MAGIC = b"BKVJ"
# By the 64-bit words of a key that lie in a record.
_RECORD_MAGICS = (b"ROWS", b"KEY1", b"KEY2")
_FORMAT_VERSION = 2
_MOST_ROW_BYTES = 1 << 20
# What says that nothing can be synced there, and so nothing was written.
_NOTHING_TO_SYNC = (errno.EROFS, errno.EINVAL, errno.EBADF)


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
        Of the ids from now on; (n, 0) where their keys are deleted.
    words : uint64 (n,) or (n, 2), or None
        Of the keys that the ids belong to; None: it is about no keys.
    texts : list of bytes
        The keys of text or bytes as they were given, text as UTF-8; empty where they are deleted.
    """

    space: int
    sequence: int
    ids: NDArray[np.uint32]
    rows: NDArray[np.uint8]
    words: NDArray[np.uint64] | None = None
    texts: Sequence[bytes] = ()

    @property
    def deletes(self) -> bool:
        """Whether the keys are gone from now on."""
        return self.words is not None and self.rows.shape[1] == 0


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
    for record, _, end in _scan(path, start):
        yield record, end


def _scan(path: Path, start: int = 0) -> Iterator[tuple[Record, int, int]]:
    """Read the updates of one file, each with what it knew to be safe, and the offset behind it."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < HEADER_BYTES:
            return  # a crash came before its header was safe
        with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as data:
            if size == HEADER_BYTES and not any(data):
                return
            _check_header(path, data)
            at = max(start, HEADER_BYTES)
            while (found := _record_at(data, at)) is not None:
                at = found[2]
                yield found
            _refuse_damage(path, data, at)


def _check_header(path: Path, data: mmap.mmap) -> None:
    magic, version, _ = _HEADER.unpack(data[: _HEADER.size])
    if magic != _MAGIC:
        raise FormatError(f"{path}: not a journal of bandana_kv; restore it from a backup")
    if version > _FORMAT_VERSION:
        raise FormatError.newer(path, version, _FORMAT_VERSION)


def _record_at(data: mmap.mmap, at: int) -> tuple[Record, int, int] | None:
    """Return the record at an offset, what it knew to be safe, and its end; None: there is none."""
    if at + _RECORD.size > len(data):
        return None
    head = data[at : at + _RECORD.size]
    magic, space, count, row_bytes, sequence, safe, digest = _RECORD.unpack(head)
    if magic not in _RECORD_MAGICS or not count or row_bytes > _MOST_ROW_BYTES:
        return None
    width = _RECORD_MAGICS.index(magic)
    texts_at = at + _RECORD.size + count * (4 + 8 * width)
    end = texts_at + count * row_bytes
    if width == 2:
        said = data[texts_at : texts_at + _LENGTH.size]
        end += _LENGTH.size + int.from_bytes(said, "little")
    if end > len(data):
        return None
    body = data[at + _RECORD.size : end]
    if digest != _digest(head[:-8], body):
        return None
    ids = np.frombuffer(body, "<u4", count)
    words = np.frombuffer(body, "<u8", count * width, 4 * count) if width else None
    if words is not None and width == 2:
        words = words.reshape(count, 2)
    rows = np.frombuffer(body, np.uint8)[len(body) - count * row_bytes :]
    texts = _texts_in(body[(4 + 8 * width) * count :], count) if width == 2 else ()
    return Record(space, sequence, ids, rows.reshape(count, row_bytes), words, texts), safe, end


def _texts_in(body: bytes, count: int) -> list[bytes]:
    """Return the keys that a record has at this place, as :func:`_encoded_texts` put them."""
    (size,) = _LENGTH.unpack(body[: _LENGTH.size])
    if not size:
        return []
    lengths = np.frombuffer(body, "<u4", count, _LENGTH.size)
    return unpacked(lengths, body[_LENGTH.size + lengths.nbytes :])


def _encoded_texts(texts: Sequence[bytes]) -> bytes:
    if not texts:
        return _LENGTH.pack(0)
    lengths, data = packed(texts)
    return _LENGTH.pack(len(lengths) + len(data)) + lengths + data


def header(number: int) -> bytes:
    """Return what the file of that number begins with."""
    return _HEADER.pack(_MAGIC, _FORMAT_VERSION, number)


def encoded(record: Record, safe: int) -> bytes:
    """Return the bytes of a record, before which so many of its file are safe."""
    words = b"" if record.words is None else record.words.astype("<u8").tobytes()
    width = len(words) // (8 * record.ids.size)
    if width == 2:
        words += _encoded_texts(record.texts)
    body = record.ids.astype("<u4").tobytes() + words + record.rows.tobytes()
    magic = _RECORD_MAGICS[width]
    fields = (magic, record.space, *record.rows.shape, record.sequence, safe)
    head = _RECORD.pack(*fields, 0)[:-8]
    return head + _digest(head, body).to_bytes(8, "little") + body


def _digest(head: bytes, body: bytes) -> int:
    digest = xxhash.xxh3_64(head)
    digest.update(body)
    return digest.intdigest()


def _refuse_damage(path: Path, data: mmap.mmap, at: int) -> None:
    """Raise if a record behind `at`, where none can be read, says that `at` was safe."""
    for magic in _RECORD_MAGICS:
        later = data.find(magic, at + 1)
        while later >= 0:
            found = _record_at(data, later)
            if found is not None and found[1] > at:
                raise FormatError(
                    f"{path}: damaged at byte {at}, before updates that were acknowledged; restore "
                    "it from a backup, or delete it and update those rows again"
                )
            later = data.find(magic, later + 1)


def sync_journal(root: Path) -> None:
    """Make what the journal has durable before it is served; a failure is logged.

    A writer that was killed may have left an update that is in the page cache only. Everything
    that was acknowledged is durable anyhow.
    """
    for path in journal_files(root):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # gone into blocks; or reading it says what is wrong
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NOTHING_TO_SYNC:
                _log.warning(
                    "%s: an update that was not acknowledged is served, and may be gone after a "
                    "power failure (%s)",
                    path,
                    error.strerror,
                    extra={"event": "journal_not_synced", "error": error.strerror},
                )
        finally:
            os.close(handle)


def settle(path: Path) -> int:
    """Make safe what can be read of a file, and cut off the rest; return its last sequence.

    The records that none behind them knows to be safe are written anew. Their writer may have
    died before it synced them, or have seen that fail: then they are in the page cache, and a
    sync alone would call them safe.

    Raises
    ------
    FormatError
        As :func:`read_records`.
    DurabilityError
        The device failed.
    """
    sequence, safe, end = 0, HEADER_BYTES, HEADER_BYTES
    for record, safe, end in _scan(path):  # noqa: B007
        sequence = max(sequence, record.sequence)
    with open(path, "r+b", buffering=0) as file:
        handle = file.fileno()
        size = os.fstat(handle).st_size
        if size <= HEADER_BYTES:
            return sequence
        os.ftruncate(handle, end)
        write_at(handle, os.pread(handle, end - safe, safe), safe)
        try:
            os.fsync(handle)
        except OSError as error:
            raise DurabilityError(
                error.errno,
                f"{path}: what is read of it could not be made durable ({error.strerror}); it is "
                "not updated until that is done: see the system's log, and open the store again",
            ) from error
    return sequence


def write_at(handle: int, data: bytes, offset: int) -> None:
    """Write all of `data` at an offset."""
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], offset + done)
