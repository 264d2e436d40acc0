"""One-dimensional arrays in files: a checksummed header page-aligned before raw data.

Used for what serving maps into memory (positions, heat). Little-endian, 64-byte header.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import DTypeLike, NDArray

from bandana_kv.errors import FormatError
from bandana_kv.system.durable import sync_file
from bandana_kv.system.maps import map_file
from bandana_kv.system.permission import check_permission

__all__ = ["map_array", "write_array"]

# magic, format version, kind, dtype, items, checksum of the data, checksum of the header
_HEADER = struct.Struct("<4sHxx16s8sQQQ8x")
_MAGIC = b"BKVA"
_FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 22


def write_array(path: Path, kind: str, array: NDArray[np.generic]) -> None:
    """Write a one-dimensional `array` to `path` and make it durable.

    Parameters
    ----------
    path
        A new file.
    kind
        What the numbers are, at most 16 ASCII characters; asked for again on reading.
    array
        Any fixed-size numeric dtype, (n,).
    """
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = little.view(np.uint8).data
    fields = (
        _MAGIC,
        _FORMAT_VERSION,
        kind.encode(),
        little.dtype.str.encode(),
        little.size,
        xxhash.xxh3_64_intdigest(data),
    )
    digest = xxhash.xxh3_64_intdigest(_HEADER.pack(*fields, 0))
    with open(path, "wb") as file:
        file.write(_HEADER.pack(*fields, digest))
        file.write(data)
        file.flush()
        sync_file(file.fileno(), path)


def map_array(
    path: Path, kind: str, dtype: DTypeLike, items: int, below: int | None = None
) -> NDArray[Any]:
    """Map the array that :func:`write_array` wrote, after checking every byte of it.

    Parameters
    ----------
    path
        The file.
    kind, dtype, items
        What it must be.
    below
        What its numbers must be less than: kernels trust them as indices.

    Returns
    -------
    ndarray
        Read-only, (items,), backed by the file.

    Raises
    ------
    FormatError
        Missing, torn, of a newer format, or not what was asked for.

    Notes
    -----
    Cost: reads the file once (checksum) through a small buffer; the mapping itself is
    page cache, shared by all processes that open the store.
    """
    wanted = np.dtype(dtype).newbyteorder("<")
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
            _check_header(path, header, kind, wanted, items)
            if os.fstat(file.fileno()).st_size != _HEADER.size + items * wanted.itemsize:
                raise FormatError(f"{path}: truncated or too long; load the table again")
            digest = xxhash.xxh3_64()
            most = -1
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                if below is not None:
                    most = max(most, int(np.frombuffer(chunk, wanted).max()))
            mapped = map_file(file.fileno(), _HEADER.size + items * wanted.itemsize)
    except OSError as error:
        check_permission(error, path)
        raise FormatError(f"{path}: cannot be read ({error.strerror}); load the table again") from (
            error
        )
    if digest.intdigest() != _HEADER.unpack(header)[5]:
        raise FormatError(f"{path}: its checksum does not match; load the table again")
    if below is not None and most >= below:
        raise FormatError(f"{path}: {most} is not below {below}; load the table again")
    if items == 0:
        return np.zeros(0, wanted)
    return mapped[_HEADER.size :].view(wanted)


def _check_header(
    path: Path, header: bytes, kind: str, dtype: np.dtype[np.generic], items: int
) -> None:
    if len(header) < _HEADER.size or header[:4] != _MAGIC:
        raise FormatError(f"{path}: not a bandana_kv array file; load the table again")
    *fields, digest = _HEADER.unpack(header)
    if fields[1] > _FORMAT_VERSION:
        raise FormatError.newer(path, fields[1], _FORMAT_VERSION)
    if digest != xxhash.xxh3_64_intdigest(_HEADER.pack(*fields, 0)):
        raise FormatError(f"{path}: its header is damaged; load the table again")
    found = (fields[2].rstrip(b"\0"), fields[3].rstrip(b"\0"), fields[4])
    if found != (kind.encode(), dtype.str.encode(), items):
        raise FormatError(
            f"{path}: holds {found[2]} {found[0].decode('ascii', 'replace')} as "
            f"{found[1].decode('ascii', 'replace')}, not {items} {kind} as {dtype.str}"
        )
