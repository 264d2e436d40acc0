"""Move a table out of RocksDB or LMDB with a row per key: resumable, every row compared."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

from bandana_kv.adapters.rows import ENGINES, KEY_CODECS, open_rows
from bandana_kv.logs.options import LogOptions
from bandana_kv.migration import Migrated, migrate
from bandana_kv.plan import Plan
from bandana_kv.tools.console import Bar, adapter_option, errors_named, json_option, out
from bandana_kv.tools.logs import NamedPath, log_options, named_path, read_named
from bandana_kv.units import size_text

__all__ = ["main"]


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--from", "engine", required=True, type=click.Choice(list(ENGINES)), help="Of SOURCE."
)
@click.option("--table", required=True, help="Its name in the store.")
@click.option("--column-family", help="Of RocksDB.  [default: default]")
@click.option("--database", help="A named one of LMDB.  [default: the main one]")
@click.option("--key", default="uint64-be", show_default=True, type=click.Choice(list(KEY_CODECS)))
@click.option("--prefix", help="What stands before it, such as emb:user: for emb:user:123.")
@click.option("--prefix-hex", help="The same in hexadecimal.")
@click.option("--dtype", default="float32", show_default=True, help="Of a value; >f4: big-endian.")
@click.option("--dim", type=click.IntRange(1), help="Numbers of a row.  [default: the first's]")
@click.option("--rows", type=click.IntRange(1), help="Of the table.  [default: largest id + 1]")
@click.option(
    "--missing",
    default="error",
    show_default=True,
    type=click.Choice(["error", "zeros"]),
    help="For ids without a row.",
)
@click.option("--skip-others", is_flag=True, help="Skip and count keys that are of no id.")
@click.option(
    "--log", type=click.Path(path_type=Path), callback=named_path, help="The table's access log."
)
@adapter_option
@click.option(
    "--plan", "planned", type=click.Path(path_type=Path), help="What `bandana-kv plan` made."
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    help="What `bandana-kv profile` found.  [default: what the store was loaded with]",
)
@click.option("--keep", default=2, show_default=True, help="Versions that stay.")
@click.option("--restart", is_flag=True, help="Read all anew, whatever was brought in before.")
@json_option
@log_options
@errors_named
def main(
    source: Path,
    store: Path,
    engine: str,
    table: str,
    column_family: str | None,
    database: str | None,
    key: str,
    prefix: str | None,
    prefix_hex: str | None,
    dtype: str,
    dim: int | None,
    rows: int | None,
    missing: str,
    skip_others: bool,
    log: NamedPath | None,
    adapter: str,
    planned: Path | None,
    profile: Path | None,
    keep: int,
    restart: bool,
    as_json: bool,
    how: LogOptions,
) -> None:
    """Move a table from SOURCE, a database with a row per key, into the store in STORE.

    SOURCE is opened read-only. If this command was stopped or killed, the same command goes on
    where it was. The version that was served before is served until every row of the new one was
    compared with SOURCE.
    """
    inner = _inner(engine, column_family, database)
    before = _prefix(prefix, prefix_hex)
    read = None if log is None else read_named(log, how, table)
    plan = None if planned is None else Plan.read(planned)
    with (
        open_rows(engine, source, key=key, dtype=dtype, inner=inner, prefix=before) as opened,
        Bar() as progress,
    ):
        done = migrate(
            opened,
            store,
            table,
            log=read,
            adapter=adapter,
            plan=plan,
            profile=profile,
            rows=rows,
            dim=dim,
            missing=missing,
            skip_others=skip_others,
            restart=restart,
            keep=keep,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(done), indent=1))
    else:
        _show(store, done)


def _inner(engine: str, column_family: str | None, database: str | None) -> str | None:
    given = {"rocksdb": column_family, "lmdb": database}
    inner = given.pop(engine)
    if any(other is not None for other in given.values()):
        raise click.UsageError("--column-family is for RocksDB, --database for LMDB")
    return inner


def _prefix(text: str | None, in_hex: str | None) -> bytes:
    if text is not None and in_hex is not None:
        raise click.UsageError("--prefix and --prefix-hex say the same")
    try:
        return (text or "").encode() if in_hex is None else bytes.fromhex(in_hex)
    except ValueError as error:
        raise click.UsageError(f"--prefix-hex {in_hex}: {error}") from error


def _show(store: Path, done: Migrated) -> None:
    lines = [f"{store}: version {done.version} is served, with {done.table} new"]
    lines.append(f"{done.rows:,} rows of {done.dim} {done.dtype}, {size_text(done.bytes)}")
    lines.append(
        f"{done.read:,} from the source, {done.filled:,} zeros; {done.skipped:,} other keys"
    )
    if done.resumed_from:
        lines.append(f"{done.resumed_from:,} of them had come before it was resumed")
    lines.append(f"all compared: checksum {done.checksum_source} there, {done.checksum_store} here")
    spent = (done.extract_seconds, done.load_seconds, done.compare_seconds)
    lines.append("extracted in {:.1f} s, loaded in {:.1f} s, compared in {:.1f} s".format(*spent))
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main()
