"""What served tables count, and what all have counted that were served under one name."""

from __future__ import annotations

import itertools
import threading
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.batch import COUNTERS
from bandana_kv.failsafe import FailSafe
from bandana_kv.metrics import UPPER_SECONDS, Buckets

if TYPE_CHECKING:
    from bandana_kv.table import ServedTable

__all__ = ["Tally", "Counts", "Totals", "one_request"]

# Behind the counters of the cache's kernels, which do not touch it.
_REQUESTS = len(COUNTERS)
_ONE_REQUEST = np.zeros(len(COUNTERS) + 1, np.int64)
_ONE_REQUEST[_REQUESTS] = 1


def one_request() -> NDArray[np.int64]:
    """Return counters for a request, at zero but for the request itself."""
    return _ONE_REQUEST.copy()


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
    lock : threading.Lock
        Held by whoever adds.
    counters : int64 (n,)
        As :func:`one_request` has them.
    """

    def __init__(self, payload_bytes: int, fail_safe: FailSafe) -> None:
        self.lock = threading.Lock()
        self.counters = np.zeros_like(_ONE_REQUEST)
        self._payload_bytes = payload_bytes
        self._fail_safe = fail_safe
        self._waits = [0] * (len(UPPER_SECONDS) + 1)
        self._waited_s = 0.0

    def after_fork_in_child(self) -> None:
        """Go on, whatever thread of the parent was counting."""
        self.lock = threading.Lock()
        self._fail_safe.after_fork_in_child()

    def add_wait(self, seconds: float) -> None:
        """Count a request that had to wait for blocks; the lock is held."""
        self._waits[bisect_left(UPPER_SECONDS, seconds)] += 1
        self._waited_s += seconds

    def stats(self) -> dict[str, int]:
        """Return the counters, bytes that were read, and how the breaker stands."""
        with self.lock:
            counters = self.counters.tolist()
        counts = dict(zip(COUNTERS, counters[:_REQUESTS], strict=True))
        counts["bytes_read"] = counts["block_reads"] * self._payload_bytes
        return counts | self._fail_safe.stats()

    def counted(self) -> Tally:
        """Return what only rises."""
        counts = self.stats()
        del counts["breaker_open"]
        with self.lock:
            counts["requests"] = int(self.counters[_REQUESTS])
            waits = Buckets(UPPER_SECONDS, tuple(self._waits), self._waited_s)
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

    def follow(self, table: ServedTable) -> None:
        """Count what a table counts from now on."""
        number = next(self._numbers)
        with self._lock:
            self._keep_gone()
            self._held[number] = table.stored.name, table.counts
        # Any thread may run this, at any time: it takes no lock, and appending is one step.
        weakref.finalize(table, self._gone.append, number).atexit = False

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
