"""Access logs in Parquet: a column of lists, or interactions with request, id and time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.logs.formats.arrow_values import Wrong, ids_of, names_of, nulls, times_of
from bandana_kv.logs.formats.bad_rows import BadRows
from bandana_kv.logs.formats.columns import find_columns
from bandana_kv.logs.formats.groups import Gathered
from bandana_kv.logs.options import ROLES, LogOptions
from bandana_kv.progress import Progress
from bandana_kv.system.permission import check_permission

__all__ = ["files_of", "read", "read_all", "write"]

_LIST_COLUMNS = ("ids", "id")  # looked for in this order if none is named
_BATCH_ROWS = 1 << 16
_WRITE_REQUESTS = 1 << 16
_HIDDEN = (".", "_")  # Spark and Hive leave _SUCCESS, _metadata and .crc beside their files


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet logs need pyarrow: pip install 'bandana-kv[parquet]', "
            "or give the log as .npz, .csv or .txt"
        ) from error
    return pa, pa.parquet


def files_of(directory: Path, format: str | None) -> list[Path]:
    """Return the Parquet files in a directory and those below it, part-2 before part-10.

    With `format` parquet all files in it are, whatever their names are.

    Raises
    ------
    InputError
        Some are Parquet files and others are not.
    """
    if format not in {None, "parquet"}:
        return []
    found = [
        path
        for path in directory.rglob("*")
        if path.is_file()
        and not any(part.startswith(_HIDDEN) for part in path.relative_to(directory).parts)
    ]
    found.sort(key=lambda path: _in_order(str(path.relative_to(directory))))
    if format is None:
        others = [path for path in found if path.suffix.lower() != ".parquet"]
        if len(others) == len(found):
            return []
        if others:
            raise InputError(
                f"{others[0]}: lies among Parquet files and is none; take it out of {directory}, "
                "or say format='parquet'"
            )
    return found


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return what sorts names by the numbers in them."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read(
    path: Path, options: LogOptions, bad: BadRows, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read a Parquet file, a batch of rows at a time.

    Raises
    ------
    InputError
        Not a Parquet file, a column is missing or of another type, a null.
    MissingExtraError
        pyarrow is not installed.
    """
    return read_all(path, [path], options, bad, progress)


