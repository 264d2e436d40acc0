"""The files of a recording: frames, each with the requests of one table for a while.

``DIR/000001.requests`` and so on: a header of 8 bytes (magic ``BKVR``, u16 format, two zeros),
then frames. A frame is 72 bytes (magic ``RQST``, u32 version of the store, u64 lookups, hits and
block reads that the store itself counted meanwhile, f64 how many seconds that was, f64 when it
ended, seconds since 1970, u32 requests, u32 lookups recorded, u16 bytes of the table's name, six
zeros, u64 XXH3 of the frame without this field), the name, the lookups of each request (u32) and
their ids (u32). All little-endian.

A crash may leave the last frame of a file torn: reading ends before it.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.errors import FormatError, InputError
from bandana_kv.system.permission import check_permission

__all__ = [
    "FILE_HEADER",
    "Frame",
    "files_of",
    "frame_bytes",
    "frames_of",
    "path_of",
    "read_frames",
    "requests_of",
]

_HEADER = struct.Struct("<4sHxx")
_FRAME = struct.Struct("<4sIQQQddIIH6xQ")
_MAGIC, _FRAME_MAGIC = b"BKVR", b"RQST"
_FORMAT_VERSION = 1
_CHECKSUM_BYTES = 8
_WORD = np.dtype("<u4")

FILE_HEADER = _HEADER.pack(_MAGIC, _FORMAT_VERSION)


class Frame(msgspec.Struct, frozen=True):
    """Requests of one table, and what the store counted while they came.

    Attributes
    ----------
    table : str
    version : int
        That the store served.
    counted : tuple of int
        Lookups, hits and block reads of all requests, recorded or not.
    seconds : float
        How long that took.
    ended : float
        Seconds since 1970.
    lengths : uint32 (requests,)
        Lookups of each recorded request.
    ids : uint32 (lookups,)
    """

    table: str
    version: int
    counted: tuple[int, int, int]
    seconds: float
    ended: float
    lengths: NDArray[np.uint32]
    ids: NDArray[np.uint32]


def path_of(directory: Path, number: int) -> Path:
    """Return the file of a number."""
    return directory / f"{number:06d}.requests"


def files_of(directory: Path) -> list[Path]:
    """Return the files of a recording, the oldest first; none where it is not one."""
    if not directory.is_dir():
        return []
    found = (path for path in directory.iterdir() if re.fullmatch(r"\d{6,}\.requests", path.name))
    return sorted(found, key=lambda path: int(path.stem))


def frame_bytes(frame: Frame) -> bytes:
    """Return a frame as it is written."""
    name = frame.table.encode()
    head = _FRAME.pack(
        _FRAME_MAGIC,
        frame.version,
        *frame.counted,
        frame.seconds,
        frame.ended,
        frame.lengths.size,
        frame.ids.size,
        len(name),
        0,
    )[:-_CHECKSUM_BYTES]
    body = name + frame.lengths.astype(_WORD).tobytes() + frame.ids.astype(_WORD).tobytes()
    checksum = xxhash.xxh3_64_intdigest(head + body)
    return head + checksum.to_bytes(_CHECKSUM_BYTES, "little") + body


def frames_of(path: Path) -> Iterator[tuple[Frame, int]]:
    """Read the frames of a file up to the first that is torn, each with the offset behind it.

    Raises
    ------
    FormatError
        It is no file of a recording, or of a newer format.
    FileNotFoundError
        It made room for newer ones.
    """
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        return  # a crash came before its header
    magic, version = _HEADER.unpack_from(data)
    if magic == _MAGIC and version > _FORMAT_VERSION:
        raise FormatError.newer(path, version, _FORMAT_VERSION)
    if data[: _HEADER.size] != FILE_HEADER:
        raise FormatError(f"{path}: not a recording of bandana_kv; move it elsewhere")
    at = _HEADER.size
    while (found := _frame_at(data, at)) is not None:
        yield found
        at = found[1]


def read_frames(directory: Path) -> tuple[list[Frame], int]:
    """Return the frames of a recording, and how many bytes a crash left unfinished.

    Raises
    ------
    InputError
        The directory holds no recording, or cannot be read.
    FormatError
        As :func:`frames_of`.
    """
    files = files_of(directory)
    if not files:
        raise InputError(f"{directory}: holds no recorded requests; store.record(path) makes some")
    frames: list[Frame] = []
    torn_bytes = 0
    try:
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # it made room for newer ones
                size = file.stat().st_size
                found = list(frames_of(file))
                frames += [frame for frame, _ in found]
                end = found[-1][1] if found else len(FILE_HEADER)
                torn_bytes += max(0, size - end)
    except OSError as error:
        check_permission(error, directory)
        raise InputError(f"{directory}: cannot be read ({error.strerror})") from error
    return frames, torn_bytes


def requests_of(frames: list[Frame]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return the offsets and ids of the requests of some frames, in their order."""
    lengths = np.concatenate([frame.lengths for frame in frames])
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets, np.concatenate([frame.ids for frame in frames])


def _frame_at(data: bytes, at: int) -> tuple[Frame, int] | None:
    if at + _FRAME.size > len(data):
        return None
    fields = _FRAME.unpack_from(data, at)
    magic, version, lookups, hits, reads, seconds, ended, requests, recorded, named, sealed = fields
    begin = at + _FRAME.size
    split = begin + named + _WORD.itemsize * requests
    end = split + _WORD.itemsize * recorded
    if magic != _FRAME_MAGIC or end > len(data):
        return None
    checksum = xxhash.xxh3_64(data[at : begin - _CHECKSUM_BYTES])
    checksum.update(memoryview(data)[begin:end])
    if checksum.intdigest() != sealed:
        return None
    frame = Frame(
        table=data[begin : begin + named].decode(),
        version=version,
        counted=(lookups, hits, reads),
        seconds=seconds,
        ended=ended,
        lengths=np.frombuffer(data[begin + named : split], _WORD),
        ids=np.frombuffer(data[split:end], _WORD),
    )
    return frame, end
