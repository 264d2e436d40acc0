"""Which columns of a table of interactions are the request, the id and the time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bandana_kv.errors import InputError
from bandana_kv.logs.options import ROLES, LogOptions

__all__ = ["find_columns", "number_columns"]


def find_columns(path: Path, there: Sequence[str], options: LogOptions) -> list[int]:
    """Return the indexes in `there` of the request, id and time columns.

    The time may be missing, and is -1 then, unless `options` names it.

    Raises
    ------
    InputError
        A column is missing; the message names those there are.
    """
    found = []
    for role in ROLES:
        name = options.column(role)
        if there.count(name) > 1:
            raise InputError(f"{path}: two columns are named {name!r}")
        if name in there:
            found.append(list(there).index(name))
        elif role == "time" and not options.named(role):
            found.append(-1)
        else:
            shown = ", ".join(repr(each[:40]) for each in there[:50])
            raise InputError(
                f"{path}: has no column {name!r}; its columns: {shown}. "
                f"Say which holds the {role}: columns={{{role!r}: ...}}; "
                "or header=False, if the first row names none"
            )
    return found


def number_columns(path: Path, fields: int, options: LogOptions) -> list[int]:
    """Return the indexes of the request, id and time columns of a table without a header.

    Of two columns the first is the request and the second the id; of more they must be named.

    Raises
    ------
    InputError
        A column is not named, or there is none of that number.
    """
    if fields == 2 and not options.columns:
        return [0, 1, -1]
    found = []
    for role in ROLES:
        name = options.column(role)
        if not options.named(role):
            if role == "time":
                found.append(-1)
                continue
            raise InputError(
                f"{path}: has {fields} columns and no header; say which hold request, id and time, "
                "counted from 1: columns={'request': '1', 'id': '2'}"
            )
        if not (name.isascii() and name.isdecimal() and 1 <= int(name) <= fields):
            raise InputError(
                f"{path}: has no column {name!r}; without a header its columns are 1 to {fields}"
            )
        found.append(int(name) - 1)
    return found
