"""The old source, asked in the words of the new store: same arguments, same errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandana_kv.errors import BandanaError, IdError, InputError, TableNotFoundError
from bandana_kv.rows.source import Source, check_tables, rows_of
from bandana_kv.serve.arguments import checked_ids, checked_out
from bandana_kv.serve.store import EmbeddingStore

__all__ = ["Ids", "OldRows", "Rows"]

Ids = dict[str, NDArray[Any]]
"""Ids (n,) by table."""

Rows = dict[str, NDArray[Any]]
"""Rows (n, dim) by table."""


@dataclass(frozen=True)
class _Shape:
    rows: int
    dim: int
    dtype: np.dtype[Any]


class OldRows:
    """Rows of the old source, for the tables of the new store.

    Parameters
    ----------
    source
        The old source.
    new
        Says which tables there are, and what their rows are like; asked now only, so that a
        store that fails later keeps nobody from the old rows.
    """

    def __init__(self, source: Source, new: EmbeddingStore) -> None:
        check_tables(source, new.tables)
        self._source = source
        self._shapes = {name: _Shape(*new.shape(name), new.dtype(name)) for name in new.tables}

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(self._shapes)

    def checked(self, table: object, ids: ArrayLike | None, out: NDArray[Any] | None) -> Ids:
        """Return the ids by table; refuse what no source is needed to refuse.

        Raises
        ------
        TableNotFoundError, IdError, InputError
            As :meth:`EmbeddingStore.multi_get`. Whether ids are too large is left to the sides.
        """
        if isinstance(table, str):
            shape = self._shape(table)
            wanted = checked_ids(table, ids)
            checked_out((wanted.size, shape.dim), shape.dtype, out)
            asked = {table: wanted}
        elif isinstance(table, Mapping) and ids is None and out is None:
            for name in table:
                self._shape(name)
            asked = {name: checked_ids(name, each) for name, each in table.items()}
        else:
            raise InputError("give a table's name and ids, or ids by table name and nothing else")
        for name, wanted in asked.items():
            if wanted.size and wanted.min() < 0:
                raise self._out_of_range(name, int(wanted.min()))
        return asked

    def rows(self, asked: Ids) -> Rows:
        """Return the old source's rows, in new memory.

        Raises
        ------
        IdError
            Neither side has such a row.
        RowMissingError, FallbackError
            The old source has no such row, or failed.
        """
        return {name: self._rows(name, ids) for name, ids in asked.items()}

    def _rows(self, table: str, ids: NDArray[Any]) -> NDArray[Any]:
        shape = self._shapes[table]
        if not ids.size:
            return np.empty((0, shape.dim), shape.dtype)
        try:
            return rows_of(self._source, table, ids, shape.dim, shape.dtype)
        except BandanaError as error:
            if ids.max() >= shape.rows:
                raise self._out_of_range(table, int(ids.max())) from error
            raise

    def _shape(self, table: str) -> _Shape:
        shape = self._shapes.get(table)
        if shape is None:
            raise TableNotFoundError(
                f"no table {table!r} in this store; it has {', '.join(map(repr, self._shapes))}"
            )
        return shape

    def _out_of_range(self, table: str, id: int) -> IdError:
        return IdError(
            f"table {table!r}: id {id} is out of range; "
            f"it has rows 0 to {self._shapes[table].rows - 1}"
        )
