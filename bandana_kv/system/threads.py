"""A thread that cannot be started, as where a limit of processes is reached for a moment."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from bandana_kv.errors import ThreadError

__all__ = ["cannot_start", "start", "threads_named"]


def cannot_start(error: BaseException) -> bool:
    """Return whether an error says that there was no room for another thread."""
    return isinstance(error, RuntimeError) and "start new thread" in str(error)


def start(work: Callable[[], None], name: str) -> threading.Thread:
    """Return a daemon thread that does `work`.

    Raises
    ------
    ThreadError
        It cannot be started.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    with threads_named():
        thread.start()
    return thread


@contextlib.contextmanager
def threads_named() -> Iterator[None]:
    """Turn Python's error about a thread that cannot be started into the library's own."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, ThreadError) or not cannot_start(error):
            raise
        raise ThreadError(
            "no thread could be started; raise the limit of processes (ulimit -u, pids.max of the "
            "container), or try again when there are fewer"
        ) from error
