"""Keys of text and bytes as they were given, in a file beside their index, which has only hashes.

Serving never reads it; an export does, to give keys back. Little-endian: a header of 32 bytes,
then parts of some keys each: how many, bytes of all, checksum; a length for each; their bytes. The
index says which id a key has, so that their order, and keys that it has no more, are all the same.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.errors import FormatError
from bandana_kv.keys.arguments import checked_keys, items_of
from bandana_kv.keys.index import KeyIndex
from bandana_kv.system.durable import disk_full_named, sync_file
from bandana_kv.system.maps import map_file
from bandana_kv.system.permission import check_permission

__all__ = ["TEXTS", "TEXT_KINDS", "Texts", "write_texts"]

TEXTS = "key-texts"
"""What the file is called, beside the index."""

TEXT_KINDS = ("str", "bytes")
"""The kinds of keys that have such a file."""

_MAGIC, _FORMAT_VERSION = b"BKVT", 1
_HEADER = struct.Struct("<4sHxx8s8xQ")  # magic, format version, kind; the checksum of all before
_PART = struct.Struct("<QQQ")  # keys, bytes of them, checksum of lengths and bytes
_MANY = 1 << 16
_LENGTH = np.dtype("<u4")


def _header(kind: str) -> bytes:
    fields = _HEADER.pack(_MAGIC, _FORMAT_VERSION, kind.encode(), 0)[:-8]
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
        file.write(_header(kind))
        for first in range(0, len(keys), _MANY):
            items = items_of("keys", keys[first : first + _MANY])
            raws = [each.encode() for each in items] if kind == "str" else items
            lengths = np.fromiter(map(len, raws), _LENGTH, len(raws)).tobytes()
            data = b"".join(raws)
            digest = xxhash.xxh3_64(lengths)
            digest.update(data)
            file.write(_PART.pack(len(raws), len(data), digest.intdigest()))
            file.write(lengths)
            file.write(data)
        file.flush()
        sync_file(file.fileno(), path)


class _Part(NamedTuple):
    first_byte: int
    lengths: NDArray[np.uint32]
    data: NDArray[np.uint8]


class Texts:
    """The keys of a table's rows, by id.

    Parameters
    ----------
    path
        What :func:`write_texts` wrote.
    index
        Of the same keys.

    Attributes
    ----------
    lengths : ndarray
        uint32 (rows,): bytes of each row's key, text as UTF-8.

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

    def __init__(self, path: Path, index: KeyIndex) -> None:
        self._path, self._kind = path, index.kind
        self._mapped = _mapped(path, index.kind)
        self.lengths = np.zeros(index.keys, np.uint32)
        self._places = np.full(index.keys, -1, np.int64)
        for part in self._parts():
            keys = _keys(part, self._kind)
            ids = index.ids_of(checked_keys(str(path), keys, index.kind))
            ends = np.cumsum(part.lengths, dtype=np.int64)
            there = ids >= 0
            self._places[ids[there]] = (part.first_byte + ends - part.lengths)[there]
            self.lengths[ids[there]] = part.lengths[there]
        missing = self._places < 0
        if missing.any():
            raise FormatError(
                f"{path}: has no key of row {int(missing.argmax())}; load the table again"
            )

    def raw(self, first: int, end: int) -> bytes:
        """Return the keys of ids from `first` to before `end`, one behind the other."""
        places = self._places[first:end].tolist()
        lengths = self.lengths[first:end].tolist()
        held = self._mapped.data
        return b"".join(held[at : at + length] for at, length in zip(places, lengths, strict=True))

    def _parts(self) -> Iterator[_Part]:
        at, size = _HEADER.size, self._mapped.size
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
    raw, ends = part.data.tobytes(), np.cumsum(part.lengths, dtype=np.int64).tolist()
    both = zip(ends, part.lengths.tolist(), strict=True)
    pieces = [raw[end - length : end] for end, length in both]
    return [each.decode() for each in pieces] if kind == "str" else pieces


def _mapped(path: Path, kind: str) -> NDArray[np.uint8]:
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
    if len(raw) == _HEADER.size and raw[:4] == _MAGIC:
        version = _HEADER.unpack(raw)[1]
        if version > _FORMAT_VERSION:
            raise FormatError(
                f"{path}: format {version} is newer than this release reads ({_FORMAT_VERSION}); "
                "upgrade bandana_kv"
            )
    if raw != _header(kind):
        raise FormatError(f"{path}: no keys of {kind}, or torn; load the table again")
    return mapped
