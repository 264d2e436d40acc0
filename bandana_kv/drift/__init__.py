"""Whether what is served still fits the traffic, and what it would pay to do about it."""

from bandana_kv.drift.advising import advise, placement_for
from bandana_kv.drift.data import Advice, Option, Served
from bandana_kv.drift.stores import advise_store, served_table

__all__ = [
    "Advice",
    "Option",
    "Served",
    "advise",
    "advise_store",
    "placement_for",
    "served_table",
]
