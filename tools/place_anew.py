"""Change where a table's rows lie in a store, by a placement in a file: only what differs moves."""

from __future__ import annotations

import json
from pathlib import Path

import click

import bandana_kv
from bandana_kv.logs.options import LogOptions
from bandana_kv.placement import Placement
from bandana_kv.tools.console import Bar, errors_named, json_option, out
from bandana_kv.tools.logs import NamedPath, log_options, named_path, read_named

__all__ = ["main"]


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--table", required=True, help="Its name.")
@click.option(
    "--placement",
    "placement_path",
    type=click.Path(path_type=Path),
    required=True,
    help="A file that Placement.save wrote, `bandana-kv place` for example.",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    callback=named_path,
    help="The access log that the placement was learnt from, for the heat of rows.",
)
@json_option
@log_options
@errors_named
def main(
    directory: Path,
    table: str,
    placement_path: Path,
    log: NamedPath | None,
    as_json: bool,
    how: LogOptions,
) -> None:
    """Place the rows of one table of the store in DIRECTORY anew.

    Processes that serve from the store follow at their next refresh. One that updates rows keeps
    this command out: there, call place_anew of the store itself.
    """
    placement = Placement.load(placement_path)
    learnt_from = None if log is None else read_named(log, how, table)
    with bandana_kv.open(directory, cache_bytes=0) as store, Bar() as bar:
        blocks = store.placement(table).blocks
        done = store.place_anew(table, placement, log=learnt_from, progress=bar)
    if as_json:
        click.echo(json.dumps(done._asdict() | {"blocks": blocks}))
        return
    out.print(
        f"version {done.version}: {done.blocks_rewritten:,} of {blocks:,} blocks of {table} were "
        f"written, {done.bytes_written:,} bytes with the index",
        markup=False,
        highlight=False,
    )


if __name__ == "__main__":
    main()
