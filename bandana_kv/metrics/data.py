"""What parts of a running system say of themselves: plain numbers, for whoever exports them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

import msgspec

__all__ = ["UPPER_SECONDS", "Buckets", "Labelled", "Measured", "Metric", "metric"]

UPPER_SECONDS = tuple(
    float(f"{step}e{exponent}") for exponent in range(-6, 2) for step in (1, 2, 5)
)
"""Upper edges of the buckets of latencies."""


class Buckets(msgspec.Struct, frozen=True):
    """A histogram.

    Attributes
    ----------
    upper : tuple of float
        Upper edges of the buckets, rising; what is above the last one is in a bucket more.
    counts : tuple of int
        How many values fell into each bucket, one longer than `upper`.
    total : float
        Sum of the values.
    """

    upper: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Metric(msgspec.Struct, frozen=True):
    """One number, or one histogram, of one thing.

    Attributes
    ----------
    name : str
        As Prometheus names it, with the unit last: ``bandana_kv_block_reads``. Counters
        get their ``_total`` from the exporter.
    kind : str
        ``"counter"`` only rises; ``"gauge"`` is what is now; ``"histogram"``.
    help : str
        One line for people.
    value : float or Buckets
    labels : mapping of str to str
        Which thing: the table, for example.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    value: float | Buckets
    labels: Mapping[str, str] = {}


def metric(
    noun: str,
    kind: Literal["counter", "gauge", "histogram"],
    text: str,
    value: float | Buckets,
    **labels: str,
) -> Metric:
    """Return a metric of this library: `noun` is its name behind ``bandana_kv_``."""
    number = value if isinstance(value, Buckets) else float(value)
    return Metric(f"bandana_kv_{noun}", kind, text, number, labels)


class Measured(Protocol):
    """Anything with numbers to tell: stores, recorders, roll-outs, watches over drift."""

    def metrics(self) -> Iterable[Metric]:
        """Return what is known now. Cost: no device reads; safe from any thread."""


class Labelled:
    """Something measured whose numbers get more labels: two stores in one process, for example.

    Parameters
    ----------
    measured
        Whose numbers.
    labels
        By name.
    """

    def __init__(self, measured: Measured, **labels: str) -> None:
        self._measured = measured
        self._labels = labels

    def metrics(self) -> list[Metric]:
        """Return the numbers, with the labels."""
        return [
            msgspec.structs.replace(each, labels={**each.labels, **self._labels})
            for each in self._measured.metrics()
        ]
