"""Rows of an array in an .npz file: by position where it is stored, else unpacked first."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.rows.member import choose
from bandana_kv.rows.npy import Header, read_header
from bandana_kv.rows.positioned import PositionedFile, RunRows, opened
from bandana_kv.rows.staged import StagedRows
from bandana_kv.rows.table import RowSource
from bandana_kv.rows.zip_members import check_claims, first_byte_of, zip_named

__all__ = ["open_npz"]

_SUFFIX = ".npy"


def open_npz(path: Path, member: str = "") -> RowSource:
    """Return the rows of an array in an .npz file.

    Parameters
    ----------
    path
    member
        The array's name; "": the only one with two dimensions.

    Raises
    ------
    InputError
        Missing, truncated or damaged; no such array; not two-dimensional, or not numeric.
    """
    with opened(path) as file, zip_named(path, ".npz"), zipfile.ZipFile(file) as archive:
        members = {
            each.filename.removesuffix(_SUFFIX): each
            for each in archive.infolist()
            if each.filename.endswith(_SUFFIX)
        }
        size = file.seek(0, 2)
        for each in members.values():
            check_claims(path, each, size)
        name = choose(
            path,
            "array",
            member,
            members,
            lambda each: _header(path, archive, members[each])[0].shape,
        )
        found = members[name]
        header, header_bytes = _header(path, archive, found)
        stored = found.compress_type == zipfile.ZIP_STORED
        first_byte = first_byte_of(file, found) + header_bytes
    if stored:
        file_of_rows = PositionedFile(path)
        return RunRows(f"{path}:{name}", file_of_rows, first_byte, header.shape, header.dtype)
    return PackedRows(path, name, found, header, header_bytes)


def _header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[Header, int]:
    """Return what an array's header says, and how long the header is."""
    name = f"{path}:{member.filename.removesuffix(_SUFFIX)}"
    with archive.open(member) as stream:
        header = read_header(name, stream)
        length = stream.tell()
    need = length + int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
    if need != member.file_size and not header.dtype.hasobject:
        raise InputError(
            f"{name}: truncated or damaged: {member.file_size} bytes, its header promises {need}; "
            "copy it again"
        )
    return header, length


class PackedRows(StagedRows):
    """Rows of a compressed array, unpacked into a temporary file."""

    def __init__(
        self, path: Path, name: str, member: zipfile.ZipInfo, header: Header, header_bytes: int
    ) -> None:
        self._path = path
        self._member = member
        self._header_bytes = header_bytes
        self._describe_staged(f"{path}:{name}", header.shape, header.dtype)

    def _parts(self, most_rows: int) -> Iterator[NDArray[Any]]:
        with (
            opened(self._path) as file,
            zip_named(self._path, ".npz"),
            zipfile.ZipFile(file) as archive,
            archive.open(self._member) as stream,
        ):
            stream.read(self._header_bytes)
            left = self.rows
            while left:
                many = min(most_rows, left)
                raw = stream.read(many * self.row_bytes)
                if len(raw) != many * self.row_bytes:
                    raise InputError(f"{self._name}: truncated; copy it again")
                yield np.frombuffer(raw, self.dtype).reshape(many, self.dim)
                left -= many
            stream.read(1)  # at the end of it the checksum is compared
