"""What callers give to a lookup, checked the same wherever rows are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandana_kv.errors import IdError, InputError
from bandana_kv.kernels.views import refuse_masked

__all__ = [
    "check_update_ids",
    "checked_ids",
    "checked_numbers",
    "checked_out",
    "checked_threads",
    "ids_as_given",
    "shaped_ids",
]

_COMMON, _HALF = np.dtype(np.int64), np.dtype(np.int32)
_CLOSE, _HALF_CLOSE = (8,), (4,)
# A number of one kind is also one of those that follow.
_KINDS = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


def checked_ids(table: str, ids: ArrayLike | None) -> NDArray[np.int64]:
    """Return ids (n,), int64; whether the table has them is not checked.

    Raises
    ------
    IdError
        They are no integers, or masked.
    InputError
        There are none, or they are not one-dimensional.
    """
    flat, shape = shaped_ids(table, ids)
    if len(shape) != 1:
        raise InputError(f"table {table!r}: ids must be one-dimensional, not {shape}")
    return flat


def ids_as_given(
    table: str, ids: ArrayLike | None
) -> tuple[NDArray[np.integer[Any]], tuple[int, ...]]:
    """Return what :func:`shaped_ids` does, but int32 (n,) as they are."""
    if type(ids) is np.ndarray and ids.size:  # what nearly all callers give, first
        kind, strides = ids.dtype, ids.strides
        if (kind is _COMMON and strides == _CLOSE) or (kind is _HALF and strides == _HALF_CLOSE):
            return ids, ids.shape
    return shaped_ids(table, ids)


def shaped_ids(table: str, ids: ArrayLike | None) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Return ids of any shape one after the other, int64 (n,), and their shape.

    Raises
    ------
    IdError, InputError
        As :func:`checked_ids`.
    """
    if type(ids) is np.ndarray and ids.dtype is _COMMON and ids.strides == _CLOSE and ids.size:
        return ids, ids.shape  # what nearly all callers give
    if ids is None:
        raise InputError(f"table {table!r}: no ids given")
    refuse_masked(f"table {table!r}: ids", ids, IdError)
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError) as error:
        raise IdError(f"table {table!r}: ids are not an array of integers ({error})") from error
    if array.size == 0:
        return np.zeros(0, np.int64), array.shape
    if array.dtype.kind not in "iu":
        raise IdError(f"table {table!r}: ids must be integers, not {array.dtype}")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise IdError(f"table {table!r}: id {array.max()} is out of range")
    # One dtype reaches the kernels, so that each is compiled once.
    return np.ascontiguousarray(array, np.int64).reshape(-1), array.shape


def checked_out(
    shape: tuple[int, ...], dtype: np.dtype[Any], out: NDArray[Any] | None
) -> NDArray[Any]:
    """Return where to put rows: `out`, or new memory.

    Raises
    ------
    InputError
        `out` is not of that shape and dtype, or cannot be written to as it lies.
    """
    if out is None:
        return np.empty(shape, dtype)
    # What nearly all callers give.
    if type(out) is np.ndarray and out.shape == shape and out.dtype is dtype and out.flags.carray:
        return out
    refuse_masked("out", out)
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


def checked_threads(threads: int) -> int:
    """Return how many threads a request may take.

    Raises
    ------
    InputError
        It is not a number from 1 up.
    """
    if not isinstance(threads, (int, np.integer)) or isinstance(threads, bool) or threads < 1:
        raise InputError(f"threads {threads!r} is not a whole number from 1 up")
    return int(threads)


def check_update_ids(table: str, rows: int, ids: NDArray[np.integer[Any]]) -> None:
    """See that ids (n,) to be updated are in range and distinct.

    Raises
    ------
    IdError, InputError
        Names the first that is not.
    """
    wrong = ids[(ids < 0) | (ids >= rows)]
    if wrong.size:
        raise IdError(
            f"table {table!r}: id {int(wrong[0])} is out of range; it has rows 0 to {rows - 1}"
        )
    ordered = np.sort(ids)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        raise InputError(f"table {table!r}: id {int(twice[0])} is to be updated twice at once")


def checked_numbers(
    table: str,
    ids: Sequence[Any] | NDArray[np.int64],
    dim: int,
    dtype: np.dtype[Any],
    rows: ArrayLike,
    what: str = "id",
) -> NDArray[Any]:
    """Return new rows of `ids` (n,) in the table's dtype: (n, dim), C-contiguous.

    `what` they are, errors say: ids, or keys.

    Raises
    ------
    InputError
        They have another shape, or are of a kind that the dtype cannot hold (a fraction in
        integers, say), or names the first number that it cannot hold: an integer out of range, or
        a finite number that would become infinite. Floats are rounded.
    """
    refuse_masked(f"table {table!r}: rows", rows)
    try:
        given = _as_array(rows, dtype)
    except (ValueError, OverflowError) as error:
        raise InputError(f"table {table!r}: rows are not an array of numbers ({error})") from error
    shape = (len(ids), dim)
    if given.shape != shape or _KINDS.get(given.dtype.kind, 9) > _KINDS[dtype.kind]:
        raise InputError(
            f"table {table!r}: rows must be {shape} of {dtype}, not {given.shape} of {given.dtype}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.ascontiguousarray(given, dtype)
    unfit = _unfit(given, cast)
    if unfit is not None and unfit.any():
        row, column = np.argwhere(unfit)[0].tolist()
        raise InputError(
            f"table {table!r}: {given[row, column]} does not fit {dtype} (row {row}, of {what} "
            f"{ids[row]}, column {column}); nothing was updated"
        )
    return cast


def _as_array(rows: ArrayLike, dtype: np.dtype[Any]) -> NDArray[Any]:
    given = np.asarray(rows)
    if dtype.kind not in "ui" or given.dtype.kind != "f" or isinstance(rows, np.ndarray):
        return given
    # Of integers some of which only uint64 can hold numpy makes floats.
    exact = np.asarray(rows, object)
    if all(isinstance(each, (int, np.integer)) for each in exact.flat):
        return exact.astype(np.uint64)
    return given


def _unfit(given: NDArray[Any], cast: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return which numbers a cast has changed beyond rounding; None: it cannot have."""
    if np.can_cast(given.dtype, cast.dtype, "safe"):
        return None
    if cast.dtype.kind in "ui":
        held, range_ = np.iinfo(cast.dtype), np.iinfo(given.dtype)
        low, high = given < max(held.min, range_.min), given > min(held.max, range_.max)
        return np.asarray(low | high)
    return np.asarray(np.isfinite(given) & ~np.isfinite(cast))
