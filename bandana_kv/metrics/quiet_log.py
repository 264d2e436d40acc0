"""Warnings at a limited rate: what fails a thousand times a second is said once in a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["QuietLog"]

_EVERY_S = 5.0

_log = logging.getLogger("bandana_kv")


class QuietLog:
    """Logs one warning in five seconds, and how many were left out before it.

    Parameters
    ----------
    clock
        Seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._next = clock()
        self._left_out = 0

    def after_fork_in_child(self) -> None:
        """Go on, whatever thread of the parent was logging."""
        self._lock = threading.Lock()

    def warning(self, message: str, **fields: object) -> None:
        """Log, or count, a message; `fields` are for machines."""
        with self._lock:
            now = self._clock()
            if now < self._next:
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
            self._next = now + _EVERY_S
        more = f" ({left_out} more like this since the last such line)" if left_out else ""
        _log.warning("%s%s", message, more, extra={**fields, "left_out": left_out})
