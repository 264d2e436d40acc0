"""A table as a user gives it to a load: rows, and what is to be known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Rows"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a table, with what an array cannot say of itself.

    Parameters
    ----------
    values
        What :func:`bandana_kv.load` takes for a table: an array (rows, dim), a path, or rows in an
        engine, of :func:`bandana_kv.adapters.rows.open_rows`.
    keys
        What callers ask for rows by, one for each in their order: int64 or uint64 (rows,), or str
        or bytes; distinct. By default they ask by id, and where the source of the rows brings
        keys, by those. Of rows in an engine ``"bytes"``, ``"str"``, ``"int64"`` or ``"uint64"``:
        what comes behind the prefix in its own keys, in their order there.
    encoded
        The codec whose bytes `values`, uint8 (rows, row_bytes), are: a table that was quantised
        before is stored as it is. By default they are numbers.
    """

    values: Any
    keys: Any = None
    encoded: str | None = None
