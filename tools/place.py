"""Place the rows of a table: an access log in, a placement and its fanout out."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table

from bandana_kv import AccessLog
from bandana_kv.logs.options import LogOptions
from bandana_kv.placement import Placement, methods, place
from bandana_kv.placement.measure import blocks_per_request
from bandana_kv.placement.registry import QUALITIES
from bandana_kv.placement.replication import replicate
from bandana_kv.tools.console import Bar, errors_named, json_option, out
from bandana_kv.tools.logs import NamedPath, log_options, named_path, read_named
from bandana_kv.tools.pictures import pyplot
from bandana_kv.tools.place_files import InFiles, files_options, place_files

__all__ = ["main"]


@click.command()
@click.argument("files", metavar="[LOGFILES]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    callback=named_path,
    help=".npz, .parquet, .csv or .txt.",
)
@click.option("--rows", type=int, help="Rows of the table.  [default: largest id in the log + 1]")
@click.option("--rows-per-block", default=31, show_default=True, help="31 of 128 bytes fit 4 KiB.")
@click.option(
    "--placement", "--method", "method", default="shp", show_default=True, help=", ".join(methods())
)
@click.option("--quality", default="balanced", show_default=True, type=click.Choice(QUALITIES))
@click.option(
    "--table",
    "--values",
    "rows_of",
    type=click.Path(path_type=Path),
    callback=named_path,
    help="For methods that look at rows: a .npy.",
)
@click.option("--replicate", "share", default=0.0, show_default=True, help="Extra blocks / blocks.")
@click.option("--max-pins", type=int, help="Learn from a sample of so many lookups at most.")
@click.option("--train", default=0.7, show_default=True, help="Share of requests to learn from.")
@click.option("--ordered", is_flag=True, help="The log is in order of time: learn on its start.")
@click.option("--seed", default=0, show_default=True, help="Of split and placement.")
@click.option("--out", "saved", type=Path, required=True, help="Where the placement goes.")
@click.option("--picture", type=Path, help="Draw blocks per request before and after, as .png.")
@files_options
@json_option
@log_options
@errors_named
def main(
    files: tuple[Path, ...],
    log: NamedPath | None,
    rows: int | None,
    rows_per_block: int,
    method: str,
    quality: str,
    rows_of: NamedPath | None,
    share: float,
    max_pins: int | None,
    train: float,
    ordered: bool,
    seed: int,
    saved: Path,
    picture: Path | None,
    as_json: bool,
    how: LogOptions,
    in_files: InFiles,
) -> None:
    """Learn a placement from part of a log, and show what the rest of the log makes of it.

    Load it with bandana_kv.load(..., placement={table: Placement.load(path)}).

    A log in several LOGFILES, or in directories of them, is never held as a whole: each worker
    keeps to its memory, by method shp, in this process or with --ray on those of a cluster.
    """
    paths = ([] if log is None else [log.path]) + list(files)
    if not paths:
        raise click.UsageError("Missing option '--log', or the files of a log.")
    if in_files.asked_for or len(paths) > 1:
        held = {
            f"--method {method}": method != "shp",
            "--table": rows_of is not None,
            "--replicate": share != 0.0,
            "--max-pins": max_pins is not None,
            "--ordered": ordered,
            "--picture": picture is not None,
        }
        for option in (option for option, given in held.items() if given):
            raise click.UsageError(f"{option} is for a log in one file, held by this process")
        place_files(
            paths, in_files, rows, rows_per_block, quality, train, seed, saved, as_json, how
        )
        return
    if log is None:
        log = NamedPath(None, paths[0])
    if picture is not None:
        pyplot()  # said before minutes of work, should it be missing
    read = read_named(log, how, None if rows_of is None else rows_of.table)
    learn, test = read.split(train=train, ordered=ordered, seed=seed)
    table_rows = read.rows if rows is None else rows
    bar = Bar()
    before = place(learn, table_rows, rows_per_block, "shuffled", seed=seed)
    begun = time.perf_counter()
    after = place(
        learn,
        table_rows,
        rows_per_block,
        method,
        quality=quality,
        seed=seed,
        max_pins=max_pins,
        values=None if rows_of is None else rows_of.path,
        progress=bar,
    )
    if share:
        after = replicate(learn, after, share, quality=quality, seed=seed, progress=bar)
    seconds = time.perf_counter() - begun
    after.save(saved)
    touched = {
        name: (blocks_per_request(learn, placement), blocks_per_request(test, placement))
        for name, placement in (("shuffled", before), (method, after))
    }
    if picture is not None:
        _draw(picture, log.path.stem, {name: held_out for name, (_, held_out) in touched.items()})
    if as_json:
        click.echo(json.dumps(_summary(read, after, touched), indent=1))
        return
    _print(read, after, touched, seconds)
    for path in (saved, picture):
        if path is not None:
            out.print(f"wrote {path}")


def _summary(
    log: AccessLog,
    placement: Placement,
    touched: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> dict[str, object]:
    return {
        "requests": log.requests,
        "rows": placement.rows,
        "blocks": placement.blocks,
        "rows_per_block": placement.rows_per_block,
        "copies": 0 if placement.replicas is None else int(placement.replicas.size),
        "learned_from": placement.learned_from,
        "blocks_per_request": {
            name: {"learned": _mean(learned), "held_out": _mean(held_out)}
            for name, (learned, held_out) in touched.items()
        },
    }


def _print(
    log: AccessLog,
    placement: Placement,
    touched: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    seconds: float,
) -> None:
    copies = 0 if placement.replicas is None else placement.replicas.size
    table = Table(
        box=SIMPLE,
        title_justify="left",
        title=f"{log.requests:,} requests, {placement.rows:,} rows in {placement.blocks:,} blocks "
        f"of {placement.rows_per_block}, {copies:,} of them twice; placed in {seconds:.1f} s"
        + (
            ""
            if placement.learned_from == 1
            else f" from {placement.learned_from:.1%} of the lookups"
        ),
    )
    for column in ("placement", "blocks a request, learned from", "held out", "p99 held out"):
        table.add_column(column, justify="left" if column == "placement" else "right")
    for name, (learned, held_out) in touched.items():
        p99 = np.percentile(held_out, 99) if held_out.size else 0
        table.add_row(name, f"{_mean(learned):.3f}", f"{_mean(held_out):.3f}", f"{p99:.0f}")
    out.print(table)


def _mean(numbers: NDArray[np.int64]) -> float:
    return float(numbers.mean()) if numbers.size else 0.0


def _draw(path: Path, name: str, touched: dict[str, NDArray[np.int64]]) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for (label, blocks), color in zip(touched.items(), ("#9aa5b1", "#d1495b"), strict=False):
        share = np.arange(1, blocks.size + 1) / max(1, blocks.size)
        axes.step(np.sort(blocks), share, color=color, label=f"{label}: {_mean(blocks):.2f} mean")
    axes.set_xscale("log")
    axes.set_xlabel("blocks that a held-out request touches")
    axes.set_ylabel("share of requests")
    axes.set_title(name, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
