"""How a figure is written, by its name in the report: the one way from the JSON to the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bandana_kv.units import size_text

__all__ = ["at", "shown"]


def at(report: Any, key: str) -> Any:
    """Return what lies in `report`, plain data, under a key as ``cost.saved_share``.

    Names with dots are written with ``%2E`` for each, and per cent signs with ``%25``.
    """
    found = report
    for name in key.split("."):
        name = name.replace("%2E", ".").replace("%25", "%")
        if isinstance(found, Mapping):
            found = found[name]
        elif isinstance(found, Sequence) and not isinstance(found, str):
            found = found[int(name)]
        else:
            raise KeyError(key)
    return found


def shown(key: str, value: Any) -> str:
    """Return `value` as people read it.

    The unit that `key` ends or begins with decides: ``_bytes``, ``_share`` and ``_ratio`` (as per
    cent), ``_us`` (as milliseconds from 1,000 up), ``_per_second``, ``bits_per_second``;
    other numbers get three digits that count.
    """
    if value is None:
        return "not given" if key.startswith("inputs.") else "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    names = key.split(".")
    for name in (names[-1], names[0]):
        for unit, write in _UNITS:
            if name.endswith(unit):
                return write(value)
    if isinstance(value, int):
        return f"{value:,}"
    return _number(value)


def _number(value: float) -> str:
    """Return three digits that count."""
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.001 else f"{value:#.3g}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _time(value: float) -> str:
    return f"{value / 1000:,.2f} ms" if value >= 1000 else f"{value:,.0f} us"


def _bits(value: float) -> str:
    return f"{value / 1e9:,.2f} Gb/s" if value >= 1e7 else f"{value / 1e6:,.2f} Mb/s"


_UNITS = (
    ("_bytes_per_day", size_text),
    ("_bytes", size_text),
    ("bytes_per_lookup", size_text),
    ("bytes_recommended", size_text),
    ("_share", _share),
    ("_ratio", _share),
    ("drift", _share),
    ("bits_per_second", _bits),
    ("_per_second", "{:,.0f}".format),
    ("_us", _time),
)
