"""The file of an index: a checksummed header, then slots (:mod:`bandana_kv.keys.slots`).

Little-endian. The header takes 128 bytes, so that slots begin at a line of the processor's cache.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import xxhash

from bandana_kv.errors import FormatError, InputError
from bandana_kv.keys.kinds import Kind, checked_kind, words_of_kind
from bandana_kv.keys.slots import HALVES, SPARE_SLOTS

__all__ = ["HEADER_BYTES", "Header", "pack", "read_header"]

HEADER_BYTES = 128
_MAGIC, _FORMAT_VERSION = b"BKVK", 1
# magic, format version, kind, fields of Header in their order, room; then its checksum
_FIELDS = struct.Struct("<4sHxx8sQQQQQQ56x")
_DIGEST = struct.Struct("<Q")


class Header(NamedTuple):
    """What an index is; `checksum` is the XXH3 of its slots' bytes."""

    kind: Kind
    keys: int
    slots: int
    homes: int
    seed: int
    absent: int
    checksum: int

    @property
    def data_bytes(self) -> int:
        """Bytes of the slots."""
        return 4 * HALVES[words_of_kind(self.kind)] * self.slots


def pack(header: Header) -> bytes:
    """Return the bytes of a header."""
    kind, *numbers = header
    fields = _FIELDS.pack(_MAGIC, _FORMAT_VERSION, kind.encode(), *numbers)
    return fields + _DIGEST.pack(xxhash.xxh3_64_intdigest(fields))


def read_header(path: Path, handle: int) -> Header:
    """Return the header of an open file whose length is as it says.

    Raises
    ------
    FormatError
        It is torn, damaged, of a newer format, or no index at all.
    OSError
        It cannot be read.
    """
    raw = os.pread(handle, HEADER_BYTES, 0)
    if len(raw) < HEADER_BYTES or raw[: len(_MAGIC)] != _MAGIC:
        raise FormatError(f"{path}: not an index of keys, or torn; load the table again")
    fields = raw[: _FIELDS.size]
    _, version, kind, *numbers = _FIELDS.unpack(fields)
    if version > _FORMAT_VERSION:
        raise FormatError.newer(path, version, _FORMAT_VERSION)
    if _DIGEST.unpack(raw[_FIELDS.size :])[0] != xxhash.xxh3_64_intdigest(fields):
        raise FormatError(f"{path}: its header is damaged; load the table again")
    try:
        header = Header(checked_kind(kind.rstrip(b"\0").decode()), *numbers)
    except InputError as error:
        raise FormatError(f"{path}: {error}; upgrade bandana_kv") from error
    if os.fstat(handle).st_size != HEADER_BYTES + header.data_bytes:
        raise FormatError(f"{path}: truncated or too long; load the table again")
    if not header.keys < header.homes <= header.slots - SPARE_SLOTS:
        raise FormatError(f"{path}: has no room for its keys; load the table again")
    return header
