"""The versions that a store keeps: list them, roll back to one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.table import Table

import bandana_kv
from bandana_kv.care.versions import Details, details
from bandana_kv.tools.console import errors_named, out
from bandana_kv.units import size_text

__all__ = ["main", "versions"]

# What --rollback without a number stands for; there is no version of that number.
_BEFORE = 0


@click.group()
def main() -> None:
    """List the versions that a store keeps, or roll back to one of them."""


@main.command("list")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
@errors_named
def list_versions(directory: Path, as_json: bool) -> None:
    """List the versions that the store in DIRECTORY keeps, oldest first."""
    found = bandana_kv.versions(directory)
    if as_json:
        click.echo(json.dumps({"versions": [asdict(version) for version in found]}))
        return
    for version in found:
        current = "current" if version.current else "       "
        tables = ", ".join(version.tables)
        out.print(f"{version.number}  {current}  {version.created}  {tables}", markup=False)


@main.command("rollback")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--to", "version", type=int, help="A version.  [default: the one before]")
@errors_named
def roll_back(directory: Path, version: int | None) -> None:
    """Make an earlier version of the store in DIRECTORY the current one again.

    Running processes follow when they refresh, or by themselves where they watch.
    """
    version = bandana_kv.rollback(directory, version)
    out.print(f"{directory}: version {version} is current")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--rollback",
    "version",
    type=click.IntRange(_BEFORE),
    is_flag=False,
    flag_value=_BEFORE,
    metavar="[N]",
    help="First make version N the current one; without N, the one before.",
)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@errors_named
def versions(directory: Path, version: int | None, as_json: bool) -> None:
    """List the versions that the store in DIRECTORY keeps, oldest first, or go back to one.

    Running processes follow when they refresh, or by themselves where they watch. Journal: rows
    that were updated, and are not known to be in blocks.
    """
    if version is not None:
        bandana_kv.rollback(directory, None if version == _BEFORE else version)
    found = details(directory)
    if as_json:
        click.echo(json.dumps({"versions": [asdict(each) for each in found]}))
    else:
        out.print(_table(found))


def _table(found: list[Details]) -> Table:
    table = Table(box=SIMPLE)
    for column in ("version", "", "created", "identity", "tables", "rows", "blocks", "journal"):
        right = column in {"version", "rows", "blocks", "journal"}
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "tables")
    for each in found:
        table.add_row(
            str(each.number),
            "current" if each.current else "",
            each.created,
            each.identity,
            ", ".join(each.tables),
            f"{each.rows:,}",
            size_text(each.bytes),
            f"{each.journal:,}",
        )
    return table


if __name__ == "__main__":
    main()
