"""Plan the cache: access logs and a DRAM budget in, a plan, a table and a picture out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE
from rich.table import Table

from bandana_kv.cache.state import cache_bytes_of
from bandana_kv.errors import InputError
from bandana_kv.logs.options import LogOptions
from bandana_kv.plan import Choice, Plan, choose_plan
from bandana_kv.tools.console import (
    Bar,
    errors_named,
    json_option,
    out,
    shapes,
    size,
    table_options,
)
from bandana_kv.tools.logs import keys_of_tables, log_options, read_logs, rows_by_keys
from bandana_kv.tools.pictures import pyplot
from bandana_kv.units import parse_size

__all__ = ["main", "parse_size"]

_PICTURES = (".png", ".pdf", ".svg")
# Told apart in print, too.
_COLORS = ("#d1495b", "#2e6f9e", "#3c8d5a", "#b07d2b", "#6b4e90", "#4a4a4a")
_STYLES = (("-", "o"), ("--", "s"), ("-.", "D"), (":", "^"))


@click.command()
@table_options
@click.option("--cache-bytes", required=True, callback=size, help="DRAM for all, as in 64MiB.")
@click.option(
    "--rows-per-block",
    type=click.IntRange(min=1),
    help="Rows that share a block.  [default: what fits 4 KiB]",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of all samples."
)
@click.option("--out", "saved", type=Path, required=True, help="Where the plan goes, as JSON.")
@click.option("--picture", type=Path, help="Draw block reads against DRAM: .png, .pdf or .svg.")
@json_option
@log_options
@errors_named
def main(
    logs: dict[str, str],
    tables: dict[str, str],
    key_files: dict[str, str],
    row_bytes: dict[str, int],
    rows: dict[str, int],
    cache_bytes: int,
    rows_per_block: int | None,
    seed: int,
    saved: Path,
    picture: Path | None,
    as_json: bool,
    how: LogOptions,
) -> None:
    """Share DRAM among tables, and choose each one's placement and cache policy by simulation.

    Learns from the logs alone; logs in order of time show what drifts. Load with the plan by
    `bandana-kv load --plan`, or bandana_kv.load(..., plan=Plan.read(path)).
    """
    _check_outputs(saved, picture)
    keys = keys_of_tables(logs, tables, key_files)
    read = read_logs(logs, how, keys)
    found = shapes(read, tables, row_bytes, rows_by_keys(keys) | rows)
    begun = time.perf_counter()
    with Bar() as progress:
        plan = choose_plan(
            found, read, cache_bytes, rows_per_block=rows_per_block, seed=seed, progress=progress
        )
    seconds = time.perf_counter() - begun
    plan.write(saved)
    if picture is not None:
        _draw(picture, plan, found)
    if as_json:
        click.echo(saved.read_text(), nl=False)
        return
    _print(plan, seconds)
    for path in (saved, picture):
        if path is not None:
            out.print(f"wrote {path}")


def _check_outputs(saved: Path, picture: Path | None) -> None:
    """Refuse before minutes of work what would fail after them."""
    for path in (saved, picture):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"{path}: there is no directory {path.parent}")
    if picture is not None:
        if picture.suffix.lower() not in _PICTURES:
            raise InputError(f"{picture}: a picture ends in {', '.join(_PICTURES)}")
        pyplot()


def _mib(number: float) -> str:
    return f"{number / (1 << 20):,.2f} MiB"


def _print(plan: Plan, seconds: float) -> None:
    lookups = sum(table.lookups for table in plan.tables.values())
    table = Table(
        box=SIMPLE,
        title_justify="left",
        title=f"{len(plan.tables)} tables, {lookups:,} lookups, {_mib(plan.cache_bytes)} of DRAM; "
        f"planned in {seconds:.1f} s",
    )
    for number, column in enumerate(
        ("table", "DRAM", "placement, policy", "reads/lookup", "gain", "x bound", "runner-up")
    ):
        table.add_column(column, justify="left" if number in {0, 2, 6} else "right")
    for name, of_table in plan.tables.items():
        if of_table.choice is not None:
            table.add_row(name, *_cells(of_table.choice, plan.cache_bytes))
    out.print(table)
    out.print(
        "reads/lookup: block reads predicted from the latest fifth of each log, and the least and "
        "most of its parts; gain: over LRU of rows in arbitrary order; x bound: times what no "
        "policy can beat with these blocks; won: the choice beat its runner-up in that share of "
        "the parts."
    )


def _cells(choice: Choice, budget: int) -> tuple[str, ...]:
    """Return a table's line, each cell of two: what, and more about it."""
    predicted = choice.predicted
    resident = f" without {choice.resident_rows:,} resident rows" if choice.resident_rows else ""
    rival, its_reads = choice.runner_up
    return (
        f"{_mib(choice.cache_bytes)}\n{choice.cache_bytes / max(1, budget):.1%}",
        f"{choice.placement}{resident}\n{choice.policy}",
        f"{predicted.reads_per_lookup:.4f}\n{predicted.low:.4f}-{predicted.high:.4f}",
        _ratio(predicted.baseline, predicted.reads_per_lookup),
        _ratio(predicted.reads_per_lookup, predicted.lower_bound),
        f"{rival}\n{its_reads:.4f}, won {choice.confidence:.0%}",
    )


def _ratio(number: float, over: float) -> str:
    return f"{number / over:.2f}" if over else "-"


def _draw(path: Path, plan: Plan, found: Mapping[str, tuple[int, int]]) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, (name, table) in enumerate(plan.tables.items()):
        rows, row_bytes = found[name]
        color = _COLORS[number % len(_COLORS)]
        style, marker = _STYLES[number % len(_STYLES)]
        mib = [
            cache_bytes_of(each.policy, each.capacity_rows, row_bytes, rows) / (1 << 20)
            for each in table.points
        ]
        reads = [each.reads_per_lookup for each in table.points]
        axes.plot(mib, reads, style, color=color, linewidth=1.3, label=name)
        if table.choice is not None:
            _mark(axes, table.choice, color, marker)
    grey = {"color": "#555555", "linestyle": "none"}
    axes.plot([], [], marker="o", label="chosen, maybe by another placement", **grey)
    axes.plot([], [], marker="_", markersize=11, label="its baseline and lower bound", **grey)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("MiB of DRAM for a table")
    axes.set_ylabel("4 KiB block reads per lookup")
    axes.set_title(f"{_mib(plan.cache_bytes)} of DRAM shared out", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _mark(axes: Any, choice: Choice, color: str, marker: str) -> None:
    """Mark the chosen point between the baseline and the lower bound for as much DRAM."""
    mib, predicted = max(choice.cache_bytes, 1) / (1 << 20), choice.predicted
    ends = [predicted.baseline, predicted.lower_bound]
    axes.plot([mib, mib], ends, color=color, linewidth=0.6, linestyle=":")
    axes.plot([mib, mib], ends, "_", color=color, markersize=11, markeredgewidth=1.6)
    axes.plot([mib], [predicted.reads_per_lookup], marker, color=color, markersize=7)


if __name__ == "__main__":
    main()
