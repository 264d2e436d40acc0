"""A thread that follows the current version of a store."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from bandana_kv import manifest

if TYPE_CHECKING:
    from bandana_kv.store import EmbeddingStore

__all__ = ["Watcher"]

_MOST_SECONDS = 60.0
_log = logging.getLogger("bandana_kv")


class Watcher:
    """Refreshes an open store whenever another version has become current.

    A failure is logged; each further try waits twice as long as the one before, up to a
    minute or `seconds`, so that neither the log nor the device suffers.

    Parameters
    ----------
    seconds
        From one look to the next. A look reads a file of a few bytes.
    root
        The store's directory.
    store
        What is refreshed.
    """

    def __init__(self, seconds: float, root: Path, store: EmbeddingStore) -> None:
        self._seconds = seconds
        self._root = root
        self._store = store
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bandana-kv-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for a refresh that is under way, and end."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        seconds = self._seconds
        while not self._stopped.wait(seconds):
            try:
                self._look()
                seconds = self._seconds
            except Exception as error:
                # Whatever it was: who serves must not stop following because of it.
                seconds = max(self._seconds, min(2 * seconds, _MOST_SECONDS))
                if not self._stopped.is_set():
                    _log.warning(
                        "%s: version %d goes on being served, the current one cannot be (%s); "
                        "next try in %.3g s",
                        self._root,
                        self._store.version,
                        error,
                        seconds,
                        extra={
                            "event": "refresh_failed",
                            "store": str(self._root),
                            "version": self._store.version,
                            "error": str(error),
                            "next_try_seconds": seconds,
                        },
                    )

    def _look(self) -> None:
        newest = manifest.current_number(self._root)
        if newest != self._store.version or self._store.has_news():
            self._store.refresh()
