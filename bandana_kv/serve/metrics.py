"""The numbers of a store, as whoever exports metrics wants them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bandana_kv.disk import budget, ledger
from bandana_kv.errors import FormatError, NoPermissionError
from bandana_kv.metrics import Metric, metric
from bandana_kv.serve.counters import Tally

if TYPE_CHECKING:
    from bandana_kv.serve.updates import Updates
    from bandana_kv.serve.version import ServedVersion

__all__ = ["Wear", "metrics_of"]

_COUNTERS = {
    "requests": ("requests", "Requests that were made"),
    "lookups": ("lookups", "Ids that were looked up"),
    "hits": ("hits", "Lookups that DRAM answered"),
    "block_reads": ("block_reads", "Blocks that were read"),
    "bytes_read": ("read_bytes", "Bytes of the blocks that were read"),
    "neighbours_admitted": ("neighbours_admitted", "Rows cached that came along with others"),
    "neighbours_hit": ("neighbours_hit", "First lookups of rows that came along with others"),
    "copies_read": ("copies_read", "Missed rows that were read from their second copy"),
    "bad_blocks": ("bad_blocks", "Blocks that were torn, missing or unreadable"),
    "late_blocks": ("late_blocks", "Blocks that did not come before the deadline"),
    "fallback_rows": ("fallback_rows", "Rows that came from the fallback"),
    "breaker_openings": ("breaker_openings", "How often the circuit breaker opened"),
}

_LOOK_EVERY_S = 10.0


class Wear:
    """What the ledger of a store says, read once in ten seconds at most.

    Parameters
    ----------
    root
        The store.
    clock
        Seconds that only rise.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._last: tuple[float, list[Metric]] | None = None

    def metrics(self) -> list[Metric]:
        """Return what was written in the last 24 hours and may be; nothing if it is damaged."""
        now, last = self._clock(), self._last
        if last is None or now >= last[0] + _LOOK_EVERY_S:
            self._last = last = now, self._read()
        return last[1]

    def _read(self) -> list[Metric]:
        try:
            found, _ = ledger.read_ledger(self._root)
            budget_bytes = budget.write_budget(self._root)
        except (FormatError, NoPermissionError):
            return []  # who writes is told
        written = ledger.per_day(found, time.time()).last_day_bytes
        told = [metric("last_day_written_bytes", "gauge", "Written in the last 24 hours", written)]
        if budget_bytes is not None:
            left = max(0, budget_bytes - written)
            told += [
                metric("write_budget_bytes", "gauge", "May be written in 24 hours", budget_bytes),
                metric("write_budget_left_bytes", "gauge", "Left of that now", left),
            ]
        return told


def metrics_of(
    serving: ServedVersion, totals: Mapping[str, Tally], updates: Updates | None, wear: Wear
) -> list[Metric]:
    """Return the metrics of a store.

    Parameters
    ----------
    serving
        The version that is served.
    totals
        What was counted, by table.
    updates
        What takes updates; None where nothing was updated.
    wear
        Of the store's device.
    """
    return [
        *(each for table, counted in totals.items() for each in _of_counts(table, counted)),
        *(each for table in serving.tables for each in _of_table(serving, table)),
        metric("version", "gauge", "The version that is served", serving.number),
        *([] if updates is None else _of_updates(updates)),
        *wear.metrics(),
    ]


def _of_counts(table: str, counted: Tally) -> list[Metric]:
    waits = "What requests took that had to wait for blocks"
    return [
        *(
            metric(noun, "counter", text, counted.counts[name], table=table)
            for name, (noun, text) in _COUNTERS.items()
        ),
        metric("miss_latency_seconds", "histogram", waits, counted.waits, table=table),
    ]


def _of_table(serving: ServedVersion, table: str) -> list[Metric]:
    served = serving.tables[table]
    breaker_open = served.stats()["breaker_open"]
    gauges: dict[str, tuple[str, float]] = {
        "cached_rows": ("Rows in DRAM now", served.cached_rows),
        "cache_capacity_rows": ("Rows that DRAM holds", served.capacity_rows),
        "cache_bytes": ("DRAM of the cache when full, bookkeeping included", served.cache_bytes),
        "updates_pending_bytes": (
            "DRAM of updated rows that are not in their blocks yet",
            served.overlay_bytes,
        ),
        "breaker_open": ("1 while misses go to the fallback unread", breaker_open),
    }
    choice = serving.manifest.tables[table].plan.choice
    # A plan predicts for its own share of the DRAM, and its own policy, and for no other.
    if choice and (serving.cache_bytes[table], served.policy) == (
        choice.cache_bytes,
        choice.policy,
    ):
        predicted, noun = choice.predicted, "predicted_reads_per_lookup"
        gauges |= {
            noun: ("Block reads per lookup, by the plan", predicted.reads_per_lookup),
            f"{noun}_low": ("Least over the parts of the plan's log", predicted.low),
            f"{noun}_high": ("Most over the parts of the plan's log", predicted.high),
        }
    return [
        metric(noun, "gauge", text, value, table=table) for noun, (text, value) in gauges.items()
    ]


def _of_updates(updates: Updates) -> list[Metric]:
    return [
        metric("journal_bytes", "gauge", "Journal of updates on disk", updates.journal_size_bytes),
        metric("journal_written_bytes", "counter", "Written to the journal", updates.journal_bytes),
        metric("flushed_bytes", "counter", "Blocks written with updated rows", updates.block_bytes),
    ]
