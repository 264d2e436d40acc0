"""Where a load takes its rows from: arrays, files of many kinds, and whatever can be sliced."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.views import refuse_masked
from bandana_kv.rows.arrays import ArrayRows
from bandana_kv.rows.checkpoint import open_checkpoint
from bandana_kv.rows.columns import ColumnRows
from bandana_kv.rows.mapped import MappedRows, place_of
from bandana_kv.rows.member import split
from bandana_kv.rows.npy import NpyRows
from bandana_kv.rows.npz import open_npz
from bandana_kv.rows.raw import RawRows, is_raw
from bandana_kv.rows.safetensors import SafetensorsRows
from bandana_kv.rows.shards import SUFFIX as INDEX_SUFFIX
from bandana_kv.rows.shards import open_sharded
from bandana_kv.rows.sliced import Sliced, SlicedRows
from bandana_kv.rows.table import RowSource
from bandana_kv.rows.zarr_arrays import open_zarr

__all__ = ["FORMS", "ArrayRows", "NpyRows", "RowSource", "open_rows"]

FORMS = (
    ".npy, .npz:ARRAY, .safetensors:TENSOR, .pt or .pth:TENSOR, .index.json:TENSOR of many files, "
    ".parquet or .arrow:COLUMN[:KEYS], .zarr:ARRAY, or any file of bare numbers as "
    "FILE:DTYPE:ROWSxDIM"
)
"""What can be named as the rows of a table, in a sentence."""


def _open_npy(path: Path, member: str) -> RowSource:
    if member:
        raise InputError(f"{path}: a .npy file is one array; leave {':' + member!r} out")
    return NpyRows(path)


_OPENERS: dict[str, Callable[[Path, str], RowSource]] = {
    ".npy": _open_npy,
    ".npz": open_npz,
    ".safetensors": SafetensorsRows,
    ".pt": open_checkpoint,
    ".pth": open_checkpoint,
    ".bin": open_checkpoint,
    ".parquet": ColumnRows,
    ".arrow": ColumnRows,
    ".feather": ColumnRows,
    ".zarr": open_zarr,
}
# Anybody's name for anything.
_ANY_KIND = ".bin"


def open_rows(
    name: str, table: str | os.PathLike[str] | NDArray[Any] | Sliced | RowSource
) -> RowSource:
    """Return the rows of a table.

    Parameters
    ----------
    name
        The table's, for messages.
    table
        An array (rows, dim); one that is mapped from a file, or any view of it, is read from the
        file. The path of a file, and behind a colon what in it is meant; the only array or column
        with two dimensions is found by itself. Or an object with a shape and slicing, as datasets
        of h5py are. Or rows that are open already, which are returned as they are.

    Raises
    ------
    InputError
        Names the table or the file and what is wrong with it.
    MissingExtraError
        What reads that kind of file is not installed.
    """
    if isinstance(table, RowSource):
        return table
    refuse_masked(f"table {name!r}", table)
    if isinstance(table, np.ndarray):
        place = place_of(table)
        if place is None:
            return ArrayRows(f"table {name!r}", table)
        return MappedRows(f"table {name!r}", table, place)
    if isinstance(table, (str, os.PathLike)):
        return _open_file(name, *split(os.fspath(table)))
    if isinstance(table, Sliced):
        return SlicedRows(f"table {name!r}", table)
    raise InputError(
        f"table {name!r}: {type(table).__name__} is neither an array nor the path of a file, nor "
        "has it a shape and rows to slice"
    )


def _open_file(name: str, path: Path, member: str) -> RowSource:
    suffix = path.suffix.lower()
    if path.name.endswith(INDEX_SUFFIX):
        return open_sharded(path, member)
    if is_raw(member) and (suffix == _ANY_KIND or suffix not in _OPENERS):
        return RawRows(path, member)
    if suffix not in _OPENERS:
        raise InputError(f"table {name!r}: {path} is of no kind that is read; name {FORMS}")
    return _OPENERS[suffix](path, member)
