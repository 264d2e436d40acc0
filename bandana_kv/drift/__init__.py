"""Whether what is served still fits the traffic, and what it would pay to do about it."""

from bandana_kv.drift.advising import advise, placement_for
from bandana_kv.drift.data import Advice, Option, Served
from bandana_kv.drift.stores import advise_store, served_table
from bandana_kv.drift.watch import Watch

__all__ = [
    "Advice",
    "Option",
    "Served",
    "Watch",
    "advise",
    "advise_store",
    "placement_for",
    "served_table",
]
