"""What the command lines that read access logs share: how to read them, and the reading."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import numpy as np

from bandana_kv.errors import InputError
from bandana_kv.keys.kinds import KINDS
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.logs.formats import READERS
from bandana_kv.logs.options import BAD_ROWS, ROLES, LogOptions
from bandana_kv.logs.recording import is_recording
from bandana_kv.rows.files import open_rows
from bandana_kv.rows.key_file import read_keys

__all__ = [
    "NamedPath",
    "keys_of_tables",
    "log_options",
    "named_path",
    "read_log",
    "read_logs",
    "read_named",
    "rows_by_keys",
]

F = TypeVar("F", bound=Callable[..., Any])

_NAMES = ("log_format", "columns", "separator", "header", "quoting", "bad_rows", "log_table")


class NamedPath(NamedTuple):
    """A file of one table, which may be named with it."""

    table: str | None
    path: Path


def named_path(
    _context: click.Context, _parameter: click.Parameter, value: Path | None
) -> NamedPath | None:
    """Take ``NAME=PATH`` as well as ``PATH`` where a command is about one table.

    A file that is there goes before a name.
    """
    if value is None:
        return None
    table, equals, path = str(value).partition("=")
    if not (table and equals and path) or "/" in table or value.exists():
        return NamedPath(None, value)
    return NamedPath(table, Path(path))


def _columns(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str] | None:
    """Turn repeated ``role=name`` options into a dictionary."""
    named: dict[str, str] = {}
    for value in values:
        role, equals, name = value.partition("=")
        if role not in ROLES or not equals or not name:
            raise click.BadParameter(
                f"{value!r} is not of the form ROLE=NAME with a ROLE of {', '.join(ROLES)}"
            )
        named[role] = name
    return named or None


def log_options(command: F) -> F:
    """Add the options that say how logs are read; the command gets them as `how`."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        said = {name: options.pop(name) for name in _NAMES}
        said["format"], said["table"] = said.pop("log_format"), said.pop("log_table")
        if said["separator"] is not None:
            said["separator"] = said["separator"].replace("\\t", "\t")
        try:
            how = LogOptions(**said)
        except InputError as error:
            raise click.UsageError(str(error)) from error
        return command(*arguments, how=how, **options)

    added = (
        click.option(
            "--log-format",
            type=click.Choice(tuple(READERS)),
            help="Of the log.  [default: as its suffix says]",
        ),
        click.option(
            "--column",
            "columns",
            metavar="ROLE=NAME",
            multiple=True,
            callback=_columns,
            help="What the log's column of requests, ids or times is called, or which one it is.",
        ),
        click.option("--separator", help=r"Between the log's fields, as ';' or '\t' or '::'."),
        click.option(
            "--header/--no-header",
            default=None,
            help="Whether the log's first row names columns; else they have numbers, from 1.",
        ),
        click.option(
            "--quoting/--no-quoting",
            default=None,
            help="Whether fields of the log may stand in quotes.  [default: in .csv, not in .tsv]",
        ),
        click.option(
            "--bad-rows",
            type=click.Choice(BAD_ROWS),
            default="error",
            show_default=True,
            help="What rows of a log do that are not as they should be.",
        ),
        click.option("--log-table", help="The table to take of a recording of several."),
    )
    described: Any = run
    for option in reversed(added):
        described = option(described)
    return described  # type: ignore[no-any-return]


def read_log(path: str | Path, how: LogOptions, table: str | None = None) -> AccessLog:
    """Return a log; of a recording what it has of `table`, unless `how` names another.

    Raises
    ------
    BandanaError
        As :meth:`bandana_kv.AccessLog.read`.
    """
    if how.table is None and table is not None and is_recording(Path(path)):
        how = how.but(table=table)
    return AccessLog.read(path, how)


def read_named(log: NamedPath, how: LogOptions, table: str | None = None) -> AccessLog:
    """Return the log of the one table that a command is about.

    Raises
    ------
    BandanaError
        As :func:`read_log`; or the log is named after another table.
    """
    if table is not None and log.table not in (None, table):
        raise InputError(f"--log names table {log.table!r}, and --table {table!r}")
    return read_log(log.path, how, log.table or table)


def read_logs(
    logs: Mapping[str, str], how: LogOptions, keys: Mapping[str, object] | None = None
) -> dict[str, AccessLog]:
    """Return the logs of tables, by their names; raises as :func:`read_log`.

    Those of tables with `keys` are read by these.
    """
    keyed = keys or {}
    return {
        table: AccessLog.read(path, how, keys=keyed[table])
        if keyed.get(table) is not None
        else read_log(path, how, table)
        for table, path in logs.items()
    }


def keys_of_tables(
    names: Collection[str], tables: Mapping[str, str], key_files: Mapping[str, str]
) -> dict[str, object]:
    """Return by which keys the log of each table is read, for :func:`read_logs`; None: by ids.

    Parameters
    ----------
    names
        Of the tables with a log.
    tables
        What ``--table`` says of some.
    key_files
        What ``--keys`` says: a file, or where there are no rows the kind of the log's own keys.

    Raises
    ------
    BandanaError
        As the readers of both; or rows are given, and of their keys the kind alone.
    """
    found: dict[str, object] = {}
    for name in key_files:
        if name not in names:
            raise InputError(f"--keys names table {name!r}, which has no --log")
    for name in names:
        said = key_files.get(name)
        if said in KINDS and not Path(said).exists():
            if name in tables:
                raise InputError(
                    f"--keys {name}={said} is for a log without its table; name the file with the "
                    f"keys of {tables[name]}, one for each row"
                )
            found[name] = said
        elif said is not None:
            found[name] = read_keys(Path(said))
        elif name in tables:
            with open_rows(name, tables[name]) as source:
                found[name] = source.keys
    return found


def rows_by_keys(keys: Mapping[str, object]) -> dict[str, int]:
    """Return how many rows tables have, of those whose keys are known."""
    return {name: len(each) for name, each in keys.items() if isinstance(each, (list, np.ndarray))}
