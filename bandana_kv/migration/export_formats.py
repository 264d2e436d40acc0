"""What an export writes around the rows: the files that it knows, by their suffix."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.migration.export_keys import TableKeys, raw_parts
from bandana_kv.progress import Progress
from bandana_kv.rows.safetensors import DTYPES, METADATA, OFFSETS

__all__ = [
    "PARQUET",
    "SAFETENSORS",
    "SUFFIXES",
    "dtype_in",
    "write_around",
    "write_parquet",
]

SAFETENSORS, PARQUET = ".safetensors", ".parquet"
SUFFIXES = (".npy", SAFETENSORS, PARQUET)
"""What the names of files that are written end in."""

_GROUP_BYTES = 32 << 20


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files need pyarrow: pip install 'bandana-kv[parquet]', "
            "or name the file .npy or .safetensors"
        ) from error
    return pyarrow


def dtype_in(target: Path, table: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return what numbers of `dtype` are in a file of that name: the same, maybe turned about.

    Raises
    ------
    InputError
        Such a file cannot hold them, or a table of that name.
    MissingExtraError
        What writes it is not installed.
    """
    suffix = target.suffix.lower()
    try:
        if suffix == SAFETENSORS:
            turned = dtype.newbyteorder("<")
            if table == METADATA:
                raise InputError(f"{target}: {SAFETENSORS} has no room for a tensor named {table}")
            if turned not in DTYPES.values():
                raise TypeError(f"safetensors has none of {dtype}")
            return turned
        if suffix == PARQUET:
            turned = dtype.newbyteorder("=")
            arrow = _arrow()
            try:
                arrow.from_numpy_dtype(turned)
            except arrow.ArrowException as error:
                raise TypeError(str(error)) from error
            return turned
        if dtype.kind == "V":
            raise TypeError("numpy has no such numbers of its own")
        return dtype
    except TypeError as error:
        others = ", ".join(each for each in SUFFIXES if each != suffix)
        raise InputError(f"{target}: cannot hold {dtype} ({error}); name it {others}") from error


def write_around(
    file: int, table: str, shape: tuple[int, int], dtype: np.dtype[Any], keys: TableKeys | None
) -> int:
    """Write all of a safetensors file but the rows of its tensor `table`; return where they begin.

    Keys are a tensor ``TABLE.keys``: numbers, or the bytes of text behind one another, with
    ``TABLE.keys.offsets``, where each begins, and their kind in the metadata.
    """
    named = f"{table}.keys"
    before: dict[str, NDArray[Any]] = {}
    behind_bytes = 0
    if keys is not None and keys.numbers is not None:
        before[named] = keys.numbers
    elif keys is not None:
        before[named + OFFSETS] = keys.offsets
        behind_bytes = int(keys.offsets[-1])
    tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        name: (array.dtype, array.shape) for name, array in before.items()
    }
    # Numbers of 8 bytes first, single bytes last: all lie at addresses that suit them.
    tensors[table] = dtype, shape
    if keys is not None and keys.texts is not None:
        tensors[named] = np.dtype(np.uint8), (behind_bytes,)
    header = _header(tensors, {} if keys is None else {named: keys.kind})
    os.pwrite(file, header, 0)
    at = len(header)
    for array in before.values():
        at += _pwrite(file, array.data.cast("B"), at)
    behind = at + shape[0] * shape[1] * dtype.itemsize
    for part in raw_parts(keys) if behind_bytes and keys is not None else ():
        behind += _pwrite(file, memoryview(part), behind)
    return at


def _header(
    tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: dict[str, str]
) -> bytes:
    names = {dtype: name for name, dtype in DTYPES.items()}
    said: dict[str, object] = {METADATA: metadata} if metadata else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        places = [at, at + math.prod(shape) * dtype.itemsize]
        said[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": places}
        at = places[1]
    header = json.dumps(said, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _pwrite(file: int, data: memoryview, at: int) -> int:
    """Write all of `data` at a byte of a file; return how long it is."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], at + done)
    return done


def write_parquet(
    file: int,
    rows_file: int,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    keys: TableKeys | None,
    progress: Progress,
) -> None:
    """Write rows that lie in `rows_file` in order as a Parquet file of `id`, `key` and `values`.

    Parameters
    ----------
    file, rows_file
        Open; both stay so.
    shape
        (rows, dim).
    dtype
        Of :func:`dtype_in`.
    keys
        None: there is no column `key`.
    progress
        Told of the rows.
    """
    arrow, (rows, dim) = _arrow(), shape
    number = arrow.from_numpy_dtype(dtype)
    kinds = {"id": arrow.int64(), "values": arrow.list_(number, dim)}
    if keys is not None:
        texts = {"str": arrow.large_string(), "bytes": arrow.large_binary()}
        kind = texts.get(keys.kind) or getattr(arrow, keys.kind)()
        kinds = {"id": kinds["id"], "key": kind, "values": kinds["values"]}
    schema = arrow.schema([arrow.field(*each, nullable=False) for each in kinds.items()])
    row_bytes = dim * dtype.itemsize
    step = max(1, _GROUP_BYTES // row_bytes)
    how = {"use_dictionary": False, "write_page_checksum": True}
    progress.start("write Parquet", rows, "rows")
    with (
        open(file, "wb", closefd=False) as sink,
        open(rows_file, "rb", closefd=False) as source,
        arrow.parquet.ParquetWriter(sink, schema, **how) as writer,
    ):
        source.seek(0, os.SEEK_SET)
        for first in range(0, rows, step):
            ids = np.arange(first, min(first + step, rows))
            columns = [arrow.array(ids)]
            if keys is not None:
                columns.append(_key_column(arrow, keys, first, first + ids.size, kinds["key"]))
            numbers = np.frombuffer(source.read(ids.size * row_bytes), dtype)
            lists = arrow.FixedSizeListArray.from_arrays(arrow.array(numbers), dim)
            writer.write_batch(arrow.record_batch([*columns, lists], schema=schema))
            progress.advance(ids.size)
    progress.finish()


def _key_column(arrow: Any, keys: TableKeys, first: int, end: int, kind: Any) -> Any:
    if keys.numbers is not None:
        return arrow.array(keys.numbers[first:end])
    assert keys.texts is not None
    lengths = keys.texts.lengths[first:end]
    places = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    held = [None, arrow.py_buffer(places), arrow.py_buffer(keys.texts.raw(first, end))]
    return arrow.Array.from_buffers(kind, end - first, held)