def read_all(
    path: Path, files: Sequence[Path], options: LogOptions, bad: BadRows, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read Parquet files as one log, one after another; raises as :func:`read`."""
    arrow, parquet = _arrow()
    gathered = Gathered(path)
    for each in files:
        try:
            with parquet.ParquetFile(each, memory_map=True, pre_buffer=False) as file:
                progress.start(f"read {each.name}", file.metadata.num_rows, "rows")
                try:
                    _File(each, arrow, file, options, bad).into(gathered, progress)
                finally:
                    progress.finish()
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, InputError):
                raise
            check_permission(error, each)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{each}: not a complete Parquet file ({reason})") from error
    return gathered.done()


def _is_list(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _list_column(arrow: Any, schema: Any, options: LogOptions) -> str | None:
    """Return the column whose lists are the requests, None if there is none."""
    wanted = (options.column("id"),) if options.named("id") else _LIST_COLUMNS
    for name in wanted:
        if name in schema.names and _is_list(arrow, schema.field(name).type):
            return name
    lists = [field.name for field in schema if _is_list(arrow, field.type)]
    told = options.named("id") or options.named("request") or "request" in schema.names
    return lists[0] if len(lists) == 1 and not told else None


def _there(path: Path, role: str, name: str, names: Sequence[str]) -> str:
    if name in names:
        return name
    raise InputError(
        f"{path}: has no column {name!r}; its columns: {', '.join(map(repr, names))}. "
        f"Say which holds the {role}: columns={{{role!r}: ...}}"
    )


class _File:
    """One file of a log."""

    def __init__(
        self, path: Path, arrow: Any, file: Any, options: LogOptions, bad: BadRows
    ) -> None:
        self._path = path
        self._arrow = arrow
        self._file = file
        self._options = options
        self._bad = bad
        names = file.schema_arrow.names
        self._lists = _list_column(arrow, file.schema_arrow, options)
        if self._lists is None:
            found = find_columns(path, names, options)
            roles = zip(ROLES, found, strict=True)
            self._used = {role: names[at] for role, at in roles if at >= 0}
        else:
            self._used = {"id": self._lists}
            for role in ("request", "time"):
                # A row is a request already; its name joins it to others only where one is said.
                if options.named(role) or (role == "time" and role in names):
                    self._used[role] = _there(path, role, options.column(role), names)

    def into(self, gathered: Gathered, progress: Progress) -> None:
        """Add the requests of the file to those of others."""
        gathered.begin(str(self._path), "request" in self._used, "time" in self._used)
        wanted = list(dict.fromkeys(self._used.values()))
        row = 0
        for batch in self._file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
            self._add(gathered, row, batch)
            row += batch.num_rows
            progress.advance(batch.num_rows)

    def _add(self, gathered: Gathered, row: int, batch: Any) -> None:
        values = {role: self._decoded(batch, name) for role, name in self._used.items()}
        good = np.ones(batch.num_rows, bool)

        def check(wrong: Wrong) -> None:
            mask = wrong.mask & good
            if mask.any():
                at = row + int(np.argmax(mask))
                self._bad.add(f"{self._path}: row {at}: {wrong.what}", int(mask.sum()))
                good[mask] = False

        for role in ROLES:
            if role in values:
                check(nulls(self._used[role], values[role]))
        ids, sizes, wrong = self._ids(values["id"])
        check(wrong)
        names = None
        if "request" in values:
            missing = self._options.means_missing()
            column = self._used["request"]
            names, wrong = names_of(self._path, self._arrow, column, values["request"], missing)
            check(wrong)
        times = None
        if "time" in values:
            column = self._used["time"]
            times, wrong = times_of(self._path, self._arrow, column, values["time"])
            check(wrong)
            times = times._replace(whole=times.whole[good], nanos=times.nanos[good])
        kept = ids[good] if sizes is None else ids[np.repeat(good, sizes)]
        gathered.add(
            kept,
            None if sizes is None else sizes[good],
            None if names is None else self._spans(names.filter(self._arrow.array(good))),
            times,
        )

    def _decoded(self, batch: Any, name: str) -> Any:
        """Return a column without a dictionary, which may hold nulls of its own."""
        values = batch.column(name)
        if self._arrow.types.is_dictionary(values.type):
            return values.dictionary_decode()
        return values

    def _ids(self, values: Any) -> tuple[NDArray[np.int32], NDArray[np.int64] | None, Wrong]:
        """Return ids, how many each row has where they come in lists, and which rows are wrong."""
        column = self._used["id"]
        if self._lists is None:
            ids, wrong = ids_of(self._path, self._arrow, column, values)
            return ids, None, wrong
        compute = self._arrow.compute
        sizes = compute.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
        flat = values.drop_null().flatten()
        if self._arrow.types.is_dictionary(flat.type):
            flat = flat.dictionary_decode()
        # A list of a fixed size that is null has values all the same.
        sizes = np.where(values.is_null().to_numpy(zero_copy_only=False), 0, sizes).astype(np.int64)
        ids, wrong = ids_of(self._path, self._arrow, column, flat)
        mask, what = wrong.mask, wrong.what
        if flat.null_count:
            null = nulls(column, flat).mask
            if not mask.any() or np.argmax(null) < np.argmax(mask):
                what = f"column {column!r} holds a null"
            mask = mask | null
        of_row = np.zeros(sizes.size, bool)
        of_row[np.repeat(np.arange(sizes.size), sizes)[mask]] = True
        return ids, sizes, Wrong(of_row, what)

    def _spans(self, names: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return names end to end, and where each ends, as an interner takes them."""
        _, ends_buffer, text_buffer = names.buffers()
        first = names.offset
        if not len(names):
            return np.empty(0, np.uint8), np.zeros(1, np.int64)
        ends = np.frombuffer(ends_buffer, np.int64)[first : first + len(names) + 1]
        return np.frombuffer(text_buffer or b"", np.uint8), ends


def write(path: Path, offsets: NDArray[Any], ids: NDArray[Any]) -> None:
    """Write one row per request, its ids as a list in column `ids`."""
    arrow, parquet = _arrow()
    value_type = arrow.from_numpy_dtype(ids.dtype)
    schema = arrow.schema([arrow.field("ids", arrow.large_list(value_type), nullable=False)])
    with parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, offsets.size - 1, _WRITE_REQUESTS):
            part = offsets[first : first + _WRITE_REQUESTS + 1]
            lists = arrow.LargeListArray.from_arrays(
                arrow.array(part - part[0]), arrow.array(ids[part[0] : part[-1]])
            )
            writer.write_batch(arrow.record_batch([lists], schema=schema))
