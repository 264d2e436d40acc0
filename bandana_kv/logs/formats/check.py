"""What every access log must be, whatever file it came from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.compile import kernel
from bandana_kv.kernels.views import refuse_masked

__all__ = ["MOST_ID", "as_ids", "as_offsets", "check_log", "shown"]

MOST_ID = 2**31 - 1  # positions and slots are int32

_KEPT = (np.dtype(np.int32), np.dtype(np.uint32), np.dtype(np.int64))
_MOST_SHOWN_BYTES = 40


def shown(text: NDArray[np.uint8]) -> str:
    """Return bytes of a file as a message can quote them."""
    cut = text[:_MOST_SHOWN_BYTES].tobytes().decode(errors="replace")
    return repr(cut + ("..." if text.size > _MOST_SHOWN_BYTES else ""))


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view as a plain array, so that kernels see one type of array."""
    view = np.ascontiguousarray(array).view(np.ndarray)[:]
    view.flags.writeable = False
    return view


def _check_integers(name: str, array: NDArray[Any], source: str) -> None:
    if array.ndim != 1:
        raise InputError(f"{source}: {name} must have one dimension, it has {array.ndim}")
    if array.dtype.kind not in "iu":
        raise InputError(f"{source}: {name} must be integers, not {array.dtype}")


def as_offsets(values: Any, source: str) -> NDArray[np.int64]:
    """Return offsets as a read-only int64 array, without copying one that is.

    Raises
    ------
    InputError
        Not a one-dimensional array of integers.
    """
    refuse_masked(f"{source}: offsets", values)
    array = np.asarray(values)
    _check_integers("offsets", array, source)
    return _plain(array.astype(np.int64, copy=False))


def as_ids(values: Any, source: str) -> NDArray[Any]:
    """Return ids as a read-only int32, uint32 or int64 array; those are not copied.

    Raises
    ------
    InputError
        Not a one-dimensional array of integers, or one of them needs 64 bits unsigned.
    """
    refuse_masked(f"{source}: ids", values)
    array = np.asarray(values)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int32)  # an empty list comes as float64
    _check_integers("ids", array, source)
    if array.dtype in _KEPT:
        return _plain(array)
    if array.dtype.itemsize < 4:
        return _plain(array.astype(np.int32))
    if array.dtype.kind == "u" and array.size and int(array.max()) > MOST_ID:
        raise InputError(f"{source}: id {int(array.max())} is too large; {MOST_ID} is the most")
    # foreign byte order, or uint64
    wide = array.dtype.newbyteorder("=") if array.dtype.itemsize == 4 else np.dtype(np.int64)
    return _plain(array.astype(wide))


@kernel
def _first_decrease(offsets: np.ndarray) -> int:
    for request in range(offsets.size - 1):
        if offsets[request + 1] < offsets[request]:
            return request
    return -1


@kernel
def _extremes(ids: np.ndarray) -> tuple[int, int]:
    least = most = int(ids[0])
    for i in range(ids.size):
        value = int(ids[i])
        least = min(least, value)
        most = max(most, value)
    return least, most


@kernel
def _first_outside(ids: np.ndarray, most: int) -> int:
    for i in range(ids.size):
        if ids[i] < 0 or ids[i] > most:
            return i
    return -1


def check_log(offsets: NDArray[np.int64], ids: NDArray[Any], rows: int | None, source: str) -> int:
    """Check a log's arrays against each other and the table; return the largest id.

    Parameters
    ----------
    offsets
        int64 (requests + 1,).
    ids
        Integers (lookups,).
    rows
        Of the table; None if it is not known.
    source
        What messages call the log.

    Returns
    -------
    int
        The largest id, -1 if there is none.

    Raises
    ------
    InputError
        Names the first request that is wrong.
    """
    if offsets.size == 0 or offsets[0] != 0:
        first = "nothing" if offsets.size == 0 else f"{offsets[0]}"
        raise InputError(f"{source}: offsets must begin with 0, they begin with {first}")
    request = _first_decrease(offsets)
    if request >= 0:
        raise InputError(
            f"{source}: request {request}: offsets decrease, "
            f"from {offsets[request]} to {offsets[request + 1]}"
        )
    if offsets[-1] != ids.size:
        raise InputError(
            f"{source}: the last offset is {offsets[-1]}, but there are {ids.size} ids; "
            "offsets has one entry per request and one for the end"
        )
    if ids.size == 0:
        return -1
    least, most = _extremes(ids)
    limit = MOST_ID if rows is None else rows - 1
    if least < 0 or most > limit:
        _refuse(offsets, ids, limit, rows, source)
    return most


def _refuse(
    offsets: NDArray[np.int64], ids: NDArray[Any], limit: int, rows: int | None, source: str
) -> None:
    at = _first_outside(ids, limit)
    request = int(np.searchsorted(offsets, at, side="right")) - 1
    wrong = f"{source}: request {request} looks up id {int(ids[at])}"
    if ids[at] < 0:
        raise InputError(f"{wrong}; ids are row numbers and start at 0")
    if rows is None or ids[at] > MOST_ID:
        raise InputError(f"{wrong}; {MOST_ID} is the largest id there can be")
    raise InputError(
        f"{wrong}, but the table has {rows} rows: ids end at {rows - 1}. "
        "Give the table that this log was recorded on, or leave those requests out"
    )
