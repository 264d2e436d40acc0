"""What an export writes around the rows: the files that it knows, by their suffix."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.progress import Progress
from bandana_kv.rows.safetensors import DTYPES, METADATA

__all__ = [
    "PARQUET",
    "SAFETENSORS",
    "SUFFIXES",
    "dtype_in",
    "safetensors_header",
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


def safetensors_header(table: str, rows: int, dim: int, dtype: np.dtype[Any]) -> bytes:
    """Return all that stands before the numbers of the one tensor, `table`."""
    (name,) = (name for name, each in DTYPES.items() if each == dtype)
    places = [0, rows * dim * dtype.itemsize]
    said = {table: {"dtype": name, "shape": [rows, dim], "data_offsets": places}}
    header = json.dumps(said, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that numbers lie at addresses that suit them
    return len(header).to_bytes(8, "little") + header


def write_parquet(
    file: int, rows_file: int, shape: tuple[int, int], dtype: np.dtype[Any], progress: Progress
) -> None:
    """Write rows that lie in `rows_file` in order as a Parquet file of `id` and `values`.

    Parameters
    ----------
    file, rows_file
        Open; both stay so.
    shape
        (rows, dim).
    dtype
        Of :func:`dtype_in`.
    progress
        Told of the rows.
    """
    arrow, (rows, dim) = _arrow(), shape
    number = arrow.from_numpy_dtype(dtype)
    schema = arrow.schema(
        [
            arrow.field("id", arrow.int64(), nullable=False),
            arrow.field("values", arrow.list_(number, dim), nullable=False),
        ]
    )
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
            numbers = np.frombuffer(source.read(ids.size * row_bytes), dtype)
            lists = arrow.FixedSizeListArray.from_arrays(arrow.array(numbers), dim)
            writer.write_batch(arrow.record_batch([arrow.array(ids), lists], schema=schema))
            progress.advance(ids.size)
    progress.finish()
