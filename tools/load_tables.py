"""Load tables into a store: rows and access logs in, a new version out."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import click

import bandana_kv
from bandana_kv import Rows
from bandana_kv.cache.policy import Rule
from bandana_kv.codecs import codec_names
from bandana_kv.device.advice import DEFAULT_DEPTH, NO_PROFILE, PROFILE_FILE
from bandana_kv.logs.options import LogOptions
from bandana_kv.placement import methods
from bandana_kv.plan import Plan
from bandana_kv.rows.files import FORMS, RowSource, open_rows
from bandana_kv.rows.key_file import read_keys
from bandana_kv.tools.console import (
    Bar,
    adapter_option,
    by_table,
    errors_named,
    json_option,
    note,
    out,
)
from bandana_kv.tools.engine_rows import ENGINE_FORM, rows_named
from bandana_kv.tools.logs import log_options, read_logs

__all__ = ["main"]


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--table",
    "tables",
    metavar="NAME=ROWS",
    multiple=True,
    required=True,
    callback=by_table,
    help=f"A table and its rows, (rows, dim): {FORMS}; or {ENGINE_FORM}. Repeat for more tables.",
)
@click.option(
    "--log",
    "logs",
    metavar="NAME=LOG",
    multiple=True,
    callback=by_table,
    help="The table's access log: .npz, .parquet, .csv or .txt.",
)
@click.option(
    "--keys",
    "key_files",
    metavar="NAME=KEYS",
    multiple=True,
    callback=by_table,
    help="What the table is asked by, a key for each row: .npy, or text with one a line. The "
    "table's log then has keys, too.  [default: a source's column of keys, else row numbers]",
)
@click.option(
    "--store-as",
    "forms",
    metavar="[NAME=]CODEC",
    multiple=True,
    help=f"How rows are stored, of all tables or of one: {', '.join(codec_names())}.  "
    "[default: as they are]",
)
@adapter_option
@click.option("--placement", default="shp", show_default=True, help=", ".join(methods()))
@click.option(
    "--plan", "planned", type=click.Path(path_type=Path), help="What `bandana-kv plan` made."
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    help="What `bandana-kv profile` found.  [default: what the store was loaded with]",
)
@click.option(
    "--replicate",
    default=0.0,
    show_default=True,
    help="Extra blocks / blocks, for second copies of rows.",
)
@click.option(
    "--admission",
    type=click.Choice(get_args(Rule)),
    help="LRU, and which neighbours enter DRAM.  [default: simulation on the log decides]",
)
@click.option("--threshold", type=int, help="For --admission threshold: lookups in the log.")
@click.option("--seed", default=0, show_default=True, help="Of placement and simulation.")
@click.option("--keep", default=2, show_default=True, help="Versions that stay.")
@json_option
@log_options
@errors_named
def main(
    directory: Path,
    tables: dict[str, str],
    logs: dict[str, str],
    key_files: dict[str, str],
    forms: tuple[str, ...],
    adapter: str,
    placement: str,
    planned: Path | None,
    profile: Path | None,
    replicate: float,
    admission: str | None,
    threshold: int | None,
    seed: int,
    keep: int,
    as_json: bool,
    how: LogOptions,
) -> None:
    """Load tables into the store in DIRECTORY as a new version, and switch to it.

    Tables of the store that are not named stay as they are. If anything fails, or this
    command is stopped, the version that was served before goes on being served.
    """
    with ExitStack() as stack, Bar() as progress:
        rows = {name: rows_named(stack, name, said) for name, said in tables.items()}
        for name, path in key_files.items():
            if name not in rows:
                raise click.UsageError(f"--keys names table {name!r}, which is not loaded")
            rows[name] = Rows(rows[name].values, keys=read_keys(Path(path)))
        keys = {name: _keys_of(name, rows[name]) for name in logs if name in rows}
        read = read_logs(logs, how, keys)
        version = bandana_kv.load(
            directory,
            rows,
            read,
            store_as=_by_table(forms, tables),
            adapter=adapter,
            placement=placement,
            plan=None if planned is None else Plan.read(planned),
            profile=profile,
            replicate=replicate,
            admission=admission,
            threshold=threshold,
            seed=seed,
            keep=keep,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps({"version": version, "tables": list(tables)}))
    else:
        out.print(f"{directory}: version {version} is served, with {', '.join(tables)} new")
    if not (directory / PROFILE_FILE).exists():
        note(NO_PROFILE.format(directory, DEFAULT_DEPTH))


def _keys_of(name: str, rows: Rows) -> object:
    """Return the keys of a table, those that its rows bring included; None: it has none."""
    if rows.keys is not None:
        return rows.keys
    if isinstance(rows.values, RowSource):
        return rows.values.keys
    with open_rows(name, rows.values) as source:
        return source.keys


def _by_table(forms: tuple[str, ...], tables: dict[str, str]) -> dict[str, str]:
    """Return the codec of each table of which one is said; what is said of one goes before."""
    said = [form.rpartition("=") for form in forms]
    for_all = [codec for _, named, codec in said if not named]
    if len(for_all) > 1:
        raise click.UsageError(f"--store-as is said for all tables as {' and '.join(for_all)}")
    return {name: codec for codec in for_all for name in tables} | {
        name: codec for name, named, codec in said if named
    }


if __name__ == "__main__":
    main()
