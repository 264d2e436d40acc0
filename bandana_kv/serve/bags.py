"""What users ask of bags, checked and handed to the tables: one row a bag, of one table or several.

What a bag is, and what its row, is that of PyTorch's ``embedding_bag``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandana_kv.errors import IdError, InputError
from bandana_kv.kernels.views import refuse_masked
from bandana_kv.serve.addressing import addressed, keys_as_array
from bandana_kv.serve.at_once import at_once, shared_out
from bandana_kv.serve.forms import answers
from bandana_kv.serve.pooling import (
    DOUBLES,
    EDGES,
    MODES,
    PRODUCTS,
    WEIGHTED,
    bag_words,
    lay_out_bags,
    pool_at,
)
from bandana_kv.serve.requests import Note, named

if TYPE_CHECKING:
    from bandana_kv.serve.failsafe import Deadline
    from bandana_kv.serve.reader import BlockReader
    from bandana_kv.serve.table import ServedTable
    from bandana_kv.serve.version import ServedVersion

__all__ = ["Bagged", "How", "Mode", "pooled_of", "pooled_of_tables"]

Mode = Literal["sum", "mean", "max"]

Bagged = tuple[ArrayLike, ArrayLike | None] | tuple[ArrayLike, ArrayLike | None, ArrayLike | None]
"""Of one of several tables: ids and offsets, or ids, offsets and weights."""

_WORD = np.dtype(np.int64)
_NO_OFFSETS = np.zeros(0, np.int64)
_NO_WEIGHTS = {kind: np.zeros(0, kind) for kind in map(np.dtype, (np.float32, np.float64))}


class How(NamedTuple):
    """How bags are pooled, as PyTorch has it."""

    mode: str
    include_last_offset: bool
    padding_idx: int | None


class _Bags(NamedTuple):
    """One table's part of a request.

    Attributes
    ----------
    ids : int64 or int32 (n,)
        Padding is left out.
    at : int
        Where the words are that :func:`lay_out_bags` wrote.
    pooled : ndarray (bags, dim)
        Where compiled code puts the rows.
    answer : ndarray (bags, dim)
        The same, or what they are rounded to.
    held : tuple
        The words, and what they have the address of.
    """

    ids: NDArray[np.integer[Any]]
    at: int
    pooled: NDArray[Any]
    answer: NDArray[Any]
    held: tuple[NDArray[Any], ...]

    def end(self) -> NDArray[Any]:
        """Return the answer, once all is pooled."""
        if not self.ids.size:
            self.pooled[...] = 0
        if self.answer is not self.pooled:
            with np.errstate(over="ignore"):
                self.answer[...] = self.pooled
        return self.answer


def _bags_of(
    served: ServedTable,
    ids: ArrayLike | None,
    offsets: ArrayLike | None,
    weights: ArrayLike | None,
    how: How,
    out: NDArray[Any] | None,
) -> _Bags:
    """Return what a table is asked for.

    Raises
    ------
    InputError, IdError
        An argument is wrong; says which.
    """
    name, form = served.stored.name, served.pooled
    mode = MODES.get(how.mode)
    if mode is None:
        raise InputError(f"table {name!r}: mode is sum, mean or max, not {how.mode!r}")
    if form is None:
        raise InputError(f"table {name!r}: rows of {served.dtype} cannot be pooled; floats can")
    padding = None if how.padding_idx is None else _padding(served, how.padding_idx)
    if padding is None:
        flat, shape = addressed(served, ids)
        kept = None
    else:
        flat, shape, kept = _without(served, ids, padding)
    count = flat.size if kept is None else kept.size
    edges, bags, each = _offsets(name, shape, offsets, how.include_last_offset)
    factors = _NO_WEIGHTS[form.wide]
    if weights is not None:
        factors = _weights(name, shape, weights, mode, form.wide)
        mode = PRODUCTS if padding is not None or form.number == DOUBLES else WEIGHTED
    answer = _answer(served, (bags, served.dim), out)
    straight = answer.dtype == form.wide and answer.flags.carray
    pooled = answer if straight else np.empty(answer.shape, form.wide)
    words = np.empty(bag_words(bags, count, served.dim, served.row_bytes), np.int64)
    if kept is not None and weights is not None:
        factors = factors[kept]
    at = lay_out_bags(
        words,
        edges,
        factors,
        pooled,
        count,
        each,
        mode,
        form.number,
        served.row_bytes,
        form.swapped,
        pool_at(),
    )
    if not at:
        raise InputError(
            f"table {name!r}: offsets must begin with 0, not fall, and not pass {count} ids"
        )
    if kept is not None:
        before = np.concatenate([[0], np.cumsum(kept)])
        words[EDGES : EDGES + bags + 1] = before[words[EDGES : EDGES + bags + 1]]
    return _Bags(flat, at, pooled, answer, (words, factors))


def _padding(served: ServedTable, padding: int) -> int:
    """Return the id, or key, that counts for nothing."""
    rows = served.stored.rows
    if served.keys is not None:
        return padding  # a negative one counts from nothing: it is a key
    if not -rows <= padding < rows:
        raise InputError(
            f"table {served.stored.name!r}: padding_idx {padding} is out of range; "
            f"it has rows 0 to {rows - 1}, and -1 to {-rows} count from their end"
        )
    return padding if padding >= 0 else padding + rows


def _without(
    served: ServedTable, asked: ArrayLike | None, padding: int
) -> tuple[NDArray[np.integer[Any]], tuple[int, ...], NDArray[np.bool_]]:
    """Return the ids that are no padding, the shape of all, and which those are."""
    name = served.stored.name
    if served.keys is None or asked is None:
        flat, shape = addressed(served, asked)
        kept = flat != padding
        return flat[kept], shape, kept
    refuse_masked(f"table {name!r}: keys", asked, IdError)
    given = keys_as_array(asked)
    keys = given.reshape(-1)
    kept = np.asarray(keys != padding, bool)
    return addressed(served, keys[kept])[0], given.shape, kept


def _offsets(
    name: str, shape: tuple[int, ...], offsets: ArrayLike | None, include_last: bool
) -> tuple[NDArray[np.int64], int, int]:
    """Return offsets, of how many bags, and of how many ids each is, if of as many all (else -1).

    What the offsets are is not checked.
    """
    if offsets is None and len(shape) == 2:
        return _NO_OFFSETS, shape[0], shape[1]
    if offsets is None or len(shape) != 1:
        raise InputError(
            f"table {name!r}: give ids (n,) with offsets, or ids (bags, n) without; "
            f"not {shape} {'with' if offsets is not None else 'without'} offsets"
        )
    refuse_masked(f"table {name!r}: offsets", offsets)
    given = np.asarray(offsets)
    if not given.size and given.ndim == 1:
        given = given.astype(np.int64)  # of an empty list numpy makes floats
    wrong = given.ndim != 1 or given.dtype.kind not in "iu"
    if wrong or (include_last and not given.size):
        raise InputError(f"table {name!r}: offsets must be integers (bags,)")
    return np.ascontiguousarray(given, _WORD), given.size - include_last, -1


def _weights(
    name: str, shape: tuple[int, ...], weights: ArrayLike, mode: int, kind: np.dtype[Any]
) -> NDArray[Any]:
    """Return the weight of each id (n,), in the dtype in which rows are added."""
    refuse_masked(f"table {name!r}: per_sample_weights", weights)
    given = np.asarray(weights)
    if given.shape != shape or (given.dtype.kind != "f" and given.size):
        raise InputError(f"table {name!r}: per_sample_weights must be floats of shape {shape}")
    if mode != MODES["sum"]:
        raise InputError(f"table {name!r}: per_sample_weights go with mode='sum' alone")
    return np.ascontiguousarray(given, kind).reshape(-1)


def _answer(served: ServedTable, shape: tuple[int, int], out: NDArray[Any] | None) -> NDArray[Any]:
    """Return where pooled rows go: `out`, or new memory."""
    if out is None:
        return np.empty(shape, served.dtype)
    refuse_masked("out", out)
    if (
        not isinstance(out, np.ndarray)
        or out.shape != shape
        or not answers(served, out.dtype)
        or not out.flags.writeable
    ):
        raise InputError(
            f"table {served.stored.name!r}: out must be a writeable array of shape {shape} and "
            f"dtype {served.dtype}"
        )
    return out


def pooled_of(
    serving: ServedVersion,
    reader: BlockReader,
    table: str,
    ids: ArrayLike | None,
    offsets: ArrayLike | None,
    weights: ArrayLike | None,
    how: How,
    out: NDArray[Any] | None,
    deadline: Deadline | None,
    note: Note | None,
) -> NDArray[Any]:
    """Return one row for each bag of one table: (bags, dim)."""
    served = named(serving, table)
    bags = _bags_of(served, ids, offsets, weights, how, out)
    if bags.ids.size:
        aside = np.empty((bags.ids.size, served.row_bytes), np.uint8)
        served.multi_get(reader, bags.ids, aside, deadline, bags=bags.at)
        if note is not None:
            note(table, bags.ids)
    return bags.end()


def pooled_of_tables(
    serving: ServedVersion,
    reader: BlockReader,
    wanted: Mapping[str, Bagged],
    how: How,
    outs: Mapping[str, NDArray[Any]],
    deadline: Deadline | None,
    note: Note | None,
    threads: int,
) -> dict[str, NDArray[Any]]:
    """Return one row for each bag by table; what they miss goes to the device together."""
    tables = [named(serving, name) for name in wanted]
    unasked = [name for name in outs if name not in wanted]
    if unasked:
        raise InputError(f"out is for table {unasked[0]!r}, which is not asked")
    bags = {
        name: _bags_of(table, *_parts(name, asked), how, outs.get(name))
        for table, (name, asked) in zip(tables, wanted.items(), strict=True)
    }
    names = list(bags)
    shares = shared_out([each.ids.size for each in bags.values()], threads)
    at_once(
        [
            partial(_pool, serving, reader, {names[k]: bags[names[k]] for k in share}, deadline)
            for share in shares
        ]
    )
    if note is not None:
        for name, each in bags.items():
            if each.ids.size:
                note(name, each.ids)
    return {name: each.end() for name, each in bags.items()}


def _pool(
    serving: ServedVersion,
    reader: BlockReader,
    bags: Mapping[str, _Bags],
    deadline: Deadline | None,
) -> None:
    """Have the bags of several tables pooled by one request."""
    ids = [each.ids for each in bags.values()]
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([each.size for each in ids], out=offsets[1:])
    if not offsets[-1]:
        return
    together = serving.together(tuple(bags))
    ends = np.cumsum(np.diff(offsets) * [table.row_bytes for table in together.tables])
    aside = np.empty(int(ends[-1]), np.uint8)
    together.multi_get(
        reader,
        np.concatenate(ids).astype(np.int64, copy=False),
        offsets,
        aside.ctypes.data + np.concatenate([[0], ends[:-1]]),
        deadline,
        np.array([each.at for each in bags.values()], np.int64),
    )


def _parts(name: str, asked: Any) -> tuple[Any, Any, Any]:
    """Return ids, offsets and weights of what is asked of one of several tables."""
    if not isinstance(asked, (tuple, list)) or not 2 <= len(asked) <= 3:
        raise InputError(
            f"table {name!r}: give (ids, offsets) or (ids, offsets, weights) by table name"
        )
    ids, offsets, *weights = asked
    return ids, offsets, weights[0] if weights else None
