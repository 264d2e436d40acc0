"""Whether what is served still fits the traffic, and what it would pay to do about it.

Imports placement, simulate and plan to say so; changes nothing, and no store waits for it.
"""

from bandana_kv.care.drift.advice import advise, placement_for
from bandana_kv.care.drift.data import Advice, Option, Served
from bandana_kv.care.drift.stores import advise_store, served_table
from bandana_kv.care.drift.watch import Watch

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
