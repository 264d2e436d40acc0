"""Columns of Parquet as ids, names of requests and times, each with which rows are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.logs.formats.check import MOST_ID
from bandana_kv.logs.formats.fields import ISO, NUMBER

__all__ = ["Times", "Wrong", "ids_of", "names_of", "nulls", "times_of"]

_WHOLE_FLOATS = 2.0**53  # up to which each whole number is a float of its own
_NANOS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


class Wrong(NamedTuple):
    """Which values are wrong, bool (n,), and what the first of them is."""

    mask: NDArray[np.bool_]
    what: str


class Times(NamedTuple):
    """Times as whole units and billionths, NUMBER or ISO: the unit is the second in ISO."""

    kind: int
    whole: NDArray[np.int64]
    nanos: NDArray[np.int32]


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.argmax(mask))


def _numpy(values: Any) -> NDArray[Any]:
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array


def nulls(column: str, values: Any) -> Wrong:
    """Return which values are null."""
    mask = _numpy(values.is_null()).astype(bool)
    return Wrong(mask, f"column {column!r} is null; leave such rows out")


def ids_of(path: Path, arrow: Any, column: str, values: Any) -> tuple[NDArray[np.int32], Wrong]:
    """Return a column of ids, and which are none; nulls are told of by :func:`nulls`.

    Raises
    ------
    InputError
        It holds no numbers.
    """
    types, kind = arrow.types, values.type
    null = _numpy(values.is_null()).astype(bool)
    if types.is_integer(kind):
        numbers = _numpy(values.fill_null(0))
        wrong = (numbers < 0) | (numbers > MOST_ID)
    elif types.is_floating(kind):
        numbers = _numpy(values.cast(arrow.float64()).fill_null(0.0))
        wrong = ~((numbers == np.floor(numbers)) & (numbers >= 0) & (numbers <= MOST_ID))
    elif types.is_decimal(kind):
        whole = arrow.compute.trunc(values)
        numbers = _numpy(whole.cast(arrow.float64()).fill_null(0.0))
        same = _numpy(arrow.compute.equal(whole, values).fill_null(True)).astype(bool)
        wrong = ~(same & (numbers >= 0) & (numbers <= MOST_ID))
    elif types.is_null(kind):
        numbers, wrong = np.zeros(len(values)), np.zeros(len(values), bool)
    else:
        raise InputError(
            f"{path}: column {column!r} holds {kind}; ids are whole numbers: store integers"
        )
    wrong &= ~null
    what = ""
    if wrong.any():
        name = "id" if types.is_integer(kind) else str(kind)
        value = values[_first(wrong)].as_py()
        what = f"column {column!r} holds {name} {value}; ids are whole numbers from 0 to {MOST_ID}"
    return np.where(wrong, 0, numbers).astype(np.int32), Wrong(wrong, what)


def names_of(
    path: Path, arrow: Any, column: str, values: Any, missing: Sequence[str]
) -> tuple[Any, Wrong]:
    """Return names of requests as binary, and which mean that there is none.

    Whole numbers are named as in text, whatever their type, so that all files name them alike.

    Raises
    ------
    InputError
        It holds what cannot name a request.
    """
    types = arrow.types
    if isinstance(values, arrow.ExtensionArray):
        values = values.storage
    none = np.zeros(len(values), bool)
    if types.is_floating(values.type):
        numbers = _numpy(values.cast(arrow.float64()))
        none = np.isnan(numbers)
        whole = (np.floor(numbers) == numbers) & (np.abs(numbers) < _WHOLE_FLOATS)
        integers = arrow.array(np.where(whole, numbers, 0).astype(np.int64))
        values = arrow.compute.if_else(
            arrow.array(whole), integers.cast(arrow.string()), values.cast(arrow.string())
        )
    if not (
        types.is_binary(values.type)
        or types.is_large_binary(values.type)
        or types.is_fixed_size_binary(values.type)
    ):
        try:
            values = values.cast(arrow.large_string())
        except arrow.ArrowException as error:
            raise InputError(
                f"{path}: column {column!r} holds {values.type}, which cannot name a request; "
                "store integers or text"
            ) from error
        if missing:
            lower = arrow.compute.utf8_lower(arrow.compute.utf8_trim(values, " "))
            known = arrow.array(list(missing), arrow.large_string())
            none |= _numpy(arrow.compute.is_in(lower, value_set=known)).astype(bool)
    what = ""
    if none.any():
        name = values[_first(none)].as_py()
        what = (
            f"column {column!r} holds {name!r}, which means that there is none; "
            "every row needs its request"
        )
    return values.cast(arrow.large_binary()), Wrong(none, what)


def times_of(path: Path, arrow: Any, column: str, values: Any) -> tuple[Times, Wrong]:
    """Return a column of times, and which of them are none; nulls are told of by :func:`nulls`.

    Raises
    ------
    InputError
        It holds neither numbers nor times.
    """
    types, kind = arrow.types, values.type
    size = len(values)
    wrong = np.zeros(size, bool)
    nanos = np.zeros(size, np.int32)
    if types.is_floating(kind) or types.is_decimal(kind):
        floor = arrow.compute.floor(values)
        rest = arrow.compute.subtract(values, floor).cast(arrow.float64())
        numbers = _numpy(floor.cast(arrow.float64()).fill_null(0.0))
        wrong = ~(np.abs(numbers) < 2.0**62)
        whole = np.where(wrong, 0, numbers).astype(np.int64)
        parts = np.where(wrong, 0, _numpy(rest.fill_null(0.0)))
        nanos = np.round(parts * 1e9).astype(np.int32)
        what = f"column {column!r} holds a time that is not finite"
        return Times(NUMBER, whole, nanos), Wrong(wrong, what)
    units = getattr(kind, "unit", None)
    if types.is_date(kind):
        whole = _numpy(values.cast(arrow.date32()).cast(arrow.int32()).fill_null(0)) * 86_400
        return Times(ISO, whole.astype(np.int64), nanos), Wrong(wrong, "")
    if units in _NANOS:
        wide = values.cast(arrow.int32()) if types.is_time32(kind) else values
        counted = _numpy(wide.cast(arrow.int64()).fill_null(0))
        each = _NANOS[units]
        whole = counted // each
        nanos = ((counted - whole * each) * (1_000_000_000 // each)).astype(np.int32)
        return Times(ISO if types.is_timestamp(kind) else NUMBER, whole, nanos), Wrong(wrong, "")
    if types.is_integer(kind) or types.is_null(kind):
        numbers = _numpy(values.fill_null(0)) if types.is_integer(kind) else np.zeros(size, int)
        wrong = numbers > 2**62
        what = f"column {column!r} holds a time that is too large"
        return Times(NUMBER, np.where(wrong, 0, numbers).astype(np.int64), nanos), Wrong(
            wrong, what
        )
    raise InputError(f"{path}: column {column!r} holds {kind}; times are numbers or timestamps")
