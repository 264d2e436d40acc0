"""What a roll-out has seen of both sides, and whether it is within the limits."""

from __future__ import annotations

import threading
from collections import deque
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from bandana_kv.metrics import UPPER_SECONDS, Buckets
from bandana_kv.rollout.data import NEW, OLD, SIDES, Limits, Seen

__all__ = ["Breach", "Lookup", "Observed"]

Lookup = tuple[int, int, float, bool, bool]
"""Number of the stage, side, seconds, whether it failed, whether a caller got its rows."""

Breach = tuple[int, str]
"""Number of the stage, and the limit that was broken."""

_COUNTS = (
    "requests_old",
    "requests_new",
    "errors_old",
    "errors_new",
    "rescued_requests",
    "failed_requests",
    "compared_requests",
    "compared_rows",
    "mismatched_rows",
    "breaches",
)

# Lookups are counted and judged so many at a time: one by one costs each some 40 us.
_AT_ONCE = 256


class _Recent:
    """The last `size` of some numbers."""

    def __init__(self, size: int) -> None:
        self._held = np.zeros(size)
        self._seen = 0

    def add(self, new: NDArray[np.float64]) -> None:
        new = new[-self._held.size :]
        self._held[(self._seen + np.arange(new.size)) % self._held.size] = new
        self._seen += new.size

    @property
    def values(self) -> NDArray[np.float64]:
        return self._held[: self._seen]


