"""Keys of text and bytes as they were given, in a file beside their index, which has only hashes.

Serving never reads it; an export does, to give keys back. Little-endian: a header of 32 bytes,
then parts of some keys each: how many, bytes of all, checksum; a length for each; their bytes. The
index says which id a key has, so that their order, and keys that it has no more, are all the same.
Keys that come later are further parts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.errors import FormatError
from bandana_kv.keys.arguments import checked_keys, items_of
from bandana_kv.keys.changes import ChangedKeys
from bandana_kv.system.durable import disk_full_named, sync_file
from bandana_kv.system.maps import map_file
from bandana_kv.system.permission import check_permission

__all__ = [
    "TEXTS",
    "TEXT_KINDS",
    "Texts",
    "append_texts",
    "packed",
    "unpacked",
    "write_texts",
]

TEXTS = "key-texts"
"""What the file is called, beside the index."""

TEXT_KINDS = ("str", "bytes")
"""The kinds of keys that have such a file."""

_MAGIC, _FORMAT_VERSION = b"BKVT", 1
# magic, format version, kind, bytes of the file when it was new; the checksum of all before
_HEADER = struct.Struct("<4sHxx8sQQ")
_PART = struct.Struct("<QQQ")  # keys, bytes of them, checksum of lengths and bytes
_MANY = 1 << 16
_LENGTH = np.dtype("<u4")


def _header(kind: str, first_bytes: int) -> bytes:
    fields = _HEADER.pack(_MAGIC, _FORMAT_VERSION, kind.encode(), first_bytes, 0)[:-8]
    return fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(fields))


def write_texts(path: Path, kind: str, keys: Any) -> None:
    """Write keys to a new file, and make it durable.

    Parameters
    ----------
    path
    kind
        ``str`` or ``bytes``.
    keys
        Of that kind, as :func:`bandana_kv.keys.checked_keys` took them.

    Raises
    ------
    DiskFullError, DurabilityError, OSError
        It cannot be written.

    Notes
    -----
    Cost: the bytes of the keys, and 4 a key; memory for 65,536 keys.
    """
    with disk_full_named(path), open(path, "wb") as file:
        file.write(bytes(_HEADER.size))
        for first in range(0, len(keys), _MANY):
            items = items_of("keys", keys[first : first + _MANY])
            _write_part(file, [each.encode() for each in items] if kind == "str" else items)
        first_bytes = file.tell()
        file.seek(0)
        file.write(_header(kind, first_bytes))
        file.flush()
        sync_file(file.fileno(), path)


def append_texts(path: Path, texts: Sequence[bytes], good_bytes: int) -> tuple[int, int]:
    """Write keys, text as UTF-8, behind the good bytes of a file; return where they begin and end.

    Parameters
    ----------
    path
        What :func:`write_texts` wrote.
    texts
        The keys.
    good_bytes
        What is behind them was left by a crash; 0: nothing but what was written first is good.

    Raises
    ------
    DiskFullError, DurabilityError, OSError
        It cannot be written; what was good still is.
    FormatError
        The file is damaged.
    """
    with disk_full_named(path), open(path, "r+b") as file:
        begin = good_bytes or _first_bytes(path, file.read(_HEADER.size))
        file.seek(begin)
        for first in range(0, len(texts), _MANY):
            _write_part(file, texts[first : first + _MANY])
        end = file.tell()
        file.truncate(end)
        sync_file(file.fileno(), path)
        return begin, end


def packed(texts: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the lengths of texts, u32 each, and all of them behind one another."""
    return np.fromiter(map(len, texts), _LENGTH, len(texts)).tobytes(), b"".join(texts)


def unpacked(lengths: NDArray[np.uint32], data: bytes) -> list[bytes]:
    """Return the texts that :func:`packed` made these of."""
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    both = zip(ends, lengths.tolist(), strict=True)
    return [data[end - length : end] for end, length in both]


def _write_part(file: BinaryIO, raws: Sequence[bytes]) -> None:
    lengths, data = packed(raws)
    digest = xxhash.xxh3_64(lengths)
    digest.update(data)
    file.write(_PART.pack(len(raws), len(data), digest.intdigest()))
    file.write(lengths)
    file.write(data)


def _first_bytes(path: Path, raw: bytes, kind: str = "") -> int:
    """Return how long a file was when it was new, of its header; of that kind, if one is said."""
    if len(raw) == _HEADER.size and raw[:4] == _MAGIC:
        _, version, found, first_bytes, _ = _HEADER.unpack(raw)
        if version > _FORMAT_VERSION:
            raise FormatError.newer(path, version, _FORMAT_VERSION)
        held = found.rstrip(b"\0").decode("ascii", "replace")
        if kind in ("", held) and raw == _header(held, first_bytes):
            return int(first_bytes)
    raise FormatError(f"{path}: no keys of {kind or 'text'}, or torn; load the table again")


