"""Rows as they are stored and as they are answered: of the table's dtype, or another float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bandana_kv.codecs.rows import NUMBERS
from bandana_kv.codecs.unfit import encoded
from bandana_kv.errors import InputError
from bandana_kv.serve.pooling import DOUBLES

if TYPE_CHECKING:
    from bandana_kv.codecs import Codec
    from bandana_kv.serve.reader import StoredTable

__all__ = ["PooledForm", "answer_into", "answers", "checked_kind", "pooled_form", "raw_of"]


class Table(Protocol):
    """What is asked here of :class:`bandana_kv.serve.table.ServedTable`."""

    stored: StoredTable
    dtype: np.dtype[Any]
    codec: Codec | None
    row_bytes: int


_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))


def answers(served: Table, kind: np.dtype[Any]) -> bool:
    """Return whether rows can be answered in a dtype."""
    if kind == served.dtype or (served.dtype.kind == "f" and kind in _FLOATS):
        return True
    exact = None if served.codec is None else served.codec.exact
    return exact is not None and kind == exact  # numpy takes None for float64


def checked_kind(served: Table, dtype: DTypeLike) -> np.dtype[Any]:
    """Return in which dtype rows are to be answered.

    Raises
    ------
    InputError
        It is neither the table's nor, of a table of floats, float32 or float16.
    """
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise InputError(f"table {served.stored.name!r}: {dtype!r} is no dtype") from error
    if answers(served, kind):
        return kind
    raise InputError(
        f"table {served.stored.name!r}: rows are {served.dtype}, and not answered as {kind}"
        + ("; float32 and float16 can be asked for" if served.dtype.kind == "f" else "")
    )


class PooledForm(NamedTuple):
    """How the rows of a table are pooled.

    Attributes
    ----------
    number : int
        Of the codec of its rows, or DOUBLES.
    wide : dtype
        In which they are added.
    swapped : int
        How many bytes a number takes whose bytes are not in this machine's order; else 0.
    """

    number: int
    wide: np.dtype[Any]
    swapped: int


def pooled_form(dtype: np.dtype[Any], codec: Codec | None) -> PooledForm | None:
    """Return how rows of a dtype are pooled; None: they cannot be."""
    if dtype.kind != "f" or dtype.itemsize > 8:
        return None
    swapped = 0 if dtype.isnative else dtype.itemsize
    if dtype.itemsize == 8:
        return PooledForm(DOUBLES, np.dtype(np.float64), swapped)
    name = dtype.newbyteorder("=").name if codec is None else codec.name
    return PooledForm(NUMBERS[name], np.dtype(np.float32), swapped)


def answer_into(served: Table, raw: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Put rows, stored as `raw` (n, row_bytes), into `out` (n, dim), whose dtype was checked."""
    if not len(raw):
        return
    codec = served.codec
    if codec is None:
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = raw.view(served.dtype)
    elif out.dtype == np.float32 and out.flags.carray:
        codec.decode(raw, out)
    elif out.dtype == codec.exact:
        out[...] = raw.view(codec.exact)
    else:
        wide = np.empty(out.shape, np.float32)
        codec.decode(raw, wide)
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = wide


def raw_of(
    served: Table, ids: Sequence[Any] | NDArray[Any], rows: NDArray[Any], what: str = "id"
) -> NDArray[np.uint8]:
    """Return `rows` (n, dim) of `ids`, of the table's dtype, as they are stored: (n, row_bytes).

    Raises
    ------
    InputError
        Names the id, or `what` else they are, of a row that the table's codec cannot hold.
    """
    if served.codec is None:
        return np.ascontiguousarray(rows).view(np.uint8).reshape(len(ids), served.row_bytes)
    return encoded(served.codec, f"table {served.stored.name!r}", ids, rows, what)
