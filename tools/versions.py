"""The versions that a store keeps: list them, roll back to one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

import bandana_kv
from bandana_kv.tools.console import errors_named, out

__all__ = ["main"]


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


if __name__ == "__main__":
    main()
