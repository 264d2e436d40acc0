"""The report as one HTML page that needs nothing else: no script, no network, no other file."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import msgspec

from bandana_kv.assess import figures
from bandana_kv.assess.data import Assessment
from bandana_kv.assess.notation import at, shown
from bandana_kv.errors import MissingExtraError

__all__ = ["check_extras", "render"]


def check_extras() -> None:
    """Check, before the long work, that what a page is made with is installed.

    Raises
    ------
    MissingExtraError
        It is not.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "a report needs jinja2 and matplotlib: pip install 'bandana-kv[report]'"
        ) from error


def render(assessment: Assessment) -> str:
    """Return the page.

    Every figure on it is an element with ``data-key``, which says where it lies in the JSON, and
    is written by :func:`bandana_kv.assess.notation.shown`.

    Raises
    ------
    MissingExtraError
        jinja2 or matplotlib is not installed.
    """
    check_extras()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    report = msgspec.to_builtins(assessment)

    def figure(key: str) -> Any:
        text = shown(key, at(report, key))
        return Markup('<span data-key="{}">{}</span>').format(key, text)

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files("bandana_kv.assess").joinpath("page.html.j2").read_text("utf-8")
    )
    tables = [
        {
            "name": name,
            "key": "tables." + _escaped(name),
            "spread": "uncertainty.tables." + _escaped(name),
            "curve": Markup(figures.reads_against_dram(each)),
            "time": Markup(figures.over_time(each)),
            "parts": range(len(each.parts)),
            "points": range(len(each.curve)),
        }
        for name, each in assessment.tables.items()
    ]
    cost = Markup(figures.break_even(assessment.cost))
    return template.render(report=report, f=figure, tables=tables, cost_curve=cost)


def _escaped(name: str) -> str:
    return name.replace("%", "%25").replace(".", "%2E")
