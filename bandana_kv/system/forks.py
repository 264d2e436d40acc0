"""What is done around a fork, in the order in which threads take locks.

Whoever is imported first would else decide it: a lookup is inside of its engine when it takes its
table's lock, so a fork must have shut the engines before it takes the tables, or both would wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from bandana_kv.system.interrupts import without_interrupts

__all__ = ["at_fork"]

_ORDER = ("rollouts", "stores", "versions", "environments", "engines", "tables", "readers")


def _nothing() -> None:
    return


Hook = Callable[[], object]
_hooks: dict[str, tuple[Hook, Hook, Hook]] = {}


def at_fork(
    room: str, *, before: Hook = _nothing, in_parent: Hook = _nothing, in_child: Hook = _nothing
) -> None:
    """Have hooks called around each fork from now on.

    Parameters
    ----------
    room
        One of `_ORDER`, which is the order of `before`; afterwards it is the other way round.
    before, in_parent, in_child
        Called just before ``os.fork``, and after it in one process and the other.
    """
    assert room in _ORDER
    assert room not in _hooks
    _hooks[room] = before, in_parent, in_child


@without_interrupts()  # a hook that is broken off would leave locks taken
def _call(step: int, rooms: tuple[str, ...]) -> None:
    failure: BaseException | None = None
    for room in rooms:
        if room in _hooks:
            try:
                _hooks[room][step]()
            except BaseException as error:  # the others' locks must not stay as they are
                failure = failure or error
    if failure is not None:
        raise failure  # Python reports it, and goes on


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _call(0, _ORDER),
        after_in_parent=lambda: _call(1, _ORDER[::-1]),
        after_in_child=lambda: _call(2, _ORDER[::-1]),
    )
