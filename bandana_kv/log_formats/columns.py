"""Which columns of a table of interactions are the request, the id and the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bandana_kv.errors import InputError

__all__ = ["ROLES", "column_names", "find_columns"]

ROLES = ("request", "id", "time")


def column_names(path: Path, columns: Mapping[str, str] | None) -> list[str]:
    """Return the names of the request, id and time columns; by default just these words.

    Raises
    ------
    InputError
        `columns` says something of another role.
    """
    columns = columns or {}
    for role in columns:
        if role not in ROLES:
            raise InputError(f"{path}: columns names {role!r}; it can name {', '.join(ROLES)}")
    return [columns.get(role, role) for role in ROLES]


def find_columns(
    path: Path, there: Sequence[str], names: Sequence[str], columns: Mapping[str, str] | None
) -> list[int]:
    """Return the indexes in `there` of the request, id and time columns.

    The time may be missing, and is -1 then, unless `columns` asks for it.

    Raises
    ------
    InputError
        A column is missing; the message names those there are.
    """
    found = []
    for role, name in zip(ROLES, names, strict=True):
        if there.count(name) > 1:
            raise InputError(f"{path}: two columns are named {name!r}")
        if name in there:
            found.append(list(there).index(name))
        elif role == "time" and "time" not in (columns or {}):
            found.append(-1)
        else:
            raise InputError(
                f"{path}: has no column {name!r}; its columns: {', '.join(map(repr, there))}. "
                f"Say which holds the {role}: columns={{{role!r}: ...}}"
            )
    return found
