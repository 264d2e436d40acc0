"""From what callers ask by, ids or keys, to ids; and what becomes of those that are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandana_kv.errors import IdError, InputError
from bandana_kv.kernels.views import refuse_masked
from bandana_kv.serve.arguments import ids_as_given, shaped_ids

if TYPE_CHECKING:
    from bandana_kv.serve.table import ServedTable

__all__ = [
    "addressed",
    "by_number",
    "distinct_keys",
    "filler_of",
    "ids_to_prefetch",
    "keys_as_array",
    "looked_for",
    "plain_ids",
    "texts_of",
]

Ids = NDArray[np.integer[Any]]


def addressed(served: ServedTable, asked: ArrayLike | None) -> tuple[Ids, tuple[int, ...]]:
    """Return the ids of ids or keys of any shape, one after the other, and their shape.

    Raises
    ------
    IdError
        The table has not got a key, which is named. Whether it has the ids is not checked.
    InputError
        There are none, or keys of another kind than the table's.
    """
    if served.keys is None:
        return ids_as_given(served.stored.name, asked)
    ids, shape = _by_key(served, asked)
    if ids.size and ids.min() < 0:
        at = int((ids < 0).argmax())
        key = np.asarray(asked).reshape(-1)[at]
        raise IdError(
            f"table {served.stored.name!r} has no key {key!r} (number {at} of those asked for); "
            "missing= says what to answer instead"
        )
    return ids, shape


def by_number(served: ServedTable, asked: ArrayLike | None) -> tuple[Ids, tuple[int, ...]]:
    """Do as :func:`addressed` for ids, also where the table is asked by keys."""
    ids, shape = ids_as_given(served.stored.name, asked)
    if served.keys is not None and (most := int(ids.max(initial=-1))) >= served.keys.next_id:
        raise IdError(
            f"table {served.stored.name!r}: id {most} is out of range; it has rows 0 to "
            f"{served.keys.next_id - 1}"
        )
    return ids, shape


def distinct_keys(
    served: ServedTable, asked: ArrayLike | None
) -> tuple[list[Any], NDArray[np.uint64]]:
    """Return keys (n,) that are to change, and their words.

    Raises
    ------
    InputError
        The table has no keys, or one is named twice.
    IdError
        They are of another kind.
    """
    name, keys = served.stored.name, served.keys
    if keys is None:
        raise InputError(
            f"table {name!r} has no keys: load it with Rows(values, keys=...), or update() its "
            "rows by id"
        )
    if asked is None:
        raise InputError(f"table {name!r}: no keys given")
    refuse_masked(f"table {name!r}: keys", asked, IdError)
    given = keys_as_array(asked)
    words = keys.words_of(name, given)
    _, first = np.unique(words, axis=0, return_index=True)
    if len(first) < len(words):
        again = np.setdiff1d(np.arange(len(words)), first)[0]
        raise InputError(f"table {name!r}: key {given[again]!r} is to be changed twice at once")
    return given.tolist(), words


def plain_ids(
    served: ServedTable, asked: ArrayLike | None
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Do as :func:`addressed`, in int64."""
    if served.keys is None:
        return shaped_ids(served.stored.name, asked)
    ids, shape = addressed(served, asked)
    return ids.astype(np.int64, copy=False), shape


def looked_for(
    served: ServedTable, asked: ArrayLike | None
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Do as :func:`addressed`, with -1 for what the table has not."""
    if served.keys is not None:
        return _by_key(served, asked)
    ids, shape = shaped_ids(served.stored.name, asked)
    return np.where((ids >= 0) & (ids < served.stored.rows), ids, -1), shape


def ids_to_prefetch(
    served: ServedTable, asked: ArrayLike | None, missing: str
) -> NDArray[np.int64]:
    """Return ids (n,) to be read ahead; with `missing` ``"skip"`` those that are there alone."""
    if missing == "error":
        return plain_ids(served, asked)[0]
    if missing != "skip":
        raise InputError(f"missing is 'error' or 'skip', not {missing!r}")
    ids = looked_for(served, asked)[0]
    return ids[ids >= 0]


def _by_key(
    served: ServedTable, asked: ArrayLike | None
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    name, keys = served.stored.name, served.keys
    assert keys is not None
    if type(asked) is np.ndarray and asked.ndim == 1:  # what nearly all callers give
        return keys.ids_of(keys.words_of(name, asked)), asked.shape
    if asked is None:
        raise InputError(f"table {name!r}: no keys given")
    refuse_masked(f"table {name!r}: keys", asked, IdError)
    given = asked if isinstance(asked, np.ndarray) else keys_as_array(asked)
    return keys.ids_of(keys.words_of(name, given.reshape(-1))), given.shape


def keys_as_array(asked: ArrayLike) -> NDArray[Any]:
    """Return keys as an array; of lists as objects, where numpy would make something else of them.

    Of text it loses zeros at the end, and of integers that only uint64 can hold it makes floats.
    """
    given = np.asarray(asked)
    listed = not isinstance(asked, np.ndarray) and given.dtype.kind == "f"
    return np.asarray(asked, object) if listed or given.dtype.kind in "SU" else given


def texts_of(keys: list[Any], words: NDArray[np.uint64]) -> list[bytes]:
    """Return keys of text or bytes, of which there are `words`, as bytes; of integers none."""
    if words.ndim == 1:
        return []
    return [key.encode() if isinstance(key, str) else key for key in keys]


def filler_of(served: ServedTable, missing: object) -> NDArray[Any] | None:
    """Return the row (dim,) for what is missing; None: zeros, or a mask that tells.

    Raises
    ------
    InputError
        It is neither ``"error"``, ``"zeros"`` nor ``"mask"``, nor a row.
    """
    if isinstance(missing, str):
        if missing in ("error", "zeros", "mask"):
            return None
        raise InputError(f"missing is 'error', 'zeros', 'mask' or a row, not {missing!r}")
    refuse_masked("missing", missing)
    row = np.asarray(missing)
    if row.shape != (served.dim,) or row.dtype.kind not in "biuf":
        raise InputError(
            f"table {served.stored.name!r}: missing must be a row of {served.dim} numbers, not "
            f"{row.dtype} of shape {row.shape}"
        )
    return row
