"""A thread that follows the current version of a store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from bandana_kv.system.threads import start

__all__ = ["Watcher"]

_MOST_SECONDS = 60.0
_log = logging.getLogger("bandana_kv")


class Watcher:
    """Calls what follows a store's current version, again and again.

    A failure is logged; each further try waits twice as long as the one before, up to a
    minute or `seconds`, so that neither the log nor the device suffers.

    Parameters
    ----------
    seconds
        From one call to the next.
    root
        The store's directory.
    follow
        Serves the current version, if another one is served.
    version
        Returns the version that is served.

    Raises
    ------
    ThreadError
        It cannot begin.
    """

    def __init__(
        self, seconds: float, root: Path, follow: Callable[[], object], version: Callable[[], int]
    ) -> None:
        self._seconds = seconds
        self._root = root
        self._follow = follow
        self._version = version
        self._stopped = threading.Event()
        self._thread = start(self._run, "bandana-kv-watch")

    def stop(self) -> None:
        """Wait for a refresh that is under way, and end."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        seconds = self._seconds
        while not self._stopped.wait(seconds):
            try:
                self._follow()
                seconds = self._seconds
            except Exception as error:
                # Whatever it was: who serves must not stop following because of it.
                seconds = max(self._seconds, min(2 * seconds, _MOST_SECONDS))
                if not self._stopped.is_set():
                    _log.warning(
                        "%s: version %d goes on being served, the current one cannot be (%s); "
                        "next try in %.3g s",
                        self._root,
                        self._version(),
                        error,
                        seconds,
                        extra={
                            "event": "refresh_failed",
                            "store": str(self._root),
                            "version": self._version(),
                            "error": str(error),
                            "next_try_seconds": seconds,
                        },
                    )