class _Part(NamedTuple):
    first_byte: int
    lengths: NDArray[np.uint32]
    data: NDArray[np.uint8]


class Texts:
    """The keys of a table's rows, in the order of their ids.

    Parameters
    ----------
    path
        What :func:`write_texts` wrote.
    index
        Of the same keys.

    Attributes
    ----------
    lengths : ndarray
        uint32 (keys,): bytes of each key, text as UTF-8.

    Raises
    ------
    FormatError
        The file is missing, torn or damaged, or has not the key of every row.
    NoPermissionError
        It may not be read.

    Notes
    -----
    Cost: a pass over the file, some 200 ns a key. Memory: 12 bytes a key, and the page cache.
    """

    def __init__(self, path: Path, index: ChangedKeys) -> None:
        self._path, self._kind = path, index.kind
        self._mapped, first_bytes = _mapped(path, index.kind)
        # Those that came since are in the journal only.
        self._new = b"".join(index.new_texts)
        lengths = np.zeros(index.next_id, np.uint32)
        places = np.full(index.next_id, -1, np.int64)
        for part in (*self._parts(index.texts_bytes or first_bytes), self._new_part(index)):
            keys = _keys(part, self._kind)
            ids = index.ids_of(checked_keys(str(path), keys, index.kind))
            ends = np.cumsum(part.lengths, dtype=np.int64)
            there = ids >= 0
            places[ids[there]] = (part.first_byte + ends - part.lengths)[there]
            lengths[ids[there]] = part.lengths[there]
        live = index.live_ids()
        self.lengths, self._places = lengths[live], places[live]
        missing = self._places < 0
        if missing.any():
            raise FormatError(
                f"{path}: has no key of row {int(live[missing.argmax()])}; load the table again"
            )

    def raw(self, first: int, end: int) -> bytes:
        """Return the keys from number `first` to before `end`, one behind the other."""
        places = self._places[first:end].tolist()
        lengths = self.lengths[first:end].tolist()
        held, behind = self._mapped.data, self._mapped.size
        return b"".join(
            held[at : at + length] if at < behind else self._new[at - behind : at - behind + length]
            for at, length in zip(places, lengths, strict=True)
        )

    def _new_part(self, index: ChangedKeys) -> _Part:
        lengths = np.fromiter(map(len, index.new_texts), _LENGTH, len(index.new_texts))
        return _Part(self._mapped.size, lengths, np.frombuffer(self._new, np.uint8))

    def _parts(self, size: int) -> Iterator[_Part]:
        at = _HEADER.size
        if size > self._mapped.size:
            raise self._damaged()
        while at < size:
            if at + _PART.size > size:
                raise self._damaged()
            count, nbytes, checksum = _PART.unpack(self._mapped[at : at + _PART.size].tobytes())
            begin = at + _PART.size
            data, at = begin + _LENGTH.itemsize * count, begin + _LENGTH.itemsize * count + nbytes
            if at > size or xxhash.xxh3_64_intdigest(self._mapped[begin:at].data) != checksum:
                raise self._damaged()
            lengths = self._mapped[begin:data].view(_LENGTH)
            if int(lengths.sum(dtype=np.int64)) != nbytes:
                raise self._damaged()
            yield _Part(data, lengths, self._mapped[data:at])

    def _damaged(self) -> FormatError:
        return FormatError(f"{self._path}: torn or damaged; load the table again")


def _keys(part: _Part, kind: str) -> list[Any]:
    pieces = unpacked(part.lengths, part.data.tobytes())
    return [each.decode() for each in pieces] if kind == "str" else pieces


def _mapped(path: Path, kind: str) -> tuple[NDArray[np.uint8], int]:
    try:
        with path.open("rb") as file:
            raw, size = file.read(_HEADER.size), os.fstat(file.fileno()).st_size
            mapped = map_file(file.fileno(), max(1, size))
    except FileNotFoundError as error:
        raise FormatError(
            f"{path}: not there, so that the text of keys is not known; load the table again, or "
            "name a .npy file, which has rows alone"
        ) from error
    except OSError as error:
        check_permission(error, path)
        raise FormatError(
            f"{path}: cannot be read ({error.strerror}); load the table again"
        ) from error
    return mapped, _first_bytes(path, raw, kind)
