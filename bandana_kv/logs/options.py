"""How to read a log where its suffix does not say it: one object for all formats and tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from bandana_kv.errors import InputError

__all__ = ["BAD_ROWS", "MISSING", "ROLES", "LogOptions"]

ROLES = ("request", "id", "time")
BAD_ROWS = ("error", "skip")
MISSING = ("nan", "none", "null", "<na>", "n/a", r"\n")
"""What programs write where there is no value; a request of that name would be of strangers."""

_RESERVED = '"\r\n'


@dataclass(frozen=True)
class LogOptions:
    r"""How to read an access log; what is None is as usual for the format.

    Parameters
    ----------
    format
        ``npz``, ``parquet``, ``csv``, ``tsv``, ``txt`` or ``jsonl``; None: what the suffix says.
    columns
        Names of the columns, by default ``{"request": "request", "id": "id", "time": "time"}``.
        Without a header columns have numbers, from 1.
    table
        Which table's requests to take of a recording of several; other formats have one.
    separator
        Between fields: a comma in ``csv``, a tab in ``tsv``. Several characters, as ``"::"``, are
        one separator. In ``txt`` what separates ids beside blanks: a comma.
    header
        Whether the first row names the columns; it does by default.
    quoting
        Whether a field may stand in quotes, as RFC 4180 has it: in ``csv`` yes, in ``tsv`` no.
    missing
        Names, in any case, that mean that a request has none: such a row is bad. By default
        ``nan``, ``none``, ``null``, ``<na>``, ``n/a`` and ``\n`` with its backslash; ``()``: all
        are names. In ``csv`` and ``tsv`` an empty one means it always.
    bad_rows
        ``error``: the first bad row ends the reading. ``skip``: bad rows are left out and counted.

    Raises
    ------
    InputError
        One of them is not what it should be.
    """

    format: str | None = None
    columns: Mapping[str, str] | None = None
    table: str | None = None
    separator: str | None = None
    header: bool | None = None
    quoting: bool | None = None
    missing: tuple[str, ...] | None = None
    bad_rows: str = "error"

    def __post_init__(self) -> None:
        if self.bad_rows not in BAD_ROWS:
            raise InputError(f"bad_rows is {' or '.join(BAD_ROWS)}, not {self.bad_rows!r}")
        text = self.separator
        if text is not None and (not text or any(each in _RESERVED for each in text)):
            raise InputError(f"{text!r} cannot separate fields; take ',', '\\t', ';', '|' or '::'")
        if isinstance(self.missing, str):
            raise InputError(f"missing is names of requests, as [{self.missing!r}]")
        if self.missing is not None:
            object.__setattr__(self, "missing", tuple(self.missing))
        for role in self.columns or ():
            if role not in ROLES:
                raise InputError(f"columns names {role!r}; it can name {', '.join(ROLES)}")
        if self.columns is not None:
            # Without a header they are numbers, which may be given as such.
            named = {role: str(name) for role, name in self.columns.items()}
            object.__setattr__(self, "columns", named)

    def but(self, **said: Any) -> Self:
        """Return the same with other values, for those of `said` that are not None."""
        return replace(self, **{name: value for name, value in said.items() if value is not None})

    def named(self, role: str) -> bool:
        """Return whether the column of a role was named."""
        return role in (self.columns or {})

    def column(self, role: str) -> str:
        """Return the name of the column of a role."""
        return (self.columns or {}).get(role, role)

    def means_missing(self) -> tuple[str, ...]:
        """Return the names that mean that there is none, in lower case."""
        return MISSING if self.missing is None else tuple(each.lower() for each in self.missing)
