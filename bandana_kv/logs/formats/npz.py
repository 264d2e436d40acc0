"""Access logs in .npz: the two arrays as they are, memory-mapped where they lie uncompressed."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.logs.formats.bad_rows import BadRows
from bandana_kv.logs.options import LogOptions
from bandana_kv.progress import Progress

__all__ = ["read", "write"]

_NAMES = ("offsets", "ids")
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, of the extra field
_LOCAL_MAGIC = b"PK\x03\x04"
_ZIP64_EXTRA_BYTES = 20
_PADDING = struct.Struct("<HH")  # an extra field: its kind, the bytes that follow
_PADDING_KIND = 0xD935  # the one that zipalign uses
_ALIGN_BYTES = 64
# np.savez leaves arrays at odd addresses. Kernels are compiled once more for such arrays,
# which pays only when copying them is out of the question.
_COPY_BELOW_BYTES = 64 << 20
_READ_BYTES = 16 << 20
_MOST_DEFLATED = 1032  # the most bytes that deflate makes of one


def read(
    path: Path, _options: LogOptions, _bad: BadRows, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read `offsets` and `ids` of an .npz file.

    Raises
    ------
    InputError
        Not a zip file, truncated, an array is missing or holds Python objects.

    Notes
    -----
    Arrays stored without compression are mapped, not read: do not write into the file
    while the log is in use, replace it.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            members = [_member(path, archive, name) for name in _NAMES]
            total = sum(member.compress_size for member in members)
            progress.start(f"read {path.name}", total, "bytes")
            try:
                offsets, ids = (
                    _read_array(path, file, archive, member, progress) for member in members
                )
            finally:
                progress.finish()
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError) as error:
        raise InputError(f"{path}: not a complete .npz file ({error}); copy it again") from error
    except (ValueError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable .npz file ({error})") from error
    return offsets, ids


def _read_array(
    path: Path,
    file: IO[bytes],
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    progress: Progress,
) -> NDArray[Any]:
    if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
        array = _map_array(path, file, member)
    else:
        with archive.open(member) as stream:
            items, dtype = _header(path, member, stream, 0)
            array = np.empty(items, dtype)
            _fill(path, member, stream, array)
    progress.advance(member.compress_size)
    return array


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        there = ", ".join(entry.removesuffix(".npy") for entry in archive.namelist()) or "none"
        raise InputError(
            f"{path}: has no array {name!r}; the arrays in it: {there}. Write one with "
            "np.savez(path, offsets=..., ids=...)"
        ) from None
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{path}: {name!r} is packed in a way that numpy does not use")
    # Bounded by the file, before memory is taken for what it claims.
    if (
        member.compress_size > path.stat().st_size
        or member.file_size > _MOST_DEFLATED * member.compress_size + _READ_BYTES
    ):
        raise InputError(f"{path}: {name!r} claims more bytes than the file can hold")
    return member


def _header(
    path: Path, member: zipfile.ZipInfo, stream: IO[bytes], begin: int
) -> tuple[int, np.dtype[Any]]:
    """Read the header of an array whose member begins at `begin`; return items and dtype."""
    name = member.filename.removesuffix(".npy")
    try:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(stream)
    except zipfile.BadZipFile:
        raise
    except Exception as error:
        # damaged headers meet Python's own tokenizer, which raises what it pleases
        raise InputError(f"{path}: {name} has no readable header; copy the file again") from error
    if dtype.hasobject:
        raise InputError(f"{path}: {name} holds Python objects; write integers")
    if len(shape) != 1:
        raise InputError(f"{path}: {name} must have one dimension, it has {len(shape)}")
    if stream.tell() - begin + shape[0] * dtype.itemsize != member.file_size:
        raise InputError(f"{path}: {name} is not as long as its header says; copy the file again")
    return shape[0], dtype


def _fill(path: Path, member: zipfile.ZipInfo, stream: IO[bytes], array: NDArray[Any]) -> None:
    """Read the array's bytes, and to the end, where the zip's checksum is compared."""
    target = memoryview(array.view(np.uint8).data)
    done = 0
    while part := stream.read(_READ_BYTES):
        if done + len(part) > target.nbytes:
            break
        target[done : done + len(part)] = part
        done += len(part)
    if part or done != target.nbytes:
        raise InputError(f"{path}: {member.filename} is not as long as the file says")


def _map_array(path: Path, file: IO[bytes], member: zipfile.ZipInfo) -> NDArray[Any]:
    file.seek(member.header_offset)
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != _LOCAL_MAGIC:
        raise zipfile.BadZipFile(f"no header of {member.filename}")
    begin = file.seek(name_bytes + extra_bytes, 1)
    items, dtype = _header(path, member, file, begin)
    if path.stat().st_size < begin + member.file_size:
        raise zipfile.BadZipFile(f"{member.filename} is cut short")
    if items == 0:
        return np.empty(items, dtype)
    array: NDArray[Any] = np.memmap(file, dtype, mode="r", offset=file.tell(), shape=(items,))
    return array.copy() if not array.flags.aligned and array.nbytes < _COPY_BELOW_BYTES else array


def write(path: Path, offsets: NDArray[Any], ids: NDArray[Any]) -> None:
    """Write the arrays uncompressed and aligned, so that reading maps them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in zip(_NAMES, (offsets, ids), strict=True):
            member = zipfile.ZipInfo(f"{name}.npy")  # a fixed date: same log, same bytes
            assert archive.fp is not None
            header = archive.fp.tell() + 30 + len(member.filename) + _ZIP64_EXTRA_BYTES
            padding = -(header + _PADDING.size) % _ALIGN_BYTES
            member.extra = _PADDING.pack(_PADDING_KIND, padding) + bytes(padding)
            # force_zip64: the length of an array may need it, and fixes the header's length
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
