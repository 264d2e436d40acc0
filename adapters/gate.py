"""Who may use an engine's handle, and when it may be swapped, closed or forked.

Engines written in C crash when a handle is closed under a running read, and go wrong in
quieter ways when a handle crosses a fork. A :class:`Gate` lets any number of threads use
a handle at once, and gives one thread the handle alone when it must change.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

__all__ = ["Gate", "StaleHandleError"]

# A fork waits this long for running calls. Past it the fork goes ahead, and the child
# refuses the handle: better than a process that hangs in fork().
_FORK_PATIENCE_S = 10.0


class StaleHandleError(Exception):
    """The handle belongs to a parent process or was set aside; open it anew."""


class Gate:
    """Many users at once, or one alone; also held across a fork.

    Used as a context manager it admits one more user; :meth:`alone` waits until all
    users have left and keeps new ones out. Not reentrant: a thread inside must not
    enter again.

    Parameters
    ----------
    before_fork
        Called alone, in the parent, just before ``os.fork``.
    after_fork_in_child
        Called alone, in the child, just after it, with whether `before_fork` had run
        (it has not when a running call outlasted the patience of the fork).
    """

    def __init__(
        self,
        before_fork: Callable[[], None] | None = None,
        after_fork_in_child: Callable[[bool], None] | None = None,
    ) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._users = 0
        self._alone = False
        self._before_fork = before_fork
        self._after_fork_in_child = after_fork_in_child
        self._frozen = False
        with _gates_lock:
            _gates.add(self)

    def __enter__(self) -> Self:
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._users += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._users -= 1
            if self._alone and self._users == 0:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no thread is inside, and keep others out meanwhile."""
        self._shut(None)
        try:
            yield
        finally:
            self._open()

    @contextmanager
    def alone_soon(self, patience_s: float) -> Iterator[bool]:
        """As :meth:`alone`; gives False, and keeps nobody out, where that takes longer."""
        shut = self._shut(patience_s)
        try:
            yield shut
        finally:
            if shut:
                self._open()

    def _shut(self, patience_s: float | None) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: not self._alone, patience_s):
                return False
            self._alone = True
            if self._changed.wait_for(lambda: self._users == 0, patience_s):
                return True
            self._alone = False
            self._changed.notify_all()
            return False

    def _open(self) -> None:
        with self._changed:
            self._alone = False
            self._changed.notify_all()

    def _freeze(self) -> None:
        self._frozen = self._shut(_FORK_PATIENCE_S)
        if self._frozen and self._before_fork is not None:
            self._before_fork()

    def _thaw(self) -> None:
        if self._frozen:
            self._frozen = False
            self._open()

    def _thaw_in_child(self) -> None:
        # The lock, and the threads counted as users, belong to the parent.
        clean, self._frozen = self._frozen, False
        self._changed = threading.Condition(threading.Lock())
        self._users = 0
        self._alone = False
        if self._after_fork_in_child is not None:
            self._after_fork_in_child(clean)


_gates: weakref.WeakSet[Gate] = weakref.WeakSet()
_gates_lock = threading.Lock()
_frozen: list[Gate] = []


def _before_fork() -> None:
    _gates_lock.acquire()
    _frozen.extend(_gates)
    for gate in _frozen:
        gate._freeze()


def _after_fork_in_parent() -> None:
    for gate in _frozen:
        gate._thaw()
    _frozen.clear()
    _gates_lock.release()


def _after_fork_in_child() -> None:
    for gate in _frozen:
        gate._thaw_in_child()
    _frozen.clear()
    _gates_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
