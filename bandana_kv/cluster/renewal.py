"""A lease is renewed by a thread of its own, whatever else its holder is busy with."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from bandana_kv.errors import BandanaError
from bandana_kv.system.threads import start

__all__ = ["Renewal"]

_log = logging.getLogger("bandana_kv")
_TIMES_A_LEASE = 3


class Renewal:
    """Calls what renews a lease three times in its length, until it is stopped.

    Parameters
    ----------
    renew
        Renews it; may fail, and is called again then.
    seconds
        How long the lease lasts without.
    what
        Whose it is, for the log.
    at_once
        Whether it is taken only now.

    Raises
    ------
    ThreadError
        It cannot begin.
    """

    def __init__(
        self, renew: Callable[[], None], seconds: float, what: str, *, at_once: bool = False
    ) -> None:
        self._renew = renew
        self._seconds = seconds
        self._what = what
        self._stopped = threading.Event()
        self._last = time.monotonic()
        self._pause_s = 0.0 if at_once else seconds / _TIMES_A_LEASE
        self._thread = start(self._run, "bandana-kv-lease")

    @property
    def holds(self) -> bool:
        """Whether it was renewed so lately that nobody takes it for run out.

        Counted by this machine, and from before the renewal: others may count a third less.
        """
        return time.monotonic() - self._last < self._seconds * (1 - 1 / _TIMES_A_LEASE)

    def stop(self) -> None:
        """End it; the lease runs out, unless it is given back."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._pause_s):
            begun = time.monotonic()
            self._pause_s = self._seconds / _TIMES_A_LEASE
            try:
                self._renew()
                self._last = begun
            except BandanaError as error:
                _log.warning(
                    "%s: the lease could not be renewed (%s)",
                    self._what,
                    error,
                    extra={"event": "lease_not_renewed", "store": self._what, "error": str(error)},
                )
