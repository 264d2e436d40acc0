"""What parts of a running system say of themselves: plain numbers, for whoever exports them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

import msgspec

__all__ = ["Buckets", "Measured", "Metric"]


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


class Measured(Protocol):
    """Anything with numbers to tell: stores, recorders, roll-outs, watches over drift."""

    def metrics(self) -> Iterable[Metric]:
        """Return what is known now. Cost: no device reads; safe from any thread."""
