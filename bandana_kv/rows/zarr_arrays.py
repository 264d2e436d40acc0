"""Rows of arrays in zarr directories, unpacked into a temporary file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.rows.member import choose
from bandana_kv.rows.sliced import SlicedRows
from bandana_kv.rows.table import RowSource
from bandana_kv.system.permission import check_permission

__all__ = ["open_zarr"]


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError(
            "zarr arrays need zarr: pip install 'bandana-kv[zarr]', or save the table as .npy"
        ) from error
    return zarr


def open_zarr(path: Path, member: str = "") -> RowSource:
    """Return the rows of an array in a zarr directory.

    Parameters
    ----------
    path
        Of a group, or of an array.
    member
        The array's path in the group; "": the only one with two dimensions.

    Raises
    ------
    InputError
        Missing or damaged; no such array; not two-dimensional, not numeric, or pickled.
    MissingExtraError
        zarr is not installed.
    """
    zarr = _zarr()
    if not path.is_dir():
        what = "is a file" if path.exists() else "No such file or directory"
        raise InputError(f"{path}: cannot be opened as a zarr directory ({what})")
    try:
        held = zarr.open(path, mode="r")
        if hasattr(held, "shape"):
            arrays = {"": held}
        else:
            arrays = {
                name: each for name, each in held.members(max_depth=None) if hasattr(each, "shape")
            }
        said = {name: json.dumps(a.metadata.to_dict(), default=str) for name, a in arrays.items()}
    except Exception as error:
        # zarr and the codecs that it asks raise what they please.
        check_permission(error, path)
        raise InputError(
            f"{path}: not a readable zarr directory ({type(error).__name__}: {error})"
        ) from error
    name = choose(path, "array", member, arrays, lambda each: tuple(arrays[each].shape))
    label = f"{path}:{name}" if name else str(path)
    if '"pickle"' in said[name]:
        raise InputError(f"{label}: holds pickled objects, which could run code; write numbers")
    return SlicedRows(label, arrays[name])
