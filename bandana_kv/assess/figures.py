"""Plots as SVG that stands in a page: told apart by line and marker, in grey print too."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from bandana_kv.assess.data import Cost
from bandana_kv.assess.table_data import TableReport
from bandana_kv.errors import MissingExtraError

__all__ = ["break_even", "over_time", "reads_against_dram"]

# Width and height in inches: what fits across an A4 page.
_SIZE = (6.9, 2.5)
_ROOM = 1.08  # above the highest line
_INK, _GREY = "#1a1a1a", "#8a8a8a"
_LINES: dict[str, dict[str, Any]] = {
    "plain row cache": {"color": "#b23a48", "linestyle": "--", "marker": "s"},
    "paper's recipe": {"color": "#b07d2b", "linestyle": "-.", "marker": "^"},
    "plan": {"color": "#1f5a8a", "linestyle": "-", "marker": "o", "linewidth": 2.0},
    "lower bound": {"color": _GREY, "linestyle": ":", "marker": "v"},
}


def reads_against_dram(table: TableReport) -> str:
    """Draw block reads a request against DRAM, and mark what is recommended."""

    def draw(axes: Any, ticks: Any) -> None:
        mib = [point.dram_bytes / (1 << 20) for point in table.curve]
        series = {
            "plain row cache": [point.baseline for point in table.curve],
            "paper's recipe": [point.paper_recipe for point in table.curve],
            "plan": [point.plan for point in table.curve],
            "lower bound": [point.lower_bound for point in table.curve],
        }
        low = [point.plan_low for point in table.curve]
        high = [point.plan_high for point in table.curve]
        axes.fill_between(mib, low, high, color=_LINES["plan"]["color"], alpha=0.18, linewidth=0)
        for name, reads in series.items():
            axes.plot(mib, reads, label=name, markersize=4, **_LINES[name])
        at = table.dram_bytes_recommended / (1 << 20)
        axes.axvline(at, color=_INK, linewidth=0.8)
        axes.plot(
            [at],
            [table.reads_per_request.plan],
            marker="*",
            markersize=13,
            color=_INK,
            linestyle="none",
            label="recommended",
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticks.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(ticks.FuncFormatter(lambda value, _: f"{value:,.3g}"))
        axes.xaxis.set_minor_formatter(ticks.NullFormatter())
        axes.set_ylim(0, _ROOM * max(series["plain row cache"] + series["plan"] + [1e-9]))
        axes.set_xlabel("MiB of DRAM, all bookkeeping included")
        axes.set_ylabel("block reads a request")
        _legend(axes)

    return _svg(draw)


def over_time(table: TableReport) -> str:
    """Draw block reads a request on each part of the later requests, stale and fresh."""

    def draw(axes: Any, ticks: Any) -> None:
        numbers = list(range(1, len(table.parts) + 1))
        baseline = [part.baseline_reads_per_request for part in table.parts]
        plan = [part.reads_per_request for part in table.parts]
        axes.plot(
            numbers, baseline, label="plain row cache", markersize=5, **_LINES["plain row cache"]
        )
        axes.plot(numbers, plan, label="plan, as it ages", markersize=5, **_LINES["plan"])
        axes.plot(
            numbers[-1:],
            [table.ageing.fresh_reads_per_request],
            label="plan, learnt anew",
            linestyle="none",
            marker="D",
            markersize=7,
            markerfacecolor="white",
            color=_INK,
        )
        axes.set_ylim(0, _ROOM * max([*baseline, *plan, 1e-9]))
        axes.xaxis.set_major_locator(ticks.FixedLocator(numbers))
        axes.set_xlabel("part of the later requests")
        axes.set_ylabel("block reads a request")
        _legend(axes)

    return _svg(draw, height=2.1)


def break_even(cost: Cost) -> str:
    """Draw what is saved against the price of NVM, and mark today's and where it ends."""

    def draw(axes: Any, ticks: Any) -> None:
        ratios = [point.price_ratio for point in cost.curve]
        axes.plot(ratios, [point.saved_share for point in cost.curve], color=_INK, linewidth=1.8)
        axes.axhline(0, color=_GREY, linewidth=0.8)
        axes.plot(
            [cost.price_ratio],
            [cost.saved_share],
            marker="*",
            markersize=14,
            color="#1f5a8a",
            linestyle="none",
            label="your prices",
        )
        if cost.break_even_price_ratio > 0:
            axes.plot(
                [cost.break_even_price_ratio],
                [0],
                marker="D",
                markersize=7,
                markerfacecolor="white",
                color=_INK,
                linestyle="none",
                label="break-even",
            )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticks.PercentFormatter(1.0, decimals=0))
        axes.set_xlim(left=0)
        axes.set_xlabel("price of a GiB of NVM, as a share of a GiB of DRAM")
        axes.set_ylabel("saved of DRAM alone")
        _legend(axes)

    return _svg(draw, height=2.1)


def _legend(axes: Any) -> None:
    """Put what lines mean above the plot, where no line runs."""
    axes.legend(
        frameon=False,
        fontsize=8,
        ncols=5,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
        handlelength=2.6,
    )


def _svg(draw: Callable[[Any, Any], None], *, height: float = _SIZE[1]) -> str:
    """Return a drawing as an element for a page: no header, no metadata, no addresses."""
    try:
        from matplotlib import rc_context, ticker
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "a report needs matplotlib and jinja2: pip install 'bandana-kv[report]'"
        ) from error
    with rc_context({"svg.hashsalt": "bandana_kv", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes, ticker)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    return re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
