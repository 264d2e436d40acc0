"""Show what a store holds, what it takes on disk, and how fast it wears its drive."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.box import SIMPLE
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table

import bandana_kv
from bandana_kv.care.inspection import Inspection, Rating, TableSummary, inspect
from bandana_kv.tools.console import errors_named, out, size
from bandana_kv.units import parse_size, size_text

__all__ = ["main"]


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--rating-dwpd", "dwpd", type=float, help="The drive's rating: drive writes per day.")
@click.option("--rating-tbw", "tbw", type=float, help="Or: terabytes written, in all.")
@click.option(
    "--warranty-years", default=5.0, show_default=True, help="For which --rating-dwpd is given."
)
@click.option(
    "--device-bytes",
    callback=size,
    metavar="SIZE",
    help="The drive's capacity, as 1.92TiB or bytes.  [default: the size of the file system]",
)
@click.option(
    "--set-budget",
    "budget",
    metavar="SIZE|none",
    help="First limit what loads and updates may write in 24 hours, as 50GiB; or lift that.",
)
@errors_named
def main(
    directory: Path,
    as_json: bool,
    dwpd: float | None,
    tbw: float | None,
    warranty_years: float,
    device_bytes: int | None,
    budget: str | None,
) -> None:
    """Show versions, tables, plan, space and wear of the store in DIRECTORY.

    Nothing is changed without --set-budget. Processes may be serving, loading or updating.
    """
    if dwpd is not None and tbw is not None:
        raise click.UsageError("give --rating-dwpd or --rating-tbw, and not both")
    rating = None if dwpd is tbw is None else Rating(tbw, dwpd, warranty_years)
    if budget is not None:
        limit = None if budget.strip().lower() == "none" else parse_size(budget)
        bandana_kv.set_write_budget(directory, limit)
    found = inspect(directory, rating=rating, device_bytes=device_bytes)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return
    _show_versions(found)
    _show_tables(found)
    _show_space(found)
    _show_wear(found)
    for version in found.versions:
        if version.damage:
            _say(f"damaged: {version.damage}")


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(title: str, *columns: str, right: str = "") -> Table:
    """Return an empty table; those of `columns` that `right` names are numbers."""
    table = Table(box=SIMPLE, title=title, title_justify="left")
    for column in columns:
        side: JustifyMethod = "right" if column in right.split(",") else "left"
        table.add_column(column, justify=side, overflow="fold")
    return table


def _show_versions(found: Inspection) -> None:
    table = _table("Versions", "version", "", "created", "tables", right="version")
    for version in found.versions:
        tables = "damaged" if version.damage else ", ".join(version.tables)
        state = "current" if version.current else ""
        table.add_row(str(version.number), state, version.created, escape(tables))
    out.print(table)


def _show_tables(found: Inspection) -> None:
    tables = _table(
        f"Tables of version {found.current}",
        *("table", "rows", "copies", "row", "blocks", "pages", "size", "engine", "segment"),
        right="rows,copies,blocks,pages,size,segment",
    )
    plans = _table(
        "Plan",
        *("table", "placement", "policy", "DRAM", "reads/lookup"),
        right="DRAM,reads/lookup",
    )
    for each in found.tables:
        tables.add_row(*_cells(each))
        plans.add_row(*_plan_cells(each))
    out.print(tables)
    out.print(plans)
    _show_losses(found)
    _show_keys(found)
    _say("DRAM, reads/lookup: as a plan chose and predicted; -: open(..., cache_bytes=) says it")


def _show_losses(found: Inspection) -> None:
    lossy = [(table, table.loss) for table in found.tables if table.loss is not None]
    if not lossy:
        return
    losses = _table(
        "What storing rows so has cost",
        *("table", "stored as", "most", "RMS", "mean cosine", "least cosine", "worst rows"),
        right="most,RMS,mean cosine,least cosine",
    )
    for table, loss in lossy:
        figures = (loss.max_error, loss.rms_error, loss.mean_cosine, loss.least_cosine)
        worst = ", ".join(map(str, loss.worst_rows[:3]))
        losses.add_row(escape(table.name), table.codec, *(f"{x:.6g}" for x in figures), worst)
    out.print(losses)


def _show_keys(found: Inspection) -> None:
    keyed = [table for table in found.tables if table.keys]
    if not keyed:
        return
    keys = _table(
        "Keys, but for what the journal has",
        *("table", "keys", "kind", "changed since the load", "room for"),
        right="keys,changed since the load,room for",
    )
    for table in keyed:
        counts = (f"{table.changed_keys:,}", f"{table.spare_rows:,}")
        keys.add_row(escape(table.name), f"{table.rows:,}", table.keys, *counts)
    out.print(keys)


def _cells(table: TableSummary) -> tuple[str, ...]:
    return (
        escape(table.name),
        f"{table.rows:,}",
        f"{table.copies:,}",
        f"{table.dim} {table.dtype}" + (f" as {table.codec}" if table.codec else ""),
        f"{table.blocks:,}",
        str(table.pages),
        size_text(table.block_bytes),
        escape(table.adapter),
        str(table.segment),
    )


def _plan_cells(table: TableSummary) -> tuple[str, ...]:
    chosen, more = table.chosen, len(table.policies) - 1
    return (
        escape(table.name),
        escape(table.placement),
        table.policies[0] + (f"; with more DRAM {more} others" if more else ""),
        size_text(chosen.cache_bytes) if chosen else "-",
        f"{chosen.predicted.reads_per_lookup:.4f}" if chosen else "-",
    )


def _show_space(found: Inspection) -> None:
    columns = ("segment", "engine", "on disk", "blocks in use", "used by")
    table = _table("Segments", *columns, right="segment,on disk,blocks in use")
    for each in found.segments:
        where = "" if each.owned in (True, None) else ", blocks in your own engine"
        used = "versions " + ", ".join(map(str, each.versions)) if each.versions else "none"
        engine = escape(each.adapter or "?") + where
        sizes = (size_text(each.disk_bytes), size_text(each.block_bytes))
        table.add_row(str(each.segment), engine, *sizes, used)
    out.print(table)
    space = found.space
    _say(
        f"on disk {size_text(space.disk_bytes)}, free {size_text(space.free_bytes)}; could be "
        f"freed: {size_text(space.other_versions_bytes)} by a load with keep=1, "
        f"{size_text(space.litter_bytes)} left by dead loads by any load\n"
        f"updates that are not yet in blocks: {size_text(space.journal_bytes)} of journal"
    )


def _show_wear(found: Inspection) -> None:
    wear = found.wear
    table = _table("Wear", "what", "figure", "from", right="figure")
    since = f"ledger of {wear.days:.1f} days"
    capacity = "given" if wear.device_bytes_given else "assumed: the file system is the drive"
    table.add_row("written, last 24 hours", size_text(wear.last_day_bytes), since)
    table.add_row("written a day, last 7 days", size_text(wear.week_bytes), since)
    table.add_row("written a day, mean", size_text(wear.mean_bytes), since)
    table.add_row("written in all", size_text(wear.total_bytes), since)
    table.add_row("of it measured", size_text(wear.measured_bytes), "by the kernel")
    handed_bytes = wear.total_bytes - wear.measured_bytes
    table.add_row("of it assumed", size_text(handed_bytes), "as handed to engines")
    table.add_row("capacity", size_text(wear.device_bytes), capacity)
    table.add_row(
        "drive writes per day",
        f"{wear.drive_writes_per_day:.2g}",
        "last 7 days / capacity; assumed: nobody else writes",
    )
    if wear.rated_bytes is not None:
        table.add_row("rated for, in all", size_text(wear.rated_bytes), "given")
        table.add_row(
            "years left",
            _years_text(wear.years_left),
            "at that rate; assumed: a new drive, no amplification inside",
        )
    if wear.budget_bytes is not None and wear.budget_left_bytes is not None:
        table.add_row("budget for 24 hours", size_text(wear.budget_bytes), "given")
        table.add_row("left of it", size_text(wear.budget_left_bytes), "ledger")
    out.print(table)
    if wear.damaged_lines:
        _say(f"{wear.damaged_lines} damaged lines of the ledger were left out")


def _years_text(years: float | None) -> str:
    if years is None:
        return "no writes"
    return f"{years:.1f}" if years < 100 else "over 100"


if __name__ == "__main__":
    main()
