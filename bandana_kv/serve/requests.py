"""What users ask of a version, checked and handed to its tables: one table, several, bags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandana_kv.errors import InputError, TableNotFoundError
from bandana_kv.kernels.views import refuse_masked
from bandana_kv.serve.arguments import checked_ids, checked_out, ids_as_given, shaped_ids

if TYPE_CHECKING:
    from bandana_kv.serve.failsafe import Deadline
    from bandana_kv.serve.reader import BlockReader
    from bandana_kv.serve.table import ServedTable
    from bandana_kv.serve.version import ServedVersion

__all__ = ["Batch", "Note", "named", "rows_of", "rows_of_batch", "rows_of_tables"]

Note = Callable[[str, NDArray[np.integer[Any]]], None]
"""Told of each table's ids that were answered, for who records requests."""

Answer = NDArray[Any] | list[NDArray[Any]]
"""Rows of several tables: one array, or one for each."""

_ALIGNED = 64


def named(serving: ServedVersion, table: str) -> ServedTable:
    """Return a table of a version.

    Raises
    ------
    TableNotFoundError
        Names the tables there are.
    """
    served = serving.tables.get(table)
    if served is None:
        raise TableNotFoundError(
            f"no table {table!r} in this store; it has {', '.join(map(repr, serving.tables))}"
        )
    return served


def rows_of(
    serving: ServedVersion,
    reader: BlockReader,
    table: str,
    ids: ArrayLike | None,
    out: NDArray[Any] | None,
    deadline: Deadline | None,
    note: Note | None,
) -> NDArray[Any]:
    """Return rows of one table: of the shape of `ids`, and (dim,) behind it."""
    served = serving.tables.get(table) or named(serving, table)
    wanted, shape = ids_as_given(table, ids)
    count = wanted.size
    if out is None:
        flat = np.empty((count, served.row_bytes), np.uint8)
    else:
        flat = checked_out((*shape, served.dim), served.dtype, out).view(np.uint8)
        if len(shape) != 1:
            flat = flat.reshape(count, served.row_bytes)
    if count:
        served.multi_get(reader, wanted, flat, deadline)
        if note is not None:
            note(table, wanted)
    if out is not None:
        return out
    answer = flat.view(served.dtype)
    return answer if len(shape) == 1 else answer.reshape(*shape, served.dim)


def rows_of_tables(
    serving: ServedVersion,
    reader: BlockReader,
    wanted: Mapping[str, ArrayLike],
    deadline: Deadline | None,
    note: Note | None,
) -> dict[str, NDArray[Any]]:
    """Return rows by table; what they miss goes to the device together."""
    tables = [named(serving, name) for name in wanted]
    if len(tables) < 2:
        return {
            name: rows_of(serving, reader, name, ids, None, deadline, note)
            for name, ids in wanted.items()
        }
    shaped = [shaped_ids(name, given) for name, given in wanted.items()]
    ids = [flat for flat, _ in shaped]
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([each.size for each in ids], out=offsets[1:])
    rows, parts = _room(tables, offsets)
    joined = np.concatenate(ids)
    together = serving.together(tuple(wanted))
    together.multi_get(reader, joined, offsets, rows.ctypes.data + parts, deadline)
    if note is not None:
        for name, each in zip(wanted, ids, strict=True):
            if each.size:
                note(name, each)
    return {
        name: _part(rows, int(at), flat.size, table).reshape(*shape, table.dim)
        for name, at, (flat, shape), table in zip(wanted, parts, shaped, tables, strict=True)
    }


