"""Placements in files: a checksummed header, then the positions, mapped on reading.

All numbers are little-endian. The header has 128 bytes: magic ``BKVPLACE``, format version
(uint16), six bytes of zeros, rows and number of replicas (uint64), rows per block (uint32),
four bytes of zeros, share of the log learned from (float64), method (48 bytes, UTF-8, filled
up with zeros), XXH3-64 of the data, 16 bytes of zeros and XXH3-64 of the header before it.
Data are the positions, then the replicas, as uint32.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.errors import FormatError, InputError
from bandana_kv.system.durable import replacing, sync_directory, sync_file
from bandana_kv.system.permission import check_permission

__all__ = ["Stored", "read_placement", "write_placement"]

_MAGIC = b"BKVPLACE"
_VERSION = 1
_FIELDS = struct.Struct("<8sH6xQQI4xd48sQ16x")
_DIGEST = struct.Struct("<Q")
_HEADER_BYTES = _FIELDS.size + _DIGEST.size
_CHUNK_BYTES = 1 << 22


class Stored(NamedTuple):
    """What a file holds."""

    position_of_id: NDArray[np.uint32]
    replicas: NDArray[np.uint32]
    rows_per_block: int
    learned_from: float
    method: str


def write_placement(path: str | os.PathLike[str], stored: Stored) -> None:
    """Write the file beside `path` and let it take the place of what is there, in one step."""
    method = stored.method.encode()
    if len(method) > 48:
        raise InputError(f"the method's name {stored.method!r} has more than 48 bytes")
    arrays = [
        np.ascontiguousarray(array, "<u4").view(np.uint8).data
        for array in (stored.position_of_id, stored.replicas)
    ]
    digest = xxhash.xxh3_64()
    for array in arrays:
        digest.update(array)
    fields = _FIELDS.pack(
        _MAGIC,
        _VERSION,
        stored.position_of_id.size,
        stored.replicas.size,
        stored.rows_per_block,
        stored.learned_from,
        method,
        digest.intdigest(),
    )
    target = Path(path)
    with replacing(target) as beside, open(beside, "wb") as file:
        file.write(fields + _DIGEST.pack(xxhash.xxh3_64_intdigest(fields)))
        for array in arrays:
            file.write(array)
        file.flush()
        sync_file(file.fileno(), target)
    sync_directory(target.parent)


def read_placement(path: str | os.PathLike[str]) -> Stored:
    """Check every byte of the file and map its arrays, read-only.

    Raises
    ------
    FormatError
        Not a placement, damaged, or of a newer format.
    InputError
        The file cannot be read at all.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER_BYTES)
            stored, digest = _unpacked(path, header, os.fstat(file.fileno()).st_size)
            rows, replicas = stored.position_of_id.size, stored.replicas.size
            found = xxhash.xxh3_64()
            while chunk := file.read(_CHUNK_BYTES):
                found.update(chunk)
    except OSError as error:
        check_permission(error, path)
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if found.intdigest() != digest:
        raise FormatError(f"{path}: the placement's checksum does not match; it is damaged")
    stored = stored._replace(
        position_of_id=_mapped(path, _HEADER_BYTES, rows),
        replicas=_mapped(path, _HEADER_BYTES + 4 * rows, replicas),
    )
    _check_numbers(path, stored)
    return stored


def _check_numbers(path: str | os.PathLike[str], stored: Stored) -> None:
    """Refuse what kernels would take for indices of nothing."""
    rows = stored.position_of_id.size
    seen = np.zeros(rows, np.bool_)
    for start in range(0, rows, _CHUNK_BYTES):
        part = stored.position_of_id[start : start + _CHUNK_BYTES]
        seen[part[part < rows]] = True
    good = (
        bool(seen.all())
        and (stored.replicas.size == 0 or int(stored.replicas.max()) < rows)
        and stored.rows_per_block > 0
        and 0.0 <= stored.learned_from <= 1.0
    )
    if not good:
        raise FormatError(f"{path}: the placement's numbers are out of range; place anew")


def _unpacked(path: str | os.PathLike[str], header: bytes, size: int) -> tuple[Stored, int]:
    """Return what the header says, its arrays without memory behind them, and their checksum."""
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise FormatError(f"{path}: not a placement file")
    magic_and_version = struct.unpack_from("<8sH", header)
    if magic_and_version[1] != _VERSION:
        raise FormatError(
            f"{path}: placement format {magic_and_version[1]} is not the one this release "
            f"reads ({_VERSION}); upgrade bandana_kv or place anew"
        )
    fields = header[: _FIELDS.size]
    if _DIGEST.unpack(header[_FIELDS.size :])[0] != xxhash.xxh3_64_intdigest(fields):
        raise FormatError(f"{path}: the placement's header is damaged")
    _, _, rows, replicas, rows_per_block, learned_from, method, digest = _FIELDS.unpack(fields)
    if size != _HEADER_BYTES + 4 * (rows + replicas):
        raise FormatError(f"{path}: truncated or too long for the placement it announces")
    nothing = np.zeros(1, np.uint32)
    stored = Stored(
        np.broadcast_to(nothing, rows),
        np.broadcast_to(nothing, replicas),
        rows_per_block,
        learned_from,
        method.rstrip(b"\0").decode(errors="replace"),
    )
    return stored, digest


def _mapped(path: str | os.PathLike[str], offset: int, items: int) -> NDArray[np.uint32]:
    if items == 0:
        return np.zeros(0, np.uint32)
    return np.memmap(path, "<u4", "r", offset=offset, shape=(items,))
