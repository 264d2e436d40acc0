"""The file of what changed since an index was built: a header, the keys' words, and their ids.

Little-endian; written anew as a whole. Header: magic ``BKVC``, u16 format, two zeros, 8 bytes of
the kind, u64 each: keys of the index, keys here, next id, last sequence, good bytes of the file of
texts, and the XXH3 of all else.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import xxhash

from bandana_kv.errors import FormatError
from bandana_kv.keys.changes import Changes
from bandana_kv.keys.index import KeyIndex
from bandana_kv.keys.kinds import words_of_kind
from bandana_kv.system.durable import write_durably
from bandana_kv.system.permission import check_permission

__all__ = ["read_changes", "write_changes"]

_FIELDS = struct.Struct("<4sHxx8sQQQQQ")
_DIGEST = struct.Struct("<Q")
_MAGIC, _FORMAT_VERSION = b"BKVC", 1


def write_changes(path: Path, index: KeyIndex, changes: Changes) -> int:
    """Put what changed into a file, durably, in place of what was there; return its bytes.

    Raises
    ------
    DurabilityError, OSError
        As :func:`bandana_kv.system.durable.write_durably`.

    Notes
    -----
    Cost: 16 bytes a changed key, of text and bytes 24.
    """
    kind, count = index.kind.encode(), changes.ids.size
    numbers = (index.keys, count, *changes[2:])
    fields = _FIELDS.pack(_MAGIC, _FORMAT_VERSION, kind, *numbers)
    data = changes.words.astype("<u8").tobytes() + changes.ids.astype("<i8").tobytes()
    content = fields + _DIGEST.pack(_digest(fields, data)) + data
    write_durably(path, content)
    return len(content)


def read_changes(path: Path, index: KeyIndex) -> Changes | None:
    """Return what changed since an index was built; None: nothing was kept.

    Raises
    ------
    FormatError
        The file is torn, damaged, of a newer format, or of another index.
    NoPermissionError
        It may not be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        check_permission(error, path)
        raise FormatError(f"{path}: cannot be read ({error.strerror}){_WAY_OUT}") from error
    head = _FIELDS.size + _DIGEST.size
    if len(content) < head or content[:4] != _MAGIC:
        raise FormatError(f"{path}: holds no changes of keys, or is torn{_WAY_OUT}")
    fields, data = content[: _FIELDS.size], content[head:]
    _, version, kind, keys, count, *numbers = _FIELDS.unpack(fields)
    if version > _FORMAT_VERSION:
        raise FormatError.newer(path, version, _FORMAT_VERSION)
    width = words_of_kind(index.kind)
    whole = len(data) == 8 * count * (width + 1)
    if not whole or _DIGEST.unpack(content[_FIELDS.size : head])[0] != _digest(fields, data):
        raise FormatError(f"{path}: truncated or damaged{_WAY_OUT}")
    if (kind.rstrip(b"\0").decode(), keys) != (index.kind, index.keys):
        raise FormatError(f"{path}: is of another index of keys{_WAY_OUT}")
    words = np.frombuffer(data, "<u8", count * width).astype(np.uint64)
    ids = np.frombuffer(data, "<i8", count, 8 * count * width).astype(np.int64)
    if ids.max(initial=-1) >= numbers[0] or ids.min(initial=0) < -1:
        raise FormatError(f"{path}: its numbers contradict each other{_WAY_OUT}")
    return Changes(words.reshape(-1, 2) if width == 2 else words, ids, *numbers)


_WAY_OUT = "; restore it from a backup, or load the table again"


def _digest(fields: bytes, data: bytes) -> int:
    digest = xxhash.xxh3_64(fields)
    digest.update(data)
    return digest.intdigest()