def _room(
    tables: Sequence[ServedTable], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return memory for the rows of several tables, and where those of each begin."""
    row_bytes = np.array([table.row_bytes for table in tables], np.int64)
    sizes = np.diff(offsets) * row_bytes
    ends = np.cumsum((sizes + _ALIGNED - 1) // _ALIGNED * _ALIGNED)
    return np.empty(int(ends[-1]), np.uint8), np.concatenate([[0], ends[:-1]])


def _part(rows: NDArray[np.uint8], first: int, count: int, table: ServedTable) -> NDArray[Any]:
    part = rows[first : first + count * table.row_bytes]
    return part.view(table.dtype).reshape(count, table.dim)


def rows_of_batch(
    serving: ServedVersion,
    reader: BlockReader,
    names: tuple[str, ...],
    ids: ArrayLike,
    offsets: ArrayLike,
    out: NDArray[Any] | Sequence[NDArray[Any]] | None,
    deadline: Deadline | None,
    note: Note | None,
) -> NDArray[Any] | list[NDArray[Any]]:
    """Return the rows of tables in this order: one array where all rows are alike, else several."""
    for name in names:
        named(serving, name)
    together = serving.together(names)
    wanted = checked_ids(names[0], ids)
    refuse_masked("offsets", offsets)
    edges = np.ascontiguousarray(offsets, np.int64)
    if edges.shape != (len(names) + 1,) or edges[0] or edges[-1] != wanted.size:
        raise InputError(
            f"offsets must be ({len(names) + 1},), from 0 to the {wanted.size} ids, not {offsets!r}"
        )
    if (edges[1:] < edges[:-1]).any():
        raise InputError(f"offsets must not fall: {offsets!r}")
    tables = together.tables
    answer: NDArray[Any] | list[NDArray[Any]]
    if out is None and together.alike:
        flat = np.empty((wanted.size, tables[0].row_bytes), np.uint8)
        answer = flat.view(tables[0].dtype)
        addresses = flat.ctypes.data + edges[:-1] * tables[0].row_bytes
    elif out is None:
        rows, parts = _room(tables, edges)
        addresses = rows.ctypes.data + parts
        counts = np.diff(edges).tolist()
        answer = [
            _part(rows, int(at), count, table)
            for at, count, table in zip(parts, counts, tables, strict=True)
        ]
    elif isinstance(out, np.ndarray):
        if not together.alike:
            raise InputError("these tables have rows of several kinds: give an out for each")
        answer = checked_out((wanted.size, tables[0].dim), tables[0].dtype, out)
        addresses = answer.ctypes.data + edges[:-1] * tables[0].row_bytes
    else:
        shapes = zip(np.diff(edges).tolist(), tables, out, strict=True)
        answer = [checked_out((count, t.dim), t.dtype, each) for count, t, each in shapes]
        addresses = np.array([each.ctypes.data for each in answer], np.int64)
    together.multi_get(reader, wanted, edges, addresses, deadline)
    if note is not None:
        for name, low, high in zip(names, edges[:-1], edges[1:], strict=True):
            if high > low:
                note(name, wanted[low:high])
    return answer


class Batch:
    """Requests to the same tables in the same order; made by :meth:`EmbeddingStore.batch`.

    Parameters
    ----------
    ask
        What asks the version that is served: of names, ids, offsets, and out.
    names
        Of the tables.
    """

    def __init__(self, ask: Callable[..., Answer], names: tuple[str, ...]) -> None:
        self._ask = ask
        self.names = names

    def multi_get(
        self,
        ids: ArrayLike,
        offsets: ArrayLike,
        out: NDArray[Any] | Sequence[NDArray[Any]] | None = None,
    ) -> NDArray[Any] | list[NDArray[Any]]:
        """Return the rows that each table is asked for.

        Parameters
        ----------
        ids, offsets
            Integers: table k is asked for ``ids[offsets[k]:offsets[k + 1]]``; offsets are one more
            than there are tables.
        out
            Where to put the rows: (n, dim) where all tables' rows are alike, or an array (n_k, dim)
            for each table.

        Returns
        -------
        ndarray or list of ndarray
            (n, dim) where all rows are of one dim and dtype, else (n_k, dim) for each table; `out`
            if it was given.

        Raises
        ------
        TableNotFoundError
            The version that is served now has not all of the tables.
        IdError, InputError, BlockCorruptError, BlockMissingError, AdapterError, DeadlineError
            As :meth:`EmbeddingStore.multi_get`.

        Notes
        -----
        Cost: one kernel call for what DRAM holds and, if anything is missed, one more for each
        engine: all tables' blocks are in flight together. Where the store has a fallback or a
        deadline, tables are asked one after the other.
        """
        return self._ask(self.names, ids, offsets, out)
