"""Ctrl-C, held back where an exception in the midst of things would do harm.

The interpreter raises KeyboardInterrupt between any two steps of the main thread, also where a
lock was just taken, or a number returned that was about to be kept. What has such steps holds it
back; it then comes at the end, or at a point that what takes long has said to be safe.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # of which that of Python makes enums, for 3 us
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["safe_point", "without_interrupts"]

# Of the outermost that holds them back: what came meanwhile, and what it is for.
_held: list[tuple[int, FrameType | None]] = []
_outer: list[Callable[[int, FrameType | None], object]] = []
_holder: list[int] = []


def _hold(number: int, frame: FrameType | None) -> None:
    _held.append((number, frame))


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back; it comes when this is over, whatever the outcome was.

    Not by the system's means: another thread may be the one that gets it.
    """
    if threading.current_thread() is not threading.main_thread() or _outer:
        yield  # signals are the main thread's
        return
    before = _signal.getsignal(_signal.SIGINT)
    if not callable(before):
        yield  # it is ignored, or ends the process
        return
    _held.clear()
    _signal.signal(_signal.SIGINT, _hold)
    try:
        _holder[:] = [threading.get_ident()]
        _outer.append(before)
        yield
    finally:
        _outer.clear()
        _signal.signal(_signal.SIGINT, before)
        _deliver(before)


def safe_point() -> None:
    """Let Ctrl-C come now, if it was held back: nothing would be left undone that matters."""
    if _held and _outer and threading.current_thread() is threading.main_thread():
        _deliver(_outer[0])


def _deliver(handler: Callable[[int, FrameType | None], object]) -> None:
    if _held:
        found = _held.pop()
        _held.clear()
        handler(*found)


def _after_fork_in_child() -> None:
    """Of what another thread of the parent holds back, nothing is held here."""
    if _outer and threading.get_ident() != _holder[0]:
        _signal.signal(_signal.SIGINT, _outer[0])
        _outer.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
