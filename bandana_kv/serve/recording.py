"""The requests of a store -> a recorder, while one is asked for."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from bandana_kv.errors import InputError
from bandana_kv.logs.recording.recorder import Counted, Recorder
from bandana_kv.serve.current import Current
from bandana_kv.serve.requests import Note
from bandana_kv.system.weakly import calling

__all__ = ["Recording"]


class Recording:
    """Whether, and where, the requests of a store are recorded.

    Parameters
    ----------
    current
        Which version is served.

    Attributes
    ----------
    note : callable or None
        Told of the requests that were answered, if they are recorded.
    """

    def __init__(self, current: Current) -> None:
        self._current = current
        self._recorder: Recorder | None = None
        self._beginning = threading.Lock()
        self.note: Note | None = None

    def begin(
        self, path: Path, sample: float, max_bytes: int, file_bytes: int, burst: int
    ) -> Recorder:
        """Record from now on; see ``EmbeddingStore.record``."""
        with self._beginning:
            if self._current.closing.is_set():
                raise InputError("the store is closed")
            before = self._recorder
            if before is not None and not before.closed:
                raise InputError("this store is being recorded already; close that recorder first")
            # Not this itself: a thread that has it would keep the store from being dropped.
            counted: Callable[[], Counted] = calling(self._counted, (0, {}))
            self._recorder = Recorder(
                path.absolute(), sample, max_bytes, file_bytes, burst, counted
            )
            self.note = self._recorder.note
            return self._recorder

    def _counted(self) -> Counted:
        """Return what recorders keep beside the requests."""
        serving = self._current.serving
        counted: dict[str, tuple[object, tuple[int, int, int]]] = {}
        for name, table in serving.tables.items():
            stats = table.stats()
            counts = stats["lookups"], stats["hits"], stats["block_reads"]
            counted[name] = (weakref.ref(table), counts)
        return serving.number, counted

    def close(self) -> None:
        """End it, when no more can begin."""
        with self._beginning:
            if self._recorder is not None:
                self._recorder.close()

    def after_fork_in_child(self) -> None:
        """Leave it to the parent."""
        if self._recorder is not None:
            self._recorder.after_fork_in_child()
        self._recorder, self.note = None, None
        self._beginning = threading.Lock()
