"""Rows that a codec cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.codecs.contract import Codec, Numbers, Raw
from bandana_kv.errors import InputError

__all__ = ["UnfitError", "encoded", "refuse_rows"]


class UnfitError(InputError):
    """A row does not fit its codec.

    Attributes
    ----------
    row : int
        Which one of those that were given.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def refuse_rows(bad: NDArray[np.bool_], name: str, why: str) -> None:
    """Raise :class:`UnfitError` for the first row (of n) that is `bad`, if there is one."""
    if bad.any():
        row = int(bad.argmax())
        raise UnfitError(row, f"row {row} does not fit {name}: {why}")


def encoded(
    codec: Codec, name: str, ids: Sequence[Any] | NDArray[Any], rows: Numbers, what: str = "id"
) -> Raw:
    """Return the rows of `ids` (n,), or `what` else they are, as they are stored.

    Raises
    ------
    InputError
        Names the id of the first row that the codec cannot hold; begins with `name`, the table.
    """
    try:
        return codec.encode(rows)
    except UnfitError as error:
        named = ids[error.row]
        raise InputError(f"{name}: the row of {what} {named!s} does not fit: {error}") from error
