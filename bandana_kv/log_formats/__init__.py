"""The file formats of access logs: one module each, found by the file's suffix.

A reader takes a path and returns plain arrays, ``offsets`` int64 (requests + 1,) and
``ids`` (lookups,); :meth:`bandana_kv.access_log.AccessLog.read` checks them and wraps
them. Text is parsed in blocks by kernels, so no lookup ever becomes a Python object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.log_formats import interactions, npz, parquet, text
from bandana_kv.progress import Progress

__all__ = ["READERS", "WRITERS", "format_of"]

Reader = Callable[[Path, Mapping[str, str] | None, Progress], tuple[NDArray[Any], NDArray[Any]]]
Writer = Callable[[Path, NDArray[Any], NDArray[Any]], None]

READERS: dict[str, Reader] = {
    "npz": npz.read,
    "parquet": parquet.read,
    "csv": interactions.read_csv,
    "tsv": interactions.read_tsv,
    "txt": text.read,
}
WRITERS: dict[str, Writer] = {"npz": npz.write, "parquet": parquet.write}

_COMPRESSED = ("csv", "tsv", "txt")  # also read with .gz behind


def format_of(path: Path, formats: Mapping[str, object], wanted: str | None = None) -> str:
    """Return which of `formats` a file is in: `wanted`, else what its suffix says.

    Raises
    ------
    InputError
        No such format; the message lists those there are.
    """
    name = path.name.lower()
    if wanted is None:
        for known in formats:
            if name.endswith(f".{known}") or (
                known in _COMPRESSED and name.endswith(f".{known}.gz")
            ):
                return known
    elif wanted in formats:
        return wanted
    suffixes = ", ".join(f".{known}" for known in formats)
    gz = "; .gz behind " + ", ".join(f".{known}" for known in formats if known in _COMPRESSED)
    what = f"{path}: its suffix says no format" if wanted is None else f"no log format {wanted!r}"
    raise InputError(f"{what}; there are {suffixes}{gz if gz[-1] != ' ' else ''}")
