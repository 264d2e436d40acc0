"""Replace rows of a table that is served: ids and rows in, durable on return."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

import bandana_kv
from bandana_kv.errors import InputError
from bandana_kv.tools.console import errors_named, out

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
@errors_named
def main(directory: Path, table: str, ids_path: Path, rows_path: Path, flush: bool) -> None:
    """Replace rows of TABLE in the store in DIRECTORY.

    Up to 65,536 rows at once are replaced all or none. Processes that serve the store follow with
    their next refresh; one that updates rows itself must do all of it.
    """
    ids, rows = _read(ids_path), _read(rows_path)
    if ids.ndim != 1 or rows.ndim != 2 or len(ids) != len(rows):
        raise InputError(
            f"{ids_path} is {ids.shape} and {rows_path} is {rows.shape}: not (n,) and (n, dim)"
        )
    with bandana_kv.open(directory, cache_bytes=0) as store:
        for first in range(0, len(ids), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            store.update(table, ids[part], rows[part])
        if flush:
            store.flush()
    out.print(f"{directory}: {len(ids)} rows of {table} are new")


def _read(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error})") from error
    return array


if __name__ == "__main__":
    main()
