"""Which array of a file is meant: ``file.npz:name``, or the only one that can be a table."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection
from pathlib import Path

from bandana_kv.errors import InputError

__all__ = ["choose", "split", "with_keys"]

_MOST_LISTED = 8


def split(given: str) -> tuple[Path, str]:
    """Return the path of what a user named, and what in it: "" if nothing is said.

    A path may have colons of its own: the longest one at which something lies is taken.
    """
    colons = [at for at, letter in enumerate(given) if letter == ":" and at]
    if not colons or os.path.lexists(given):
        return Path(given), ""
    there = (at for at in reversed(colons) if os.path.lexists(given[:at]))
    at = next(there, colons[0])
    return Path(given[:at]), given[at + 1 :]


def with_keys(member: str, names: Collection[str]) -> tuple[str, str]:
    """Return which member has the rows and which their keys, "" for none; names may have colons.

    Parameters
    ----------
    member
        ``ROWS``, ``ROWS:KEYS`` or ``:KEYS``.
    names
        All there are.
    """
    if member in names or ":" not in member:
        return member, ""
    for at in (at for at, letter in enumerate(member) if letter == ":"):
        if member[:at] in ("", *names) and member[at + 1 :] in names:
            return member[:at], member[at + 1 :]
    rows, _, keys = member.rpartition(":")
    return rows, keys


def choose(
    path: Path,
    what: str,
    member: str,
    names: Collection[str],
    shape_of: Callable[[str], tuple[int, ...]],
) -> str:
    """Return the name of the member that is meant.

    Parameters
    ----------
    path
        Of the file, for messages.
    what
        A member is called: an array, a tensor, a column.
    member
        What the user named; "": the only one with two dimensions.
    names
        All there are.
    shape_of
        Told a name, returns the shape; only asked where nothing is named.

    Raises
    ------
    InputError
        There is none of that name: the nearest is named. Or there is none, or more than one, that
        can be meant: they are listed.
    """
    if member in names:
        return member
    if not names:
        raise InputError(f"{path}: holds no {what}")
    if member and list(names) == [""]:
        raise InputError(f"{path}: is one {what} without a name; leave {member!r} out")
    if member:
        (nearest,) = difflib.get_close_matches(member, list(names), 1, 0.0)
        raise InputError(f"{path}: has no {what} {member!r}; did you mean {nearest!r}?")
    shapes = {name: shape_of(name) for name in names}
    tables = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(tables) == 1:
        return tables[0]
    listed = ", ".join(f"{name} {shapes[name]}" for name in (tables or list(names))[:_MOST_LISTED])
    more = len(tables or names) - _MOST_LISTED
    listed += f" and {more} more" if more > 0 else ""
    if tables:
        raise InputError(f"{path}: which {what}? Say {path}:NAME, of {listed}")
    raise InputError(f"{path}: holds no {what} of shape (rows, dim), only {listed}")
