"""What callers give to a lookup, checked the same wherever rows are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandana_kv.errors import IdError, InputError

__all__ = ["checked_ids", "checked_out"]


def checked_ids(table: str, ids: ArrayLike | None) -> NDArray[np.integer[Any]]:
    """Return ids (n,), of one of few dtypes; whether the table has them is not checked.

    Raises
    ------
    IdError
        They are no integers.
    InputError
        There are none, or they are not one-dimensional.
    """
    if ids is None:
        raise InputError(f"table {table!r}: no ids given")
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError) as error:
        raise IdError(f"table {table!r}: ids are not an array of integers ({error})") from error
    if array.ndim != 1:
        raise InputError(f"table {table!r}: ids must be one-dimensional, not {array.shape}")
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise IdError(f"table {table!r}: ids must be integers, not {array.dtype}")
    if array.dtype not in (np.int64, np.int32, np.uint32):
        # Few dtypes reach the kernels, so that few are compiled.
        if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
            raise IdError(f"table {table!r}: id {array.max()} is out of range")
        array = array.astype(np.int64)
    return np.ascontiguousarray(array)


def checked_out(
    shape: tuple[int, int], dtype: np.dtype[Any], out: NDArray[Any] | None
) -> NDArray[Any]:
    """Return where to put rows: `out`, or new memory.

    Raises
    ------
    InputError
        `out` is not of that shape and dtype, or cannot be written to as it lies.
    """
    if out is None:
        return np.empty(shape, dtype)
    if (
        not isinstance(out, np.ndarray)
        or out.shape != shape
        or out.dtype != dtype
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        raise InputError(
            f"out must be a writeable C-contiguous array of shape {shape} and dtype {dtype}"
        )
    return out
