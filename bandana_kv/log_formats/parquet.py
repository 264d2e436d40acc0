"""Access logs in Parquet: a column of lists, or interactions with request, id and time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.log_formats.check import MOST_ID
from bandana_kv.log_formats.columns import ROLES, column_names, find_columns
from bandana_kv.log_formats.grouping import Interactions
from bandana_kv.log_formats.growing import Growing
from bandana_kv.log_formats.interning import Interner
from bandana_kv.progress import Progress

__all__ = ["read", "write"]

_LIST_COLUMNS = ("ids", "id")  # looked for in this order if none is named
_BATCH_ROWS = 1 << 16
_WRITE_REQUESTS = 1 << 16


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


def read(
    path: Path, columns: Mapping[str, str] | None, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read a Parquet file, a batch of rows at a time.

    Raises
    ------
    InputError
        Not a Parquet file, a column is missing or of another type, a null.
    MissingExtraError
        pyarrow is not installed.
    """
    arrow, parquet = _arrow()
    names = column_names(path, columns)
    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            progress.start(f"read {path.name}", file.metadata.num_rows, "rows")
            try:
                name = _list_column(arrow, file.schema_arrow, columns)
                if name is not None:
                    return _read_lists(path, arrow, file, name, progress)
                return _read_interactions(path, arrow, file, names, columns, progress)
            finally:
                progress.finish()
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a complete Parquet file ({reason})") from error


def _is_list(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _list_column(arrow: Any, schema: Any, columns: Mapping[str, str] | None) -> str | None:
    """Return the column whose lists are the requests, None if there is none."""
    wanted = (columns["id"],) if columns and "id" in columns else _LIST_COLUMNS
    for name in wanted:
        if name in schema.names and _is_list(arrow, schema.field(name).type):
            return name
    lists = [field.name for field in schema if _is_list(arrow, field.type)]
    only = len(lists) == 1 and not columns and "request" not in schema.names
    return lists[0] if only else None


def _batches(file: Any, names: list[str], progress: Progress) -> Iterator[tuple[int, Any]]:
    row = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=names):
        yield row, batch
        row += batch.num_rows
        progress.advance(batch.num_rows)


def _refuse_null(path: Path, row: int, column: str, values: Any) -> None:
    if values.null_count:
        at = row + int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{path}: row {at}: column {column!r} is null; leave such rows out")


def _ids(path: Path, arrow: Any, column: str, values: Any) -> NDArray[np.int32]:
    """Return a column of ids as int32."""
    if not arrow.types.is_integer(values.type):
        raise InputError(
            f"{path}: column {column!r} holds {values.type}; ids are whole numbers: store integers"
        )
    ids = values.to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((ids < 0) | (ids > MOST_ID))
    if wrong.size:
        raise InputError(
            f"{path}: column {column!r} holds id {int(ids[wrong[0]])}; "
            f"ids are whole numbers from 0 to {MOST_ID}"
        )
    return np.asarray(ids, np.int32)


def _read_lists(
    path: Path, arrow: Any, file: Any, name: str, progress: Progress
) -> tuple[NDArray[Any], NDArray[Any]]:
    ids, sizes = Growing(np.int32), Growing(np.int64)
    for row, batch in _batches(file, [name], progress):
        lists = batch.column(0)
        _refuse_null(path, row, name, lists)
        flat = lists.flatten()
        if flat.null_count:
            raise InputError(
                f"{path}: a request at or after row {row} of column {name!r} holds a null"
            )
        ids.append(_ids(path, arrow, name, flat))
        lengths = arrow.compute.list_value_length(lists)
        sizes.append(lengths.to_numpy(zero_copy_only=False))
    requests = sizes.done()
    offsets = np.zeros(requests.size + 1, np.int64)
    np.cumsum(requests, out=offsets[1:])
    return offsets, ids.done()


def _read_interactions(
    path: Path,
    arrow: Any,
    file: Any,
    names: list[str],
    columns: Mapping[str, str] | None,
    progress: Progress,
) -> tuple[NDArray[Any], NDArray[Any]]:
    found = find_columns(path, file.schema_arrow.names, names, columns)
    used = {role: name for role, name, at in zip(ROLES, names, found, strict=True) if at >= 0}
    rows, requests = Interactions(), Interner()
    for row, batch in _batches(file, list(dict.fromkeys(used.values())), progress):
        values = {role: batch.column(name) for role, name in used.items()}
        for role, name in used.items():
            _refuse_null(path, row, name, values[role])
        numbers = _numbers(path, arrow, used["request"], values["request"], requests)
        ids = _ids(path, arrow, used["id"], values["id"])
        whole, nanos = None, None
        if "time" in used:
            whole, nanos = _times(path, arrow, used["time"], values["time"])
        rows.add(numbers, ids, whole, nanos)
    return rows.grouped(requests.names)


def _numbers(
    path: Path, arrow: Any, column: str, values: Any, requests: Interner
) -> NDArray[np.int32]:
    """Return numbers of a batch's requests: integers by their 8 bytes, all else as text."""
    if arrow.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if arrow.types.is_integer(values.type) and values.type != arrow.uint64():
        keys = values.cast(arrow.int64()).to_numpy(zero_copy_only=False)
        ends = np.arange(0, 8 * keys.size + 1, 8, dtype=np.int64)
        return requests.numbers(np.ascontiguousarray(keys).view(np.uint8), ends)
    if not arrow.types.is_binary(values.type):
        try:
            values = values.cast(arrow.large_string())
        except arrow.ArrowException as error:
            raise InputError(
                f"{path}: column {column!r} holds {values.type}, which cannot name a request; "
                "store integers or text"
            ) from error
    values = values.cast(arrow.large_binary())
    _, ends_buffer, text_buffer = values.buffers()
    first = values.offset
    ends = np.frombuffer(ends_buffer, np.int64)[first : first + len(values) + 1]
    text = np.frombuffer(text_buffer or b"", np.uint8)
    return requests.numbers(text, ends)


def _times(
    path: Path, arrow: Any, column: str, values: Any
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return times as whole units and billionths; only their order matters."""
    types = arrow.types
    if types.is_date32(values.type) or types.is_time32(values.type):
        values = values.cast(arrow.int32())
    if types.is_floating(values.type):
        numbers = values.cast(arrow.float64()).to_numpy(zero_copy_only=False)
        if not (np.abs(numbers) < 2.0**62).all():
            raise InputError(f"{path}: column {column!r} holds a time that is not finite")
        whole = np.floor(numbers)
        return whole.astype(np.int64), ((numbers - whole) * 1e9).astype(np.int32)
    try:
        whole = values.cast(arrow.int64()).to_numpy(zero_copy_only=False)
    except arrow.ArrowException as error:
        whole = None
        cause: Exception | None = error
    else:
        cause = None
    if whole is None or types.is_string(values.type) or types.is_large_string(values.type):
        raise InputError(
            f"{path}: column {column!r} holds {values.type}; times are numbers or timestamps"
        ) from cause
    return whole, np.zeros(whole.size, np.int32)


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
