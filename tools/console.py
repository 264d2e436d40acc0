"""What the command lines share: a progress bar, error messages, table options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from bandana_kv.errors import BandanaError
from bandana_kv.progress import Progress

__all__ = ["Bar", "by_table", "errors_named", "out"]

F = TypeVar("F", bound=Callable[..., Any])

# Tables are made for 100 columns where there is no terminal to ask, as in a log file.
out = Console() if sys.stdout.isatty() else Console(width=100)


class Bar(Progress):
    """Draws one bar per stage on standard error; quiet where that is no terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def start(self, label: str, total: int, unit: str) -> None:
        """Draw a new bar."""
        self._bars.start()
        self._stage = self._bars.add_task(label, total=total, unit=unit)

    def advance(self, count: int) -> None:
        """Move it on."""
        self._bars.advance(self._stage, count)

    def finish(self) -> None:
        """Leave it as it is."""
        self._bars.stop_task(self._stage)
        self._bars.stop()


def errors_named(command: F) -> F:
    """End a command with one line on standard error, and status 1, on the library's errors."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except BandanaError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)

    return run  # type: ignore[return-value]


def by_table(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Turn repeated ``table=value`` options into a dictionary."""
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise click.BadParameter(f"{value!r} is not of the form table=value")
        if name in pairs:
            raise click.BadParameter(f"table {name!r} is given twice")
        pairs[name] = rest
    return pairs
