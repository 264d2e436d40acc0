"""The file formats of access logs: one module each, found by the file's suffix.

A reader takes a path and returns plain arrays, ``offsets`` int64 (requests + 1,) and
``ids`` (lookups,); :meth:`bandana_kv.logs.access_log.AccessLog.read` checks them and wraps
them. Text is parsed in blocks by kernels, so no lookup ever becomes a Python object, but for
JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.logs.formats import interactions, json_lines, npz, parquet, recording, text
from bandana_kv.logs.formats.bad_rows import BadRows
from bandana_kv.logs.options import LogOptions
from bandana_kv.progress import Progress

__all__ = ["READERS", "WRITERS", "Reader", "format_of", "read_directory", "reader_of"]

Read = Callable[[Path, LogOptions, BadRows, Progress], tuple[NDArray[Any], NDArray[Any]]]
Writer = Callable[[Path, NDArray[Any], NDArray[Any]], None]


class Reader(NamedTuple):
    """What reads a format, and which options say something to it."""

    read: Read
    takes: frozenset[str] = frozenset()


_SEPARATED = frozenset({"columns", "separator", "header", "quoting", "missing"})
_NAMED = frozenset({"columns", "missing"})

READERS: dict[str, Reader] = {
    "npz": Reader(npz.read),
    "parquet": Reader(parquet.read, _NAMED),
    "csv": Reader(interactions.read_csv, _SEPARATED),
    "tsv": Reader(interactions.read_tsv, _SEPARATED),
    "txt": Reader(text.read, frozenset({"separator"})),
    "jsonl": Reader(json_lines.read, _NAMED),
}
WRITERS: dict[str, Writer] = {"npz": npz.write, "parquet": parquet.write}

_COMPRESSED = ("csv", "tsv", "txt", "jsonl")  # also read with .gz behind
_ALSO = {"ndjson": "jsonl"}
_ABSENT = {
    "columns": "no columns to name",
    "separator": "no separator",
    "header": "no header",
    "quoting": "no quoting",
    "missing": "no names of requests",
}


def format_of(path: Path, formats: Mapping[str, object], wanted: str | None = None) -> str:
    """Return which of `formats` a file is in: `wanted`, else what its suffix says.

    Raises
    ------
    InputError
        No such format; the message lists those there are.
    """
    name = path.name.lower()
    if wanted is None:
        for suffix in [*formats, *_ALSO]:
            known = _ALSO.get(suffix, suffix)
            if known not in formats:
                continue
            if name.endswith(f".{suffix}") or (
                known in _COMPRESSED and name.endswith(f".{suffix}.gz")
            ):
                return known
    elif wanted in formats:
        return wanted
    suffixes = ", ".join(f".{known}" for known in formats)
    gz = "; .gz behind " + ", ".join(f".{known}" for known in formats if known in _COMPRESSED)
    what = f"{path}: its suffix says no format" if wanted is None else f"no log format {wanted!r}"
    raise InputError(f"{what}; there are {suffixes}{gz if gz[-1] != ' ' else ''}")


def reader_of(path: Path, options: LogOptions) -> Read:
    """Return what reads a file.

    Raises
    ------
    InputError
        It is of no known format, or `options` says something that its format does not have.
    """
    name = format_of(path, READERS, options.format)
    read, takes = READERS[name]
    _check_said(path, f"a log in .{name}", takes, options)
    return read


def _check_said(path: Path, what: str, takes: frozenset[str], options: LogOptions) -> None:
    for option, absent in _ABSENT.items():
        if option not in takes and getattr(options, option) is not None:
            raise InputError(f"{path}: {what} has {absent}; leave out {option}")


def read_directory(
    path: Path, options: LogOptions, bad: BadRows, progress: Progress
) -> tuple[str, NDArray[Any], NDArray[Any]]:
    """Return what to call a log that is a directory, and the offsets and ids of its requests.

    Raises
    ------
    InputError
        It holds neither a recording nor Parquet files, or what their readers say.
    """
    if recording.is_recording(path):
        _check_said(path, "a recording", frozenset(), options)
        table, offsets, ids = recording.read(path, options.table)
        return f"{path}, table {table!r}", offsets, ids
    if files := parquet.files_of(path, options.format):
        _check_said(path, "a directory of Parquet files", _NAMED, options)
        offsets, ids = parquet.read_all(path, files, options, bad, progress)
        return str(path), offsets, ids
    raise InputError(
        f"{path}: is a directory without a recording or Parquet files; give the log file in it"
    )
