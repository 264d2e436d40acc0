"""What the catalogue says of a version: which files it is made of, and of which store it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import xxhash

from bandana_kv.cluster.files import FilesOf
from bandana_kv.errors import FormatError

if TYPE_CHECKING:
    from bandana_kv.adapters.resp_catalogue import Catalogue

__all__ = ["MANIFEST", "Record", "drop_record", "new_record", "put_record", "record_of"]

MANIFEST = "manifest"
"""The name of a version's manifest among its files."""

_FORMAT = 1


class Record(msgspec.Struct, frozen=True):
    """A version.

    Attributes
    ----------
    format, version : int
    store, identity : str
        As its manifest has them.
    created : str
    pages : int
        4 KiB pages of a block.
    tables : tuple of str
    segments : dict of int to FilesOf
        The files of each load that its tables are of, its own among them.
    """

    format: int
    version: int
    store: str
    identity: str
    created: str
    pages: int
    tables: tuple[str, ...]
    segments: dict[int, FilesOf]


class _Signed(msgspec.Struct):
    checksum: str
    record: msgspec.Raw


def new_record(
    version: int,
    store: str,
    identity: str,
    created: str,
    pages: int,
    tables: tuple[str, ...],
    segments: dict[int, FilesOf],
) -> Record:
    """Return a record of this release's format."""
    return Record(_FORMAT, version, store, identity, created, pages, tables, segments)


def put_record(catalogue: Catalogue, record: Record) -> None:
    """Write what a version is made of; it does not count before it is listed."""
    body = msgspec.json.encode(record)
    signed = _Signed(xxhash.xxh3_64_hexdigest(body), msgspec.Raw(body))
    catalogue.put(_key(record.version), msgspec.json.encode(signed))


def drop_record(catalogue: Catalogue, version: int) -> None:
    """Remove what was written of a version."""
    catalogue.drop(_key(version))


def record_of(catalogue: Catalogue, version: int) -> Record | None:
    """Return what a version is made of; None: there is no such version any more.

    Raises
    ------
    FormatError
        It is damaged, or a later release wrote it.
    """
    text = catalogue.get(_key(version))
    if text is None:
        return None
    where = f"{catalogue.where}, version {version}"
    try:
        signed = msgspec.json.decode(text, type=_Signed)
        body = bytes(signed.record)
        if signed.checksum != xxhash.xxh3_64_hexdigest(body):
            raise FormatError(f"{where}: its checksum does not match; load the tables again")
        record = msgspec.json.decode(body, type=Record)
    except msgspec.MsgspecError as error:
        raise FormatError(f"{where}: damaged ({error}); load the tables again") from error
    if record.format > _FORMAT:
        raise FormatError.newer(where, record.format, _FORMAT)
    return record


def _key(version: int) -> str:
    return f"version:{version}"
