"""Write a table of a store back to a file: rows in the order of their ids, updates included."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

import bandana_kv
from bandana_kv.tools.console import Bar, end_as_interrupted, errors_named, json_option, out
from bandana_kv.units import size_text

__all__ = ["main"]


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--table", required=True, help="Its name.")
@click.option(
    "--out",
    "saved",
    type=click.Path(path_type=Path),
    required=True,
    help="The file, a .npy, .safetensors or .parquet.",
)
@click.option("--version", type=click.IntRange(1), help="That is kept.  [default: the current]")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@json_option
@errors_named
def main(
    directory: Path, table: str, saved: Path, version: int | None, force: bool, as_json: bool
) -> None:
    """Write TABLE of the store in DIRECTORY to a file, rows in the order of their ids.

    A .npy is an array (rows, dim), a .safetensors a tensor with the name of the table, a .parquet
    has columns id and values. The keys of a table that has some are beside them: a tensor
    TABLE.keys, a column key; a .npy has no room for them.

    Every block is verified. The file is there when all of it is, or not at all. Processes may go on
    serving, loading and updating.
    """
    end_as_interrupted()
    with Bar() as progress:
        done = bandana_kv.export(
            directory, table, saved, version, overwrite=force, progress=progress
        )
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(done), indent=1))
        return
    beside = f", with keys of {done.keys}" if done.keys else ""
    out.print(
        f"{saved}: {done.rows:,} rows of {done.dim} {done.dtype}, {size_text(done.bytes)}, of "
        f"{table} in version {done.version}{beside}",
        soft_wrap=True,
        highlight=False,
    )


if __name__ == "__main__":
    main()