class _Window:
    """The last lookups and comparisons of one stage."""

    def __init__(self, size: int) -> None:
        self.seconds = (_Recent(size), _Recent(size))
        self.failed = _Recent(size)
        self.rows = _Recent(size)
        self.mismatched = _Recent(size)
        self.good = 0
        self.breach: str | None = None

    def percentiles_us(self, percent: int) -> dict[str, float]:
        """Return a percentile of the latency of each side that was asked."""
        return {
            name: self._percentile_us(side, percent)
            for side, name in enumerate(SIDES)
            if self.seconds[side].values.size
        }

    def _percentile_us(self, side: int, percent: int) -> float:
        seconds = self.seconds[side].values
        at = -(-seconds.size * percent // 100) - 1
        return float(np.partition(seconds, at)[at]) * 1e6

    def judge(self, limits: Limits) -> str | None:
        """Return which limit is broken; None: none."""
        failed, looked_up = self.failed.values.sum(), self.failed.values.size
        if failed > limits.error_share * limits.window:
            return (
                f"{failed:.0f} of the last {looked_up} lookups of the new store failed "
                f"(error_share {limits.error_share:g} of {limits.window})"
            )
        mismatched, rows = self.mismatched.values.sum(), self.rows.values.sum()
        of_full = rows * limits.window / max(1, self.rows.values.size)
        if mismatched > limits.mismatch_share * of_full:
            return (
                f"{mismatched:.0f} of the last {rows:.0f} compared rows differ "
                f"(mismatch_share {limits.mismatch_share:g})"
            )
        return self._late(limits)

    def _late(self, limits: Limits) -> str | None:
        if limits.p99_us is None and limits.latency_ratio is None:
            return None
        if self.seconds[NEW].values.size < limits.least:
            return None
        new_us = self._percentile_us(NEW, 99)
        if limits.p99_us is not None and new_us > limits.p99_us:
            return f"the new store's p99 is {new_us:.0f} us (p99_us {limits.p99_us:g})"
        if limits.latency_ratio is None or self.seconds[OLD].values.size < limits.least:
            return None
        old_us = self._percentile_us(OLD, 99)
        if new_us > limits.latency_ratio * old_us:
            return (
                f"the new store's p99 is {new_us:.0f} us, the old source's {old_us:.0f} us "
                f"(latency_ratio {limits.latency_ratio:g})"
            )
        return None


class Observed:
    """Counts what both sides did, and judges it; safe to use from many threads.

    Parameters
    ----------
    limits
        What is judged by.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._pending: deque[Lookup] = deque()
        self._lock = threading.Lock()
        self._number = 0
        self._window = _Window(limits.window)
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._buckets = np.zeros((2, len(UPPER_SECONDS) + 1), np.int64)
        self._seconds = [0.0, 0.0]

    def after_fork_in_child(self) -> None:
        """Go on, whatever thread of the parent was counting."""
        self._lock = threading.Lock()

    def begin(self, number: int) -> None:
        """Begin stage `number`; what earlier ones still bring is counted, and not judged."""
        with self._lock:
            self._take()
            self._number = number
            self._window = _Window(self.limits.window)

    def note(self, lookup: Lookup) -> Breach | None:
        """Count a lookup of one side; return what limit is broken by now.

        Cost: an append, but for one in 256; a failed one is judged at once.
        """
        # Appending is a single step of the interpreter: nobody waits for anybody here.
        self._pending.append(lookup)
        if lookup[3]:
            with self._lock:
                return self._judge()
        if len(self._pending) >= _AT_ONCE and self._lock.acquire(blocking=False):
            try:
                return self._judge()
            finally:
                self._lock.release()
        return None

    def note_compared(self, number: int, rows: int, mismatched: int) -> Breach | None:
        """Count a comparison of stage `number`; return as :meth:`note` does."""
        with self._lock:
            self._counts["compared_requests"] += 1
            self._counts["compared_rows"] += rows
            self._counts["mismatched_rows"] += mismatched
            if number == self._number:
                self._window.rows.add(np.array([float(rows)]))
                self._window.mismatched.add(np.array([float(mismatched)]))
                self._window.good += not mismatched
            return self._judge()

    def count(self, name: str) -> None:
        """Count what seldom happens."""
        with self._lock:
            self._counts[name] += 1

    def _judge(self) -> Breach | None:
        """Count what waits, and judge; the lock is held."""
        self._take()
        window = self._window
        before, window.breach = window.breach, window.judge(self.limits)
        if window.breach is None:
            return None
        if before is None:
            self._counts["breaches"] += 1
            window.good = 0
        return self._number, window.breach

    def _take(self) -> None:
        """Count all lookups that wait; the lock is held."""
        waiting = [self._pending.popleft() for _ in range(len(self._pending))]
        if waiting:
            flat = np.fromiter(chain.from_iterable(waiting), np.float64)
            lookups = flat.reshape(len(waiting), -1)
            for side in (OLD, NEW):
                self._add(side, lookups[lookups[:, 1] == side])

    def _add(self, side: int, lookups: NDArray[np.float64]) -> None:
        seconds, failed = lookups[:, 2], lookups[:, 3]
        self._counts[f"requests_{SIDES[side]}"] += int(lookups[:, 4].sum())
        self._counts[f"errors_{SIDES[side]}"] += int(failed.sum())
        at = np.searchsorted(UPPER_SECONDS, seconds)
        self._buckets[side] += np.bincount(at, minlength=self._buckets.shape[1])
        self._seconds[side] += float(seconds.sum())
        now = lookups[:, 0] == self._number
        self._window.seconds[side].add(seconds[now])
        if side == NEW:
            self._window.failed.add(failed[now])

    def why_not(self) -> str:
        """Return what is missing before the stage has been seen to be good; empty: nothing."""
        with self._lock:
            self._take()
            breach = self._window.judge(self.limits)
            if breach is not None:
                return breach
            if self._window.good < self.limits.least:
                return f"{self._window.good} of {self.limits.least} good comparisons were made"
            return ""

    def counts(self) -> dict[str, int]:
        """Return what was counted since the beginning."""
        with self._lock:
            self._take()
            return dict(self._counts)

    def latencies(self) -> tuple[Buckets, Buckets]:
        """Return the seconds that lookups of either side took, since the beginning."""
        with self._lock:
            self._take()
            old, new = (
                Buckets(UPPER_SECONDS, tuple(counts.tolist()), seconds)
                for counts, seconds in zip(self._buckets, self._seconds, strict=True)
            )
            return old, new

    def seen(self) -> Seen:
        """Return what the window shows."""
        with self._lock:
            self._take()
            window = self._window
            return Seen(
                good_comparisons=window.good,
                mismatch_share=_share(window.mismatched.values, window.rows.values.sum()),
                error_share=_share(window.failed.values, window.failed.values.size),
                p50_us=window.percentiles_us(50),
                p99_us=window.percentiles_us(99),
                breach=window.judge(self.limits),
            )


def _share(part: NDArray[np.float64], whole: float) -> float:
    return float(part.sum() / whole) if whole else 0.0
