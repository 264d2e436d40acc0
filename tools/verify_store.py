"""Check a store offline: manifests, placements, every block; and write bad blocks anew."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec

import bandana_kv
from bandana_kv.adapters.rows import KEY_CODECS, open_rows
from bandana_kv.care.verification import Report
from bandana_kv.disk import manifest
from bandana_kv.rows.files import open_rows as open_file
from bandana_kv.rows.source import FileRows, Source
from bandana_kv.tools.console import Bar, by_table, errors_named, out

__all__ = ["main"]


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--repair", is_flag=True, help="Write bad blocks anew, from one of the sources.")
@click.option(
    "--table",
    "--from-npy",
    "files",
    metavar="NAME=ROWS.npy",
    multiple=True,
    callback=by_table,
    help="The rows that a table was loaded from. Repeat for more tables.",
)
@click.option(
    "--from-rocksdb", type=click.Path(path_type=Path), help="A database with one row a key."
)
@click.option(
    "--from-lmdb", type=click.Path(path_type=Path), help="An environment with one row a key."
)
@click.option("--key", default="uint64-be", show_default=True, type=click.Choice(list(KEY_CODECS)))
@click.option("--inner", help="The column family or the sub-database.")
@click.option("--dtype", help="Of the numbers in a value, such as >f4.  [default: the table's]")
@click.option("--readers", type=click.IntRange(1), help="Reads in flight.")
@errors_named
def main(
    directory: Path,
    as_json: bool,
    repair: bool,
    files: dict[str, str],
    from_rocksdb: Path | None,
    from_lmdb: Path | None,
    key: str,
    inner: str | None,
    dtype: str | None,
    readers: int | None,
) -> None:
    """Check the store in DIRECTORY; the status is 1 if anything is bad.

    Nothing is written without --repair. Processes may go on serving from the store; none may
    load into it meanwhile.
    """
    engines = {"rocksdb": from_rocksdb, "lmdb": from_lmdb}
    named = [(name, path) for name, path in engines.items() if path is not None]
    if repair != (len(named) + bool(files) == 1):
        raise click.UsageError(
            "--repair goes with one of --table (--from-npy), --from-rocksdb and --from-lmdb"
        )
    with Bar() as progress, ExitStack() as stack:
        if repair:
            source = _source(stack, directory, files, named, key, inner, dtype)
            report = bandana_kv.repair(directory, source, readers=readers, progress=progress)
        else:
            report = bandana_kv.verify(directory, readers=readers, progress=progress)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=1))
    else:
        _show(directory, report)
    sys.exit(0 if report.sound else 1)


def _source(
    stack: ExitStack,
    directory: Path,
    files: dict[str, str],
    named: list[tuple[str, Path]],
    key: str,
    inner: str | None,
    dtype: str | None,
) -> dict[str, Source]:
    """Return where the rows of each table come from."""
    tables = manifest.read_current(directory).tables
    if files:
        opened = {name: stack.enter_context(open_file(name, path)) for name, path in files.items()}
        rows = FileRows(opened)
        return dict.fromkeys(files, rows)
    engine, path = named[0]
    return {
        name: stack.enter_context(
            open_rows(engine, path, key=key, dtype=dtype or table.dtype, inner=inner)
        )
        for name, table in tables.items()
    }


def _show(directory: Path, report: Report) -> None:
    for finding in report.findings:
        out.print(f"bad {finding.kind}: {finding.message}", markup=False, soft_wrap=True)
    if report.problems > len(report.findings):
        out.print(f"... and {report.problems - len(report.findings)} more")
    if report.repaired_blocks:
        out.print(f"{report.repaired_blocks} blocks were written anew")
    versions = ", ".join(map(str, report.versions)) or "none"
    state = "sound" if report.sound else f"{report.problems} problems"
    out.print(
        f"{directory}: {state}; versions {versions}, {report.tables} tables, "
        f"{report.blocks} blocks, {report.bad_blocks} of them bad",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


if __name__ == "__main__":
    main()
