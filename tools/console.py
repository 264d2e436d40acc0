"""What the command lines share: a progress bar, error messages, table options."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from bandana_kv import adapters
from bandana_kv.errors import BandanaError, InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.progress import Progress
from bandana_kv.rows.files import open_rows
from bandana_kv.units import parse_size

__all__ = [
    "Bar",
    "adapter_option",
    "by_table",
    "check_named",
    "counts",
    "end_as_interrupted",
    "errors_named",
    "json_option",
    "note",
    "out",
    "shape_of",
    "shapes",
    "size",
    "table_options",
]

F = TypeVar("F", bound=Callable[..., Any])

# Tables are made for 100 columns where there is no terminal to ask, as in a log file.
# Names of tables and paths are printed as they are: markup would take [a] for a style.
out = Console(markup=False) if sys.stdout.isatty() else Console(markup=False, width=100)


class Bar(Progress):
    """Draws one bar per stage on standard error; none where that is no terminal, or is quiet."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, markup=False)
        self._bars: Bars | None = None

    def start(self, label: str, total: int, unit: str) -> None:
        """Draw a new bar."""
        self.finish()
        self._bars = Bars(
            TextColumn("{task.description:<20}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=out.quiet or not self._console.is_terminal,
        )
        self._bars.start()
        self._stage = self._bars.add_task(label, total=total, unit=unit)

    def advance(self, count: int) -> None:
        """Move it on."""
        if self._bars is not None:
            self._bars.advance(self._stage, count)

    def finish(self) -> None:
        """Leave it as it is."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Else the terminal's cursor stays hidden after an error in the middle of a stage.
        self.finish()


def errors_named(command: F) -> F:
    """End a command with one line on standard error, and status 1, where it cannot go on."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        # A path may have bytes, and a table's name letters, that the terminal's encoding has not.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return command(*arguments, **options)
        except (BandanaError, OSError) as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            sys.exit(1)

    return run  # type: ignore[return-value]


def end_as_interrupted() -> None:
    """Have SIGTERM end this process as Ctrl-C does, so that nothing is left behind."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _lasting(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Refuse the engine whose blocks end with the process that a command line is."""
    if value == "memory":
        raise click.BadParameter("'memory' ends with this command; name an engine with files")
    return value


def note(text: str) -> None:
    """Print on standard error what is good to know, unless all is to be quiet."""
    if not out.quiet:
        click.echo(text, err=True)


json_option = click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
"""How a program reads what a command did; nothing else is printed then."""

adapter_option = click.option(
    "--adapter",
    default="lmdb",
    show_default=True,
    callback=_lasting,
    help=", ".join(name for name in adapters.names() if name != "memory"),
)
"""Which engine a command writes blocks into."""


def by_table(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Turn repeated ``table=value`` options into a dictionary.

    Of a table that is not named, what a configuration file says of it stays.
    """
    said = _pairs(values)
    if context.default_map and parameter.name in context.default_map:
        return _pairs(context.default_map[parameter.name]) | said
    return said


def _pairs(values: Iterable[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise click.BadParameter(
                f"{value!r} is not of the form table=value, as in user=log.npz"
            )
        if name in pairs:
            raise click.BadParameter(f"table {name!r} is given twice")
        pairs[name] = rest
    return pairs


def size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """Turn an option as 64MiB into bytes; one that is not given stays None."""
    try:
        return None if value is None else parse_size(value)
    except InputError as error:
        raise click.BadParameter(str(error)) from error


def counts(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, int]:
    """Turn repeated ``table=number`` options into a dictionary; a bare number is for all, ""."""
    bare = [value for value in values if "=" not in value]
    if len(bare) > 1:
        raise click.BadParameter(f"{' and '.join(bare)} cannot both be for all tables")
    texts = by_table(context, parameter, tuple(value for value in values if "=" in value))
    numbers = {}
    for name, text in [*texts.items(), *(("", value) for value in bare)]:
        if not text.isdecimal() or int(text) < 1:
            raise click.BadParameter(f"{text!r} is not a whole number from 1 up")
        numbers[name] = int(text)
    return numbers


def table_options(command: F) -> F:
    """Add the options that name tables.

    They are `logs`, `tables`, `key_files`, `row_bytes` and `rows`, by table.
    """
    options = (
        click.option(
            "--log",
            "logs",
            metavar="NAME=LOG",
            multiple=True,
            required=True,
            callback=by_table,
            help="A table's access log: .npz, .parquet, .csv or .txt. Repeat for more tables.",
        ),
        click.option(
            "--table",
            "--tables",
            "tables",
            metavar="NAME=ROWS.npy",
            multiple=True,
            callback=by_table,
            help="The table's rows, which say how many and how large they are.",
        ),
        click.option(
            "--keys",
            "key_files",
            metavar="NAME=KEYS",
            multiple=True,
            callback=by_table,
            help="The log has keys, and these are the table's, one for each row: .npy, or text "
            "with one a line. Without --table: int64, uint64, str or bytes, which the log's own "
            "are.  [default: a column of keys in --table, else ids]",
        ),
        click.option(
            "--row-bytes",
            metavar="[NAME=]N",
            multiple=True,
            callback=counts,
            help="Bytes of a row, of all tables or of one, where no --table says it.",
        ),
        click.option(
            "--rows",
            metavar="NAME=N",
            multiple=True,
            callback=counts,
            help="Rows of a table.  [default: largest id in its log + 1]",
        ),
    )
    # Help lists them in the order in which decorators stand, which is the reverse.
    for option in reversed(options):
        command = option(command)
    return command


def shapes(
    logs: Mapping[str, AccessLog],
    tables: Mapping[str, str],
    row_bytes: Mapping[str, int],
    rows: Mapping[str, int],
) -> dict[str, tuple[int, int]]:
    """Return rows and bytes of a row, by table, from ``--table``, ``--row-bytes`` and ``--rows``.

    Raises
    ------
    InputError
        A table without a log, or without the bytes of its rows.
    """
    check_named(logs, tables, row_bytes, rows)
    found = {}
    for name, log in logs.items():
        known, size = shape_of(name, tables, row_bytes, rows)
        found[name] = (log.rows if known is None else known, size)
    return found


def check_named(
    logs: Collection[str],
    tables: Mapping[str, str],
    row_bytes: Mapping[str, int],
    rows: Mapping[str, int],
) -> None:
    """Refuse a table without a log, that an option names; raises InputError."""
    for option, named in (("--table", tables), ("--row-bytes", row_bytes), ("--rows", rows)):
        for name in named:
            if name not in logs and (name or option == "--rows"):
                raise InputError(f"{option} names table {name!r}, which has no --log")


def shape_of(
    name: str, tables: Mapping[str, str], row_bytes: Mapping[str, int], rows: Mapping[str, int]
) -> tuple[int | None, int]:
    """Return rows of a table, None where nothing says how many, and bytes of a row.

    Raises
    ------
    InputError
        Nothing says how large a row is.
    """
    if name in tables:
        with open_rows(name, tables[name]) as source:
            return source.rows, source.row_bytes
    if name in row_bytes or "" in row_bytes:
        return rows.get(name), row_bytes.get(name, row_bytes.get("", 0))
    raise InputError(f"table {name!r}: how large are its rows? Give --row-bytes or --table")
