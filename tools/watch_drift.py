"""Watch a store's traffic for drift: recorded requests in, advice, metrics and a hook out."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec
from rich.box import SIMPLE
from rich.table import Table

from bandana_kv.care.drift import Advice, Watch
from bandana_kv.errors import BandanaError
from bandana_kv.tools.console import Bar, by_table, errors_named, out
from bandana_kv.units import parse_size, size_text

__all__ = ["main"]

_log = logging.getLogger("bandana_kv")


@click.command()
@click.argument("store", type=Path)
@click.option(
    "--log",
    "logs",
    metavar="NAME=RECORDING",
    multiple=True,
    required=True,
    callback=by_table,
    help="What store.record wrote, or an access log in order of time. Repeat for more tables.",
)
@click.option(
    "--cache-bytes",
    metavar="NAME=SIZE",
    multiple=True,
    callback=by_table,
    help="DRAM that a table is served with, as in 64MiB.  [default: as planned]",
)
@click.option("--once", is_flag=True, help="Look once, which is what happens without --interval.")
@click.option("--interval", type=click.IntRange(min=1), metavar="SECONDS", help="Look again.")
@click.option("--port", type=click.IntRange(0, 65535), help="Answer Prometheus there.")
@click.option("--hook", default="", metavar="COMMAND", help="Gets advice on stdin, as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each look.")
@errors_named
def main(
    store: Path,
    logs: dict[str, str],
    cache_bytes: dict[str, str],
    once: bool,
    interval: int | None,
    port: int | None,
    hook: str,
    as_json: bool,
) -> None:
    """Say whether a new plan or a new placement would pay, and for how many block writes.

    Changes nothing. The hook is run for each table about which something should be done.
    """
    if port is not None and interval is None:
        raise click.UsageError("--port is for as long as this looks again: give --interval, too")
    if once and interval is not None:
        raise click.UsageError("give --once or --interval, and not both")
    sizes = {table: parse_size(text) for table, text in cache_bytes.items()}
    watch = Watch(store, logs, cache_bytes=sizes, hook=shlex.split(hook))
    with contextlib.ExitStack() as stack:
        if port is not None:
            from bandana_kv.metrics.exporter import serve

            stack.enter_context(serve(port, watch))
        _look(watch, as_json)
        while interval is not None:
            time.sleep(interval)
            try:
                _look(watch, as_json)
            except (BandanaError, OSError) as error:
                # A store that is just being loaded, say: the next look may do.
                _log.warning("%s: cannot be looked at (%s)", store, error)


def _look(watch: Watch, as_json: bool) -> None:
    with Bar() as progress:
        advices = watch.look(progress)
    if as_json:
        sys.stdout.write(msgspec.json.encode(advices).decode() + "\n")
        sys.stdout.flush()
    else:
        _print(advices)


def _print(advices: Mapping[str, Advice]) -> None:
    for advice in advices.values():
        table = Table(box=SIMPLE, title_justify="left", title=_title(advice))
        for column in ("", "what", "reads/lookup", "saves", "blocks", "written", "budget"):
            table.add_column(column, justify="left" if column in {"", "what"} else "right")
        for option in advice.options:
            chosen = option is advice.chosen
            days = "-" if option.budget_days is None else f"{option.budget_days:.2f} days"
            table.add_row(
                ">" if chosen else "",
                str(option),
                f"{option.reads_per_lookup:.4f}",
                f"{100 * option.saved:.1f}%" + ("" if option.stands_out else " ~"),
                f"{option.blocks:,}",
                size_text(option.written_bytes),
                days,
            )
        out.print(table)
        out.print(f"{advice.table}: {advice.chosen}: {advice.reason}", markup=False, soft_wrap=True)


def _title(advice: Advice) -> str:
    how = "counted by the store" if advice.live else "by simulation"
    text = f"{advice.table}: {advice.reads_per_lookup:.4f} block reads a lookup, {how}"
    if advice.predicted is not None:
        news = "outside of it" if advice.drifted else "within"
        low, high = advice.predicted_low, advice.predicted_high
        text += f"; the plan expected {low:.4f} to {high:.4f}: {news}"
    return text + " (~ does not stand out)"


if __name__ == "__main__":
    main()
