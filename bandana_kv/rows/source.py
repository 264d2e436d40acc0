"""Sources of rows by table and id, for when blocks fail, for repairs and for moving in.

A source is anything with a method ``rows(table, ids)`` that returns an array (n, dim): the
rows of `ids`, in their order. Whatever gives rows becomes one by :func:`source_of`. What a
source gives is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import BandanaError, FallbackError, IdError, InputError, RowMissingError
from bandana_kv.kernels.views import refuse_masked
from bandana_kv.rows.table import RowSource

__all__ = ["FileRows", "Source", "check_tables", "checked_rows", "rows_of", "source_of"]


@runtime_checkable
class Source(Protocol):
    """Rows by table and id."""

    def rows(self, table: str, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows of distinct `ids` (n,): (n, dim), of the table's dtype, any byte order.

        Raises
        ------
        RowMissingError
            Names the table and an id of which there is no row.
        """

    def close(self) -> None:
        """Release what is held open."""


@runtime_checkable
class _Store(Protocol):
    def multi_get(self, table: str, ids: NDArray[np.int64]) -> NDArray[Any]: ...

    @property
    def tables(self) -> tuple[str, ...]: ...


class _OfStore:
    """Rows of another store, which stays its owner's to close."""

    def __init__(self, store: _Store) -> None:
        self._store = store

    def rows(self, table: str, ids: NDArray[np.int64]) -> NDArray[Any]:
        # By number, where both stores are asked by keys.
        ask = getattr(self._store, "rows_at", self._store.multi_get)
        try:
            rows: NDArray[Any] = ask(table, ids)
            return rows
        except IdError as error:
            raise RowMissingError(f"the other store has no such row: {error}") from error

    def close(self) -> None:
        pass


class _OfCall:
    """Rows that a function returns."""

    def __init__(self, call: Callable[[str, NDArray[np.int64]], NDArray[Any]]) -> None:
        self._call = call

    def rows(self, table: str, ids: NDArray[np.int64]) -> NDArray[Any]:
        return self._call(table, ids)

    def close(self) -> None:
        pass


class _ByTable:
    """A source for each table."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = dict(sources)

    def rows(self, table: str, ids: NDArray[np.int64]) -> NDArray[Any]:
        source = self.sources.get(table)
        if source is None:
            raise FallbackError(f"no source is named for table {table!r}")
        return source.rows(table, ids)

    def close(self) -> None:
        with ExitStack() as stack:
            for source in self.sources.values():
                stack.callback(source.close)


class FileRows:
    """Rows of files or arrays, those of an id at its place.

    Parameters
    ----------
    tables
        Opened by :func:`bandana_kv.rows.files.open_rows`, by table name; closed with this.
    """

    def __init__(self, tables: Mapping[str, RowSource]) -> None:
        self._tables = dict(tables)

    def rows(self, table: str, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows of `ids` (n,): (n, dim)."""
        source = self._tables.get(table)
        if source is None:
            raise FallbackError(f"no file is named for table {table!r}")
        beyond = ids[(ids < 0) | (ids >= source.rows)]
        if beyond.size:
            raise RowMissingError(
                f"table {table!r}: its source has rows 0 to {source.rows - 1}, not {beyond[0]}"
            )
        out = np.empty((ids.size, source.row_bytes), np.uint8)
        source.gather(ids, out)
        return out.view(source.dtype)

    def close(self) -> None:
        """Close the files."""
        with ExitStack() as stack:
            for source in self._tables.values():
                stack.callback(source.close)


def source_of(given: object) -> Source:
    """Return what gives rows as a source.

    Parameters
    ----------
    given
        A source; an open :class:`~bandana_kv.EmbeddingStore`; a function ``(table, ids)`` that
        returns rows; or one of these for each table, by its name.

    Raises
    ------
    InputError
        It is none of these.
    """
    if isinstance(given, Mapping):
        return _ByTable({name: source_of(each) for name, each in given.items()})
    if isinstance(given, _Store):
        return _OfStore(given)
    if isinstance(given, Source):
        return given
    if callable(given):
        return _OfCall(given)
    raise InputError(
        f"a {type(given).__name__} gives no rows: name an open store, a source with a method "
        "rows(table, ids), a function (table, ids), or one of these by table"
    )


def check_tables(source: Source | None, tables: Iterable[str]) -> None:
    """Refuse a source named for a table that is none of `tables`.

    Raises
    ------
    InputError
        Names it: a name mistyped would be noticed only when a block fails.
    """
    if isinstance(source, _ByTable):
        for name in source.sources.keys() - set(tables):
            raise InputError(f"a source is named for table {name!r}, which the store has not")


def checked_rows(
    source: Source, table: str, ids: NDArray[np.int64], dim: int, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the rows of distinct `ids` (n,): (n, dim), C-contiguous, checked.

    Raises
    ------
    RowMissingError
        The source has no row of an id, and names it.
    FallbackError
        The source failed, or gave another number of rows, another length or another dtype.
    """
    try:
        given = source.rows(table, ids)
        refuse_masked(f"table {table!r}: what its source gave", given, FallbackError)
        rows = np.asarray(given)
    except (RowMissingError, FallbackError):
        raise
    except BandanaError as error:
        raise FallbackError(f"the source of rows failed: {error}") from error
    except Exception as error:
        # A user's function may raise anything.
        what = f"{type(error).__name__}: {error}"
        raise FallbackError(f"table {table!r}: the source of rows failed ({what})") from error
    if rows.dtype != dtype and rows.dtype.newbyteorder("=") == dtype.newbyteorder("="):
        rows = rows.astype(dtype)  # the same numbers, in the other byte order
    if rows.shape != (ids.size, dim) or rows.dtype != dtype:
        raise FallbackError(
            f"table {table!r}: asked for {ids.size} rows of {dim} {dtype}, its source gave "
            f"{rows.dtype} of shape {rows.shape}; name a source of the same table"
        )
    return np.ascontiguousarray(rows)


def rows_of(
    source: Source, table: str, ids: NDArray[Any], dim: int, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the rows of `ids` (n,), repeats included, in new memory: (n, dim), checked.

    Raises
    ------
    RowMissingError, FallbackError
        As :func:`checked_rows`.
    """
    wanted = ids.astype(np.int64)
    ordered = np.sort(wanted)
    if (ordered[1:] != ordered[:-1]).all():
        # What most requests are; telling repeats apart takes three times as long.
        return checked_rows(source, table, wanted, dim, dtype).copy()
    distinct, inverse = np.unique(wanted, return_inverse=True)
    rows: NDArray[Any] = checked_rows(source, table, distinct, dim, dtype)[inverse]
    return rows
