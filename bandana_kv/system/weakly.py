"""Methods that may be called by what must not keep their object alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar

__all__ = ["calling"]

T = TypeVar("T")


def calling(method: Callable[[], T], otherwise: T) -> Callable[[], T]:
    """Return what calls a method as long as its object is there, and else returns `otherwise`."""
    weak = weakref.WeakMethod(method)

    def call() -> T:
        found = weak()
        return otherwise if found is None else found()

    return call
