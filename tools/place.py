"""Place the rows of a table: an access log in, a placement and its fanout out."""

from __future__ import annotations

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
from bandana_kv.tools.console import Bar, errors_named, out
from bandana_kv.tools.logs import log_options, read_log

__all__ = ["main"]


@click.command()
@click.option("--log", "log_path", type=Path, required=True, help=".npz, .parquet, .csv or .txt.")
@click.option("--rows", type=int, help="Rows of the table.  [default: largest id in the log + 1]")
@click.option("--rows-per-block", default=31, show_default=True, help="31 of 128 bytes fit 4 KiB.")
@click.option("--method", default="shp", show_default=True, help=", ".join(methods()))
@click.option("--quality", default="balanced", show_default=True, type=click.Choice(QUALITIES))
@click.option("--values", type=Path, help="The rows as .npy, for methods that look at them.")
@click.option("--replicate", "share", default=0.0, show_default=True, help="Extra blocks / blocks.")
@click.option("--max-pins", type=int, help="Learn from a sample of so many lookups at most.")
@click.option("--train", default=0.7, show_default=True, help="Share of requests to learn from.")
@click.option("--ordered", is_flag=True, help="The log is in order of time: learn on its start.")
@click.option("--seed", default=0, show_default=True, help="Of split and placement.")
@click.option("--out", "saved", type=Path, required=True, help="Where the placement goes.")
@click.option("--picture", type=Path, help="Draw blocks per request before and after, as .png.")
@log_options
@errors_named
def main(
    log_path: Path,
    rows: int | None,
    rows_per_block: int,
    method: str,
    quality: str,
    values: Path | None,
    share: float,
    max_pins: int | None,
    train: float,
    ordered: bool,
    seed: int,
    saved: Path,
    picture: Path | None,
    how: LogOptions,
) -> None:
    """Learn a placement from part of a log, and show what the rest of the log makes of it.

    Load it with bandana_kv.load(..., placement={table: Placement.load(path)}).
    """
    log = read_log(log_path, how)
    learn, test = log.split(train=train, ordered=ordered, seed=seed)
    table_rows = log.rows if rows is None else rows
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
        values=values,
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
    _print(log, after, touched, seconds)
    out.print(f"wrote {saved}")
    if picture is not None:
        _draw(picture, log_path.stem, {name: held_out for name, (_, held_out) in touched.items()})
        out.print(f"wrote {picture}")


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
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

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
