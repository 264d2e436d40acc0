"""What a value is when it is not the bare numbers of a row: a pickle, a .npy file, an archive.

Their bytes can be read as numbers all the same, and would make a table of nonsense. Only what is
certain is told: a row of numbers may begin with any bytes. Nothing is unpickled.
"""

from __future__ import annotations

import json
import pickletools
import zlib

__all__ = ["container_of"]

_MAGICS = (
    (b"\x93NUMPY", "a .npy file"),
    (b"PK\x03\x04", "a zip archive, as .npz and PyTorch files are"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"\x04\x22\x4d\x18", "compressed by lz4"),
    (b"\xfd7zXZ\x00", "compressed by xz"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"ARROW1\x00\x00", "an Arrow file"),
)
_BZIP2_BLOCK = b"1AY&SY"
_GZIP = 31  # of zlib: with a header of gzip
_ZLIB = 15
# Shorter ones are rows of few small numbers more often than what they look like.
_LEAST_BYTES = 8
_MOST_PICKLE_BYTES = 1 << 20


def container_of(value: bytes) -> str | None:
    """Return what a value is, as a message says it; None: numbers, for all that is known."""
    for magic, what in _MAGICS:
        if value.startswith(magic):
            return what
    if value.startswith(b"BZh") and value[4:10] == _BZIP2_BLOCK:
        return "compressed by bzip2"
    if value.startswith(b"\x1f\x8b\x08") and _inflates(value, _GZIP):
        return "compressed by gzip"
    if value.startswith(b"\x78") and _inflates(value, _ZLIB):
        return "compressed by zlib"
    if value.startswith(b"PAR1") and value.endswith(b"PAR1"):
        return "a Parquet file"
    if len(value) >= _LEAST_BYTES:
        if _is_safetensors(value):
            return "a safetensors file"
        if value[:1] in b"[{" and _is_json(value):
            return "JSON"
        if value.endswith(b".") and _is_pickle(value):
            return "a pickle"
    return None


def _inflates(value: bytes, kind: int) -> bool:
    """Return whether a value is a whole compressed stream, its checksum included."""
    stream = zlib.decompressobj(kind)
    rest = value
    try:
        while rest:
            stream.decompress(rest, 1 << 20)
            rest = stream.unconsumed_tail
    except zlib.error:
        return False
    return stream.eof


def _is_safetensors(value: bytes) -> bool:
    size = int.from_bytes(value[:8], "little")
    return size <= len(value) - 8 and value[8:9] == b"{" and _is_json(value[8 : 8 + size])


def _is_json(value: bytes) -> bool:
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True


def _is_pickle(value: bytes) -> bool:
    """Return whether a value is one pickle from its first byte to its last, of any protocol."""
    if len(value) > _MOST_PICKLE_BYTES:
        return value[:1] == b"\x80" and value[1] <= 5
    try:
        last = 0
        for _, _, position in pickletools.genops(value):
            last = position or 0
    except Exception:
        # Parsing what is no pickle ends in errors of many types.
        return False
    return last == len(value) - 1
