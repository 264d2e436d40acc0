"""Replace rows of a table that is served: ids and rows in, durable on return."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

import bandana_kv
from bandana_kv.errors import BandanaError, InputError
from bandana_kv.serve.arguments import check_update_ids, checked_ids, checked_numbers
from bandana_kv.tools.console import errors_named, json_option, out

__all__ = ["main"]

_ROWS_AT_ONCE = 1 << 16


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--table", required=True, help="Its name.")
@click.option(
    "--ids", "ids_path", type=click.Path(path_type=Path), required=True, help="A .npy, (n,)."
)
@click.option(
    "--rows", "rows_path", type=click.Path(path_type=Path), required=True, help="A .npy, (n, dim)."
)
@click.option("--flush", is_flag=True, help="Write the blocks now, not when many rows changed.")
@json_option
@errors_named
def main(
    directory: Path, table: str, ids_path: Path, rows_path: Path, flush: bool, as_json: bool
) -> None:
    """Replace rows of TABLE in the store in DIRECTORY.

    All ids and rows are checked before anything is written; then 65,536 rows at once are replaced
    all or none, and an error says how many were. Processes that serve the store follow with their
    next refresh; one that updates rows itself must do all of it.
    """
    ids, rows = _read(ids_path), _read(rows_path)
    if ids.ndim != 1 or rows.ndim != 2 or len(ids) != len(rows):
        raise InputError(
            f"{ids_path} is {ids.shape} and {rows_path} is {rows.shape}: not (n,) and (n, dim)"
        )
    with bandana_kv.open(directory, cache_bytes=0) as store:
        parts = [slice(first, first + _ROWS_AT_ONCE) for first in range(0, len(ids), _ROWS_AT_ONCE)]
        _check(store, table, ids, rows, parts)
        for part in parts:
            try:
                store.update(table, ids[part], rows[part])
            except (BandanaError, OSError) as error:
                if not part.start:
                    raise
                click.echo(
                    f"{directory}: the first {part.start} rows were replaced, and no others",
                    err=True,
                )
                raise error from None
        if flush:
            store.flush()
    if as_json:
        click.echo(json.dumps({"table": table, "rows": len(ids), "flushed": flush}))
    else:
        out.print(f"{directory}: {len(ids)} rows of {table} are new")


def _check(
    store: bandana_kv.EmbeddingStore,
    table: str,
    ids: np.ndarray,
    rows: np.ndarray,
    parts: list[slice],
) -> None:
    """See that the table can take all of it; raises as :meth:`bandana_kv.EmbeddingStore.update`."""
    (table_rows, dim), dtype = store.shape(table), store.dtype(table)
    checked = checked_ids(table, ids)
    check_update_ids(table, table_rows, checked)
    for part in parts:
        checked_numbers(table, checked[part], dim, dtype, rows[part])


def _read(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error})") from error
    return array


if __name__ == "__main__":
    main()
