"""Who may use an engine's handle, and when it may be swapped, closed or forked.

Engines written in C crash when a handle is closed under a running read, and go wrong in
quieter ways when a handle crosses a fork. A :class:`Gate` lets any number of threads use
a handle at once, and gives one thread the handle alone when it must change.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bandana_kv.system.forks import at_fork

__all__ = ["Gate", "StaleHandleError"]

# A fork waits this long for running calls. Past it the fork goes ahead, and the child
# refuses the handle: better than a process that hangs in fork().
_FORK_PATIENCE_S = 10.0


class StaleHandleError(Exception):
    """The handle belongs to a parent process or was set aside; open it anew."""


class Gate:
    """Many users at once, or one alone; also held across a fork.

    Whoever is within ``with gate.inside:`` is a user; :meth:`alone` waits until all users have
    left and keeps new ones out. A thread inside must not enter again.

    Each thread has a lock of its own, which it holds while it is inside: entering and leaving
    are one step each of compiled code, so that a signal whose handler raises, Ctrl-C first of
    all, finds a thread inside or outside, and never leaves it inside for ever. Who is to be
    alone takes all of these locks.

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
        self._before_fork = before_fork
        self._after_fork_in_child = after_fork_in_child
        self._frozen = False
        self._begin()
        with _gates_lock:
            _gates.add(self)

    def _begin(self) -> None:
        self._shutting = threading.Lock()  # held by who is alone, or is about to be
        self._own = threading.local()
        # Of threads that live.
        self._locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
        self._taken: list[threading.Lock] = []

    @property
    def inside(self) -> AbstractContextManager[object]:
        """What a user holds."""
        own: list[threading.Lock] = self._own.__dict__.setdefault("locks", [])
        # Who is to be alone comes first, or users who come again and again would keep it waiting.
        lock = None if self._shutting.locked() else _free(own)
        if lock is None:
            with self._shutting:
                # Nobody is alone: what is held now, this thread holds itself.
                lock = _free(own)
                if lock is None:
                    lock = threading.Lock()
                    self._locks.add(lock)
                    own.append(lock)
        return lock

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
        end = None if patience_s is None else time.monotonic() + patience_s

        def left_s() -> float:
            return -1.0 if end is None else max(0.0, end - time.monotonic())

        if not self._shutting.acquire(timeout=left_s()):
            return False
        try:
            for lock in list(self._locks):
                if not lock.acquire(timeout=left_s()):
                    self._open()
                    return False
                self._taken.append(lock)
        except BaseException:
            self._open()
            raise
        return True

    def _open(self) -> None:
        while self._taken:
            self._taken.pop().release()
        self._shutting.release()

    def _freeze(self) -> None:
        self._frozen = self._shut(_FORK_PATIENCE_S)
        if self._frozen and self._before_fork is not None:
            self._before_fork()

    def _thaw(self) -> None:
        if self._frozen:
            self._frozen = False
            self._open()

    def _thaw_in_child(self) -> None:
        # The locks, and the threads that hold them, are the parent's.
        clean, self._frozen = self._frozen, False
        self._begin()
        if self._after_fork_in_child is not None:
            self._after_fork_in_child(clean)


def _free(locks: list[threading.Lock]) -> threading.Lock | None:
    return next((lock for lock in locks if not lock.locked()), None)


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


at_fork(
    "engines",
    before=_before_fork,
    in_parent=_after_fork_in_parent,
    in_child=_after_fork_in_child,
)
