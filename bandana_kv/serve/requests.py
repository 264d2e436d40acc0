"""What users ask of a version, checked and handed to its tables: one table, several, bags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from bandana_kv.errors import InputError, TableNotFoundError
from bandana_kv.kernels.views import refuse_masked
from bandana_kv.serve.addressing import addressed, filler_of, looked_for, plain_ids
from bandana_kv.serve.arguments import checked_ids, checked_out, ids_as_given
from bandana_kv.serve.forms import answer_into, answers, checked_kind

if TYPE_CHECKING:
    from bandana_kv.serve.failsafe import Deadline
    from bandana_kv.serve.reader import BlockReader
    from bandana_kv.serve.table import ServedTable
    from bandana_kv.serve.tables import Tables
    from bandana_kv.serve.version import ServedVersion

__all__ = [
    "Batch",
    "Note",
    "named",
    "raw_rows_of",
    "rows_of",
    "rows_of_batch",
    "rows_of_tables",
    "rows_or_missing",
]

Note = Callable[[str, NDArray[np.integer[Any]]], None]
"""Told of each table's ids that were answered, for who records requests."""

Find = Callable[["ServedTable", ArrayLike | None], tuple[NDArray[Any], tuple[int, ...]]]
"""Ids of what is asked for, and its shape: :func:`addressed`, or :func:`by_number`."""

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
    dtype: DTypeLike | None,
    deadline: Deadline | None,
    note: Note | None,
    find: Find = addressed,
) -> NDArray[Any]:
    """Return rows of one table: of the shape of `ids`, and (dim,) behind it."""
    served = serving.tables.get(table) or named(serving, table)
    # Where there are no keys, all ways to find ids are this one.
    wanted, shape = ids_as_given(table, ids) if served.keys is None else find(served, ids)
    count = wanted.size
    codec = served.codec
    straight = codec is None and dtype is None
    if straight and out is None:
        flat = np.empty((count, served.row_bytes), np.uint8)
    elif codec is not None and count and out is None and dtype is None:
        decoded = np.empty((count, served.dim), np.float32)
        codec.decode(_raw_rows(served, reader, wanted, deadline, note), decoded)
        return decoded if len(shape) == 1 else decoded.reshape(*shape, served.dim)
    elif straight and getattr(out, "dtype", None) is served.dtype:
        flat = checked_out((*shape, served.dim), served.dtype, out).view(np.uint8)
        if len(shape) != 1:
            flat = flat.reshape(count, served.row_bytes)
    else:
        target = _target(served, shape, out, dtype)
        raw = _raw_rows(served, reader, wanted, deadline, note)
        answer_into(served, raw, target.reshape(count, served.dim))
        return target
    if count:
        served.multi_get(reader, wanted, flat, deadline)
        if note is not None:
            note(table, wanted)
    if out is not None:
        return out
    answer = flat.view(served.dtype)
    return answer if len(shape) == 1 else answer.reshape(*shape, served.dim)


