"""What is still open when it is dropped, or when the interpreter ends, is closed in an orderly way.

An engine that is torn down under a thread of its user's ends the process with an abort; and what a
recorder still holds would be lost.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Protocol

from bandana_kv.system.interrupts import without_interrupts

__all__ = ["PATIENCE_S", "close_dropped", "end_at_exit", "end_engine_at_exit"]

PATIENCE_S = 5.0
"""So long calls that are under way are waited for: a device that hangs does not keep a process."""


class Closing(Protocol):
    """Something that is closed once, from any thread."""

    def end(self) -> None:
        """Close it, and wait for no more than :data:`PATIENCE_S`."""


_stores: weakref.WeakSet[Closing] = weakref.WeakSet()
_engines: weakref.WeakSet[Closing] = weakref.WeakSet()
_lock = threading.RLock()  # a finalizer may run wherever its thread is


def end_at_exit(store: Closing) -> None:
    """Have something that serves end when the interpreter does, before all engines."""
    with _lock:
        _stores.add(store)


def end_engine_at_exit(engine: Closing) -> None:
    """Have an engine's handle end when the interpreter does."""
    with _lock:
        _engines.add(engine)


def close_dropped(what: str, close: Callable[[], None]) -> None:
    """Close, in a finalizer, what its user has dropped, and warn.

    In a thread, since a finalizer runs in the midst of anything: also of what holds a lock that
    closing needs.

    Parameters
    ----------
    what
        What the warning calls it.
    close
        Closes it.
    """

    def quietly() -> None:
        with contextlib.suppress(Exception):
            close()

    try:
        thread = threading.Thread(target=quietly, name="bandana-kv-dropped", daemon=True)
        thread.start()
        # One of our own may be among those that it waits for.
        if not threading.current_thread().name.startswith("bandana-kv"):
            thread.join(PATIENCE_S)
    except RuntimeError:  # no more threads, or the interpreter is ending
        quietly()
    warnings.warn(
        f"{what} was dropped while it was open; close it, or open it in a with statement",
        ResourceWarning,
        stacklevel=3,
    )


def _end_all() -> None:
    with _lock:
        closing = [*_stores, *_engines]
    # A second Ctrl-C, by somebody who cannot wait, would leave half of it undone.
    with without_interrupts():
        for each in closing:
            with contextlib.suppress(Exception):
                each.end()


atexit.register(_end_all)
