"""Ids that are not one-dimensional: asked for one after the other, and put into shape again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandana_kv.serve.arguments import checked_out, shaped_ids

__all__ = ["answer_nested", "is_nested"]


def is_nested(table: object, ids: ArrayLike | None) -> bool:
    """Return whether some ids of a request are not one-dimensional."""
    if isinstance(table, str):
        return ids is not None and _dimensions(ids) != 1
    if ids is not None or not isinstance(table, Mapping):
        return False
    return any(_dimensions(each) != 1 for each in table.values())


def _dimensions(ids: ArrayLike) -> int:
    try:
        return np.ndim(ids)
    except ValueError:
        return 1  # of no shape: refused as all that is no array


def answer_nested(
    ask: Callable[..., Any],
    table: str | Mapping[str, ArrayLike],
    ids: ArrayLike | None,
    out: NDArray[Any] | None,
) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return rows of the shape of the ids, of what `ask` gives for one-dimensional ones."""
    asked = {table: ids} if isinstance(table, str) else table
    shaped = {name: shaped_ids(name, each) for name, each in asked.items()}
    if not isinstance(table, str):
        found = ask({name: flat for name, (flat, _) in shaped.items()})
        return {name: rows.reshape(*shaped[name][1], rows.shape[1]) for name, rows in found.items()}
    flat, shape = shaped[table]
    found = ask(table, flat)
    rows: NDArray[Any] = found.reshape(*shape, found.shape[1])
    if out is None:
        return rows
    checked_out(rows.shape, rows.dtype, out)[...] = rows
    return out
