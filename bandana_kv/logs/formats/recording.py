"""Recordings as access logs: of a directory that a store recorded to, the requests of a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.logs.formats.frames import files_of, read_frames, requests_of

__all__ = ["is_recording", "read"]


def is_recording(path: str | os.PathLike[str]) -> bool:
    """Return whether a directory holds recorded requests."""
    return bool(files_of(Path(path)))


def read(directory: Path, table: str | None) -> tuple[str, NDArray[Any], NDArray[Any]]:
    """Return which table it was, the offsets, and the ids; `table` may be None for the only one.

    Raises
    ------
    InputError
        There are several tables, and none is named; or it was not recorded.
    """
    frames, _ = read_frames(directory)
    tables = sorted({frame.table for frame in frames})
    known = ", ".join(map(repr, tables))
    if table is None and len(tables) > 1:
        raise InputError(
            f"{directory}: is a recording of {known}; say which by table=, on command lines "
            "by --log-table"
        )
    table = "".join(tables) if table is None else table
    if table not in tables:
        raise InputError(
            f"{directory}: no table {table!r} was recorded; there are {known or 'none'}"
        )
    return table, *requests_of([frame for frame in frames if frame.table == table])
