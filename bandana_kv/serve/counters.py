"""What served tables count, and what all have counted that were served under one name."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.request import COUNTERS
from bandana_kv.metrics import UPPER_SECONDS, Buckets
from bandana_kv.serve.failsafe import FailSafe

__all__ = ["Tally", "Counts", "Totals"]

# Behind the counters of the cache's kernels, which do not touch it.
_REQUESTS = len(COUNTERS)


class Tally(msgspec.Struct, frozen=True):
    """What was counted by now.

    Attributes
    ----------
    counts : mapping of str to int
        By name; all only rise.
    waits : Buckets
        Seconds that requests took which had to wait for blocks.
    """

    counts: Mapping[str, int]
    waits: Buckets

    def __add__(self, other: Tally) -> Tally:
        """Return what both have counted."""
        mine, theirs = self.waits, other.waits
        counts = tuple(a + b for a, b in zip(mine.counts, theirs.counts, strict=True))
        return Tally(
            {name: count + other.counts[name] for name, count in self.counts.items()},
            Buckets(mine.upper, counts, mine.total + theirs.total),
        )


class Counts:
    """What one served table counts.

    Parameters
    ----------
    payload_bytes
        Of a block.
    fail_safe
        Counts what goes wrong.

    Attributes
    ----------
    waits : int64 (buckets + 2,)
        Requests that had to wait for blocks, by how long, in the buckets that end at `upper_ns`;
        last, nanoseconds in all. Kernels add to them, too.
    counters : int64 (n,)
        In the order of :data:`COUNTERS`, and requests behind them. Kernels add to them at any time.
    """

    def __init__(self, payload_bytes: int, fail_safe: FailSafe) -> None:
        self.counters: NDArray[np.int64] = np.zeros(len(COUNTERS) + 1, np.int64)
        self._payload_bytes = payload_bytes
        self._fail_safe = fail_safe
        self.upper_ns = np.round(1e9 * np.array(UPPER_SECONDS)).astype(np.int64)
        self.waits: NDArray[np.int64] = np.zeros(len(UPPER_SECONDS) + 2, np.int64)

    def after_fork_in_child(self) -> None:
        """Go on, whatever thread of the parent was counting."""
        self._fail_safe.after_fork_in_child()

    def stats(self) -> dict[str, int]:
        """Return the counters, bytes that were read, and how the breaker stands."""
        counters = self.counters.tolist()
        counts = dict(zip(COUNTERS, counters[:_REQUESTS], strict=True))
        counts["bytes_read"] = counts["block_reads"] * self._payload_bytes
        return counts | self._fail_safe.stats()

    def counted(self) -> Tally:
        """Return what only rises."""
        counts = self.stats()
        del counts["breaker_open"]
        counts["requests"] = int(self.counters[_REQUESTS])
        *waits, waited_ns = self.waits.tolist()
        waits = Buckets(UPPER_SECONDS, tuple(waits), waited_ns / 1e9)
        return Tally(counts, waits)


class Totals:
    """What the tables of a store have counted since it was opened, whatever version they were of.

    A table that is served no more may still count, for callers inside and reads that are late;
    what it has counted is final once nobody holds it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._held: dict[int, tuple[str, Counts]] = {}
        self._gone: deque[int] = deque()
        self._kept: dict[str, Tally] = {}

    def after_fork_in_child(self) -> None:
        """Go on, whatever thread of the parent was asking."""
        self._lock = threading.Lock()
        for number in self._gone:  # the others are their tables' to mend
            self._held[number][1].after_fork_in_child()

    def follow(self, name: str, counts: Counts, owner: object) -> None:
        """Count under a table's name what is counted from now on, until its owner is gone."""
        number = next(self._numbers)
        with self._lock:
            self._keep_gone()
            self._held[number] = name, counts
        # Any thread may run this, at any time: it takes no lock, and appending is one step.
        weakref.finalize(owner, self._gone.append, number).atexit = False

    def _keep_gone(self) -> None:
        """Add up, under their names, what tables have counted that are gone."""
        for _ in range(len(self._gone)):
            name, counts = self._held.pop(self._gone.popleft())
            counted = counts.counted()
            if any(counted.counts.values()):
                self._kept[name] = counted + self._kept[name] if name in self._kept else counted

    def by_table(self) -> dict[str, Tally]:
        """Return what was counted, by the tables' names; those that are gone included."""
        with self._lock:
            self._keep_gone()
            totals = dict(self._kept)
            for name, counts in self._held.values():
                counted = counts.counted()
                totals[name] = totals[name] + counted if name in totals else counted
        return totals