def rows_or_missing(
    serving: ServedVersion,
    reader: BlockReader,
    table: str,
    ids: ArrayLike | None,
    missing: object,
    out: NDArray[Any] | None,
    dtype: DTypeLike | None,
    deadline: Deadline | None,
    note: Note | None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return rows of one table, others where it has none; with ``"mask"`` also which it has."""
    served = serving.tables.get(table) or named(serving, table)
    filler = filler_of(served, missing)
    wanted, shape = looked_for(served, ids)
    there = wanted >= 0
    target = _target(served, shape, out, dtype)
    rows = target.reshape(wanted.size, served.dim)
    if not there.all():
        rows[~there] = 0 if filler is None else filler
        wanted = wanted[there]
    raw = _raw_rows(served, reader, wanted, deadline, note)
    if there.all():
        answer_into(served, raw, rows)
    else:
        found = np.empty((wanted.size, served.dim), target.dtype)
        answer_into(served, raw, found)
        rows[there] = found
    return (
        (target, there.reshape(shape)) if isinstance(missing, str) and missing == "mask" else target
    )


def _target(
    served: ServedTable, shape: tuple[int, ...], out: NDArray[Any] | None, dtype: DTypeLike | None
) -> NDArray[Any]:
    """Return where rows go that are answered otherwise than they are stored."""
    if dtype is not None:
        kind = checked_kind(served, dtype)
    elif isinstance(out, np.ndarray) and answers(served, out.dtype):
        kind = out.dtype
    else:
        kind = served.dtype
    return checked_out((*shape, served.dim), kind, out)


def raw_rows_of(
    serving: ServedVersion,
    reader: BlockReader,
    table: str,
    ids: ArrayLike | None,
    deadline: Deadline | None,
    note: Note | None,
) -> NDArray[np.uint8]:
    """Return rows of one table as they are stored: of the shape of `ids`, and (row_bytes,)."""
    served = serving.tables.get(table) or named(serving, table)
    wanted, shape = addressed(served, ids)
    return _raw_rows(served, reader, wanted, deadline, note).reshape(*shape, served.row_bytes)


def _raw_rows(
    served: ServedTable,
    reader: BlockReader,
    ids: NDArray[np.integer[Any]],
    deadline: Deadline | None,
    note: Note | None,
) -> NDArray[np.uint8]:
    """Return rows of ids (n,), as they are stored: (n, row_bytes)."""
    raw = np.empty((ids.size, served.row_bytes), np.uint8)
    if ids.size:
        served.multi_get(reader, ids, raw, deadline)
        if note is not None:
            note(served.stored.name, ids)
    return raw


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
            name: rows_of(serving, reader, name, ids, None, None, deadline, note)
            for name, ids in wanted.items()
        }
    shaped = [plain_ids(table, given) for table, given in zip(tables, wanted.values(), strict=True)]
    ids = [flat for flat, _ in shaped]
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([each.size for each in ids], out=offsets[1:])
    rows, parts = _room(tables, offsets)
    joined = np.concatenate(ids).astype(np.int64, copy=False)
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
    if table.codec is None:
        return part.view(table.dtype).reshape(count, table.dim)
    answer = np.empty((count, table.dim), table.dtype)
    answer_into(table, part.reshape(count, table.row_bytes), answer)
    return answer


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
    refuse_masked("offsets", offsets)
    keyed = any(table.keys is not None for table in together.tables)
    wanted = np.asarray(ids) if keyed else checked_ids(names[0], ids)
    edges = np.ascontiguousarray(offsets, np.int64)
    if edges.shape != (len(names) + 1,) or edges[0] or edges[-1] != wanted.size:
        raise InputError(
            f"offsets must be ({len(names) + 1},), from 0 to the {wanted.size} ids, not {offsets!r}"
        )
    if (edges[1:] < edges[:-1]).any():
        raise InputError(f"offsets must not fall: {offsets!r}")
    if keyed:
        parts = zip(together.tables, edges[:-1], edges[1:], strict=True)
        each = [plain_ids(table, wanted[low:high])[0] for table, low, high in parts]
        wanted = np.concatenate(each).astype(np.int64, copy=False)
    if any(table.codec is not None for table in together.tables):
        answer = _batch_decoded(together, reader, wanted, edges, out, deadline)
    else:
        answer, addresses = _room_of_batch(together, edges, out)
        together.multi_get(reader, wanted, edges, addresses, deadline)
    if note is not None:
        for name, low, high in zip(names, edges[:-1], edges[1:], strict=True):
            if high > low:
                note(name, wanted[low:high])
    return answer


def _room_of_batch(
    together: Tables, edges: NDArray[np.int64], out: NDArray[Any] | Sequence[NDArray[Any]] | None
) -> tuple[Answer, NDArray[np.int64]]:
    """Return the answer, to be filled, and where in memory the rows of each table go."""
    tables, count = together.tables, int(edges[-1])
    if out is None and together.alike:
        flat = np.empty((count, tables[0].row_bytes), np.uint8)
        at = flat.ctypes.data + edges[:-1] * tables[0].row_bytes
        return flat.view(tables[0].dtype), at
    if out is None:
        rows, parts = _room(tables, edges)
        return _parts(rows, parts, edges, tables), rows.ctypes.data + parts
    answer = _checked_outs(together, edges, out)
    if isinstance(answer, np.ndarray):
        return answer, answer.ctypes.data + edges[:-1] * tables[0].row_bytes
    return answer, np.array([each.ctypes.data for each in answer], np.int64)


def _parts(
    rows: NDArray[np.uint8],
    parts: NDArray[np.int64],
    edges: NDArray[np.int64],
    tables: Sequence[ServedTable],
) -> list[NDArray[Any]]:
    counts = np.diff(edges).tolist()
    return [
        _part(rows, int(at), count, table)
        for at, count, table in zip(parts, counts, tables, strict=True)
    ]


def _checked_outs(
    together: Tables, edges: NDArray[np.int64], out: NDArray[Any] | Sequence[NDArray[Any]]
) -> Answer:
    """Return where a caller wants rows: one array where all are alike, or one a table."""
    tables = together.tables
    if isinstance(out, np.ndarray):
        if not together.alike:
            raise InputError("these tables have rows of several kinds: give an out for each")
        return checked_out((int(edges[-1]), tables[0].dim), tables[0].dtype, out)
    shapes = zip(np.diff(edges).tolist(), tables, out, strict=True)
    return [checked_out((count, t.dim), t.dtype, each) for count, t, each in shapes]


def _batch_decoded(
    together: Tables,
    reader: BlockReader,
    ids: NDArray[np.int64],
    edges: NDArray[np.int64],
    out: NDArray[Any] | Sequence[NDArray[Any]] | None,
    deadline: Deadline | None,
) -> Answer:
    """Return rows of tables of which some are stored otherwise than they are answered."""
    answer = None if out is None else _checked_outs(together, edges, out)
    rows, parts = _room(together.tables, edges)
    together.multi_get(reader, ids, edges, rows.ctypes.data + parts, deadline)
    decoded = _parts(rows, parts, edges, together.tables)
    if answer is None:
        return np.concatenate(decoded) if together.alike else decoded
    if isinstance(answer, np.ndarray):
        return np.concatenate(decoded, out=answer)
    for each, part in zip(answer, decoded, strict=True):
        each[...] = part
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
