"""Connections to nodes: each thread of each process has its own, made when it first asks one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

from bandana_kv.adapters.resp_address import Address, Node
from bandana_kv.adapters.resp_link import Link

__all__ = ["Links"]


class _Own(threading.local):
    """What each thread has for itself: connections by the number of a node, and its turn."""

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self.turn = -1


class Links:
    """The connections of all threads; safe to use from many, and over a fork.

    Parameters
    ----------
    address
        Of the cluster.
    known
        Its nodes by number; more may come.
    """

    def __init__(self, address: Address, known: Sequence[Node]) -> None:
        self._address = address
        self._known = known
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._own = _Own()
        self._all: weakref.WeakSet[Link] = weakref.WeakSet()  # those of threads that live
        self._turns = 0

    def after_fork_in_child(self) -> None:
        """Go on without the parent's: they are closed here, and go on there."""
        for link in list(self._all):
            link.close()
        self._begin()

    def turn(self) -> int:
        """Return the turn of this thread: which copy it asks first, where several are sound."""
        own = self._own
        if own.turn < 0:
            with self._lock:
                own.turn = self._turns
                self._turns += 1
        return own.turn

    @property
    def at_hand(self) -> dict[int, Link]:
        """The connections of this thread by the number of a node, closed ones too."""
        return self._own.links

    def of(self, number: int, timeout_s: float) -> Link:
        """Return this thread's connection to a node, new or not.

        Raises
        ------
        LinkError, RefusedError
            As :class:`~bandana_kv.adapters.resp_link.Link`.
        """
        links = self._own.links
        link = links.get(number)
        if link is None or link.closed:
            link = links[number] = self.new(number, timeout_s)
        return link

    def idle(self, number: int, timeout_s: float) -> Link:
        """Return this thread's connection to a node, as :meth:`of`, but one that owes nothing.

        One does where whoever asked was interrupted.
        """
        self.drop_owing(number)
        return self.of(number, timeout_s)

    def drop_owing(self, number: int) -> None:
        """End this thread's connection to a node if it owes something."""
        link = self._own.links.get(number)
        if link is not None and link.owes:
            link.close()

    def new(self, number: int, timeout_s: float) -> Link:
        """Return a connection of the caller's own, who closes it; raises as :meth:`of`."""
        link = Link(self._known[number], self._address, timeout_s)
        try:
            link.read_here(timeout_s)
        except BaseException:
            link.close()
            raise
        with self._lock:
            self._all.add(link)
        return link

    def drop(self, number: int) -> None:
        """End this thread's connection to a node: what it owes is not waited for."""
        link = self._own.links.pop(number, None)
        if link is not None:
            link.close()

    def close(self) -> None:
        """End all; no call may be running."""
        with self._lock:
            links = list(self._all)
        for link in links:
            link.close()
