"""A circuit breaker: where a device has gone bad, it is left alone for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Breaker"]

# It opens after this many failed reads within the window, if at least every other one failed:
# a device that is late now and then among thousands of good reads is no bad device.
_WINDOW_S = 10.0
_FAILURES = 5
_BAD_SHARE = 0.5
# Long enough for a reset of the device or of its path, short enough to come back soon.
_REST_S = 5.0
# Then single requests try a few blocks each; as many as this in a row must succeed.
_PROBE_BLOCKS = 4
_PROBES = 3

_log = logging.getLogger("bandana_kv")


class Breaker:
    """Says how many blocks a request may read; safe to use from many threads.

    *Closed* it allows all. It opens when reads fail: *open* it allows none, and rows come
    from the fallback. After some seconds it is *half-open*: one request at a time may read a
    few blocks. It closes when three of them in a row succeed, and opens again when one fails.

    Parameters
    ----------
    name
        What it is about, as logs name it.
    clock
        Seconds that only rise.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._begin_window()
        self._state = "closed"
        self._rests_until = 0.0
        self._probed_until = 0.0
        self._successes = 0
        self.openings = 0

    def after_fork_in_child(self) -> None:
        """Go on, whatever thread of the parent was counting."""
        self._lock = threading.Lock()

    def _begin_window(self) -> None:
        self._window_ends = self._clock() + _WINDOW_S
        self._reads = 0
        self._failures = 0

    @property
    def state(self) -> str:
        """``"closed"``, ``"half-open"`` or ``"open"``."""
        return self._state

    def allowed(self, blocks: int) -> int:
        """Return how many of `blocks` a request may read now; it must say how that went."""
        if self._state == "closed":
            return blocks
        with self._lock:
            now = self._clock()
            if self._state == "open":
                if now < self._rests_until:
                    return 0
                self._go("half-open")
                self._successes = 0
                self._probed_until = 0.0
            if self._state == "closed":
                return blocks
            if now < self._probed_until:
                return 0
            # A probe that never comes back does not keep others out for ever.
            self._probed_until = now + _REST_S
            return min(blocks, _PROBE_BLOCKS)

    def succeeded(self) -> None:
        """Count a request whose blocks all came."""
        with self._lock:
            if self._state == "half-open":
                self._probed_until = 0.0
                self._successes += 1
                if self._successes == _PROBES:
                    self._go("closed")
                    self._begin_window()
            else:
                self._count(0)

    def failed(self) -> None:
        """Count a request for which some block was late, or could not be read."""
        with self._lock:
            if self._state == "half-open":
                self._open()
            elif self._state == "closed":
                self._count(1)
                if self._failures >= max(_FAILURES, _BAD_SHARE * self._reads):
                    self._open()

    def _count(self, failures: int) -> None:
        if self._clock() > self._window_ends:
            self._begin_window()
        self._reads += 1
        self._failures += failures

    def _open(self) -> None:
        self._rests_until = self._clock() + _REST_S
        self.openings += 1
        self._go("open")

    def _go(self, state: str) -> None:
        self._state = state
        level = logging.INFO if state == "half-open" else logging.WARNING
        _log.log(
            level,
            "%s: the circuit breaker is %s",
            self._name,
            state,
            extra={"event": "breaker", "of": self._name, "state": state},
        )
