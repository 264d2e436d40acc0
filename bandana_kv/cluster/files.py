"""The files of a version, as blocks of a key space of their own.

A listing comes first (JSON: name, bytes and XXH3 of each file), then the files, each from the
beginning of a block. The blocks are those of :mod:`bandana_kv.disk.blocks`: of a table with one row
a block, as long as it has room for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.adapters.contract import block_keys, empty_payloads
from bandana_kv.disk import blocks
from bandana_kv.errors import AdapterError, BlockCorruptError, FormatError
from bandana_kv.system.durable import sync_file

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter, Payloads

__all__ = ["FilesOf", "check_file_blocks", "read_file", "read_files", "write_files"]

_CHUNK_BLOCKS = 2048
# Of what is read at once: an adapter that gives up blocks which are late does so for lookups.
_READ_BLOCKS = 256
_TRIES, _PAUSE_S = 8, 0.5
_READ_BYTES = 1 << 20
_NAME = re.compile(r"[a-z][a-z-]{0,31}(-[0-9]{1,8})?")


class File(msgspec.Struct, frozen=True):
    """A file in a listing."""

    name: str
    bytes: int
    digest: str


class FilesOf(msgspec.Struct, frozen=True):
    """Where the files of a version lie, and what the listing must be.

    Attributes
    ----------
    space : int
        Key space of their blocks.
    blocks : int
    listing_bytes : int
    digest : str
        XXH3 of the listing.
    """

    space: int
    blocks: int
    listing_bytes: int
    digest: str


def write_files(adapter: Adapter, space: int, files: Sequence[Path]) -> FilesOf:
    """Write files into a space that is empty; return what finds them again.

    Raises as :meth:`Adapter.bulk_load`. Cost: each file is read twice.
    """
    listing = msgspec.json.encode(
        [File(path.name, path.stat().st_size, _digest(path)) for path in files]
    )
    room = _room(adapter)
    sizes = [len(listing), *(path.stat().st_size for path in files)]
    count = sum(-(-size // room) for size in sizes)
    batches = _sealed(adapter, space, count, _pieces(listing, files, room))
    adapter.bulk_load(batches, count)
    return FilesOf(space, count, len(listing), xxhash.xxh3_64_hexdigest(listing))


def read_files(adapter: Adapter, where: FilesOf, into: Path) -> None:
    """Write all files into a directory, each checked and durable.

    Raises
    ------
    BlockMissingError, BlockCorruptError, AdapterError
        The cluster has them not, or not as they were written.
    FormatError
        The listing is not of this release.
    OSError
        They cannot be written.
    """
    for file, first in _listed(adapter, where):
        path = into / file.name
        with open(path, "wb") as out:
            _copy(adapter, where, file, first, out)
            out.flush()
            sync_file(out.fileno(), path)


def read_file(adapter: Adapter, where: FilesOf, name: str) -> bytes:
    """Return one of the files; raises as :func:`read_files`."""
    room = _room(adapter)
    for file, first in _listed(adapter, where):
        if file.name == name:
            found = b"".join(_parts(adapter, where, first, -(-file.bytes // room)))[: file.bytes]
            _check(file, xxhash.xxh3_64_hexdigest(found))
            return found
    raise FormatError(f"space {where.space} has no file {name!r}; it is not of this release")


def check_file_blocks(payloads: Payloads, where: FilesOf, numbers: NDArray[np.int64]) -> None:
    """See that blocks are what was written; a BlockCorruptError names the first that is not."""
    room = payloads.shape[1] - blocks.HEADER_BYTES
    blocks.verify(payloads, where.space, numbers, where.blocks, 0, 1, room, "(files of a version)")


def _room(adapter: Adapter) -> int:
    return adapter.payload_bytes - blocks.HEADER_BYTES


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _pieces(listing: bytes, files: Sequence[Path], room: int) -> Iterator[bytes]:
    for first in range(0, len(listing), room):
        yield listing[first : first + room]
    for path in files:
        with open(path, "rb", buffering=_READ_BYTES) as file:
            while piece := file.read(room):
                yield piece


def _sealed(
    adapter: Adapter, space: int, count: int, pieces: Iterator[bytes]
) -> Iterator[tuple[NDArray[np.uint64], Payloads]]:
    room = _room(adapter)
    held = empty_payloads(min(count, _CHUNK_BLOCKS), adapter.payload_bytes)
    for first in range(0, count, _CHUNK_BLOCKS):
        part = held[: min(_CHUNK_BLOCKS, count - first)]
        part[:] = 0
        for row in part:
            piece = next(pieces, b"")
            row[blocks.HEADER_BYTES : blocks.HEADER_BYTES + len(piece)] = np.frombuffer(
                piece, np.uint8
            )
        numbers = np.arange(first, first + len(part), dtype=np.int64)
        blocks.seal(part, space, numbers, count, 0, 1, room)
        yield block_keys(space, numbers), part


def _listed(adapter: Adapter, where: FilesOf) -> list[tuple[File, int]]:
    """Return the files, each with its first block."""
    room = _room(adapter)
    at = -(-where.listing_bytes // room)
    text = b"".join(_parts(adapter, where, 0, at))[: where.listing_bytes]
    if xxhash.xxh3_64_hexdigest(text) != where.digest:
        raise BlockCorruptError(
            f"space {where.space}: the list of a version's files is not what was written; load the "
            "tables again"
        )
    try:
        files = msgspec.json.decode(text, type=list[File])
    except msgspec.MsgspecError as error:
        raise FormatError(f"space {where.space}: its list of files is damaged ({error})") from error
    found = []
    for file in files:
        if not _NAME.fullmatch(file.name) or file.bytes < 0:
            raise FormatError(f"space {where.space}: no file of a version is named {file.name!r}")
        found.append((file, at))
        at += -(-file.bytes // room)
    return found


def _parts(adapter: Adapter, where: FilesOf, first: int, count: int) -> Iterator[bytes]:
    """Read blocks, some at a time; yield what they have room for."""
    for at in range(first, first + count, _READ_BLOCKS):
        numbers = np.arange(at, min(at + _READ_BLOCKS, first + count), dtype=np.int64)
        payloads = _patiently(adapter, block_keys(where.space, numbers))
        check_file_blocks(payloads, where, numbers)
        yield payloads[:, blocks.HEADER_BYTES :].tobytes()


def _patiently(adapter: Adapter, keys: NDArray[np.uint64]) -> Payloads:
    """Read blocks, also while a node is down that has some, or is slow."""
    for attempt in range(1, _TRIES + 1):
        try:
            return adapter.multi_get(keys)
        except AdapterError:
            if attempt == _TRIES:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError  # the last one returns or raises


def _copy(adapter: Adapter, where: FilesOf, file: File, first: int, out: BinaryIO) -> None:
    left, digest = file.bytes, xxhash.xxh3_64()
    for part in _parts(adapter, where, first, -(-file.bytes // _room(adapter))):
        wanted = part[:left]
        digest.update(wanted)
        out.write(wanted)
        left -= len(wanted)
    _check(file, digest.hexdigest())


def _check(file: File, digest: str) -> None:
    if digest != file.digest:
        raise BlockCorruptError(
            f"{file.name}: its checksum does not match what was written; load the tables again"
        )
