"""Blocks asked of several nodes at once, and of their copies where those do not answer.

All commands are sent before any reply is waited for, and whichever reply comes is read, by the
calling thread: a thread a node costs more CPU than the reads. Blocks never change while they are
served, so that any copy may answer; what a copy has not got, the others are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters import resp_replies as wire
from bandana_kv.adapters.resp_asking import MOST_KEYS, Asking
from bandana_kv.adapters.resp_flights import Flight
from bandana_kv.adapters.resp_link import LinkError, RefusedError, SilentError
from bandana_kv.adapters.resp_nodes import COUNTED, slots_of
from bandana_kv.adapters.resp_protocol import Failed, redirect_of

__all__ = ["Reading"]

_IN, _SECOND, _REDIRECTS = (
    COUNTED.index(name) for name in ("bytes_in", "second_asks", "redirects")
)
_MOST_REDIRECTS = 8
# Who says so has the slot, and does not answer for it just now.
_FOR_NOW = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY")


class Reading(Asking):
    """The reads of one call.

    Parameters
    ----------
    nodes
        Of the cluster.
    located
        The keys, and where they are.
    out
        uint8 (n, payload_bytes): becomes their values.
    pace
        How long to wait.

    Attributes
    ----------
    status : ndarray
        int8 (n,): TAKEN for those that have come.
    found : ndarray
        int64 (n,): the length of values that are not as long as a payload.
    why : dict of int to tuple
        By place in the keys: the node that failed, and how.
    tried : dict of int to set of int
        By place in the keys: the numbers of nodes that have not got it, or failed.
    """

    def any_copy(self) -> bool:
        """Ask whoever is first for each slot, and others as needed; return whether all came."""
        nodes, located = self._nodes, self._located
        view, turn = nodes.view(), nodes.links.turn()
        first = slots_of(view, turn, located.slots)
        if not (view.whole and located.known) and first.min() < 0:
            first = slots_of(nodes.seen_anew(), turn, located.slots)
        self._run(first, self._pace.second_ask_s)
        return self._all_came()

    def _all_came(self) -> bool:
        return self.status.tobytes().count(wire.TAKEN) == len(self.status)

    def of_nodes(self, numbers: NDArray[np.int64]) -> bool:
        """Ask just these nodes, int64 (n,), for each key; return whether all came."""
        for at, number in enumerate(numbers.tolist()):
            # Whoever else has it counts as asked.
            shard = self._nodes.shard(int(self._located.slots[at]))
            self.tried[at] = set(shard) - {number}
        self._run(numbers, self._pace.patience_s)
        return self._all_came()

    def lacks(self, at: int) -> bool:
        """Return whether all copies of a key's slot said that they have no value for it."""
        slot = int(self._located.slots[at])
        if slot < 0:
            return True
        asked = self.tried.get(at, set())
        copies = self._nodes.shard(slot)
        return at not in self.why and bool(copies) and asked.issuperset(copies)

    def reason(self, at: int) -> tuple[str, str]:
        """Return the node that failed a key, empty where it is none alone, and how."""
        said = self.why.get(at)
        return said or ("", self._nodes.describe(int(self._located.slots[at])))

    def _run(self, first: NDArray[np.int64], second_ask_s: float) -> None:
        until = time.monotonic() + self._pace.patience_s
        try:
            self._ask(first, MOST_KEYS)
            while self._flights:
                self._step(second_ask_s, until)
                if self._second and self._all_came():
                    return
        finally:
            for flight in self._flights.values():
                flight.link.close()  # replies to it may still come

    # -- who is asked next ----------------------------------------------------------------

    def _elsewhere(self, number: int, keys: Iterable[int]) -> None:
        """Ask the next copy of each key that has not come; `number` was asked for them."""
        nodes = np.full(len(self.status), -1, np.int64)
        for key in keys:
            if self.status[key] != wire.TAKEN:
                tried = self.tried.setdefault(int(key), set())
                tried.add(number)
                nodes[key] = self._next_copy(int(key), tried)
        if (nodes >= 0).any():
            self._second = True
            self._ask(nodes, MOST_KEYS)

    def _next_copy(self, key: int, tried: set[int]) -> int:
        """Return a copy of a key that was not asked yet, and count it as asked; -1: none."""
        slot = int(self._located.slots[key])
        for look in (self._nodes.view, self._nodes.seen_anew):
            look()
            for copy in self._nodes.copies(slot):
                if copy not in tried:
                    tried.add(copy)
                    return copy
        return -1

    # -- replies --------------------------------------------------------------------------

    def _step(self, second_ask_s: float, until: float) -> None:
        """Wait until something comes, or is late."""
        least_s = self._pace.patience_s / 2  # for who was asked second, perhaps after connecting

        def due(flight: Flight) -> float:
            if flight.late:
                return max(until, flight.begun + least_s)
            return flight.begun + second_ask_s

        now = time.monotonic()
        flights = self._flights
        soon = min(map(due, flights.values()))
        ready = self._poll.poll(max(0.0, 1000 * (soon - now)))
        for fd, _ in ready:
            flight = flights.get(fd)
            if flight is not None:
                self._take(flight)
        if now < soon:
            return
        # By the time before that look: what this process was kept from seeing is not late.
        came = {fd for fd, _ in ready}
        for fd, flight in list(flights.items()):
            if fd in came or now < due(flight):
                continue
            if flight.late:
                self._give_up(flight)
            else:
                flight.late = True
                self._nodes.failed(flight.number, "slow")
                self._nodes.counts[flight.number][_SECOND] += 1
                self._elsewhere(flight.number, self._left_of(flight))

    def _give_up(self, flight: Flight) -> None:
        self._end(flight, close=True)
        self._nodes.failed(flight.number, "down")
        limit_ms = 1000 * self._pace.patience_s
        silent = SilentError(f"{flight.link.node} did not answer within {limit_ms:g} ms")
        self._failed(flight.number, self._left_of(flight), silent)

    def _left_of(self, flight: Flight) -> NDArray[np.int64]:
        left: NDArray[np.int64] = flight.order[self.status[flight.order] != wire.TAKEN]
        return left

    def _end(self, flight: Flight, *, close: bool) -> None:
        del self._flights[flight.link.fd]
        self._poll.unregister(flight.link.fd)
        flight.link.owes = False
        if close or flight.apart:
            flight.link.close()

    def _take(self, flight: Flight) -> None:
        """Take what has arrived from one node."""
        link = flight.link
        try:
            while True:
                taken = link.receive()
                self._nodes.counts[flight.number][_IN] += taken
                if not taken or self._parsed(flight) or not link.holds_more:
                    return
        except LinkError as error:
            self._lost(flight, error)

    def _parsed(self, flight: Flight) -> bool:
        """Take what is in a connection's buffer; return whether that was all."""
        link, cursor = flight.link, flight.cursor
        while True:
            link.begin = wire.take_replies(
                link.buffer,
                link.begin,
                link.end,
                cursor,
                flight.counts,
                flight.order,
                self.status,
                self.found,
                self._out,
            )
            if cursor[wire.ENDED] != wire.LINE:
                break
            self._take_line(flight)
        if cursor[wire.ENDED] == wire.BROKEN:
            raise LinkError(f"{link.node} does not answer as the protocol has it")
        if cursor[wire.ENDED] == wire.MORE:
            link.make_room(int(cursor[wire.NEED]))
            return False
        self._end(flight, close=False)
        link.begin = link.end = 0
        if cursor[wire.UNTAKEN]:
            self._elsewhere(flight.number, self._unfit(flight))
        return True

    def _lost(self, flight: Flight, error: LinkError) -> None:
        """See to the keys of a node whose connection has ended."""
        self._end(flight, close=True)
        left = self._left_of(flight)
        if flight.fresh:
            self._failed(flight.number, left, error)
            self._elsewhere(flight.number, left)
        else:  # the connection was of an earlier time: the node itself may be well
            self._at(flight.number, left, MOST_KEYS)

    def _take_line(self, flight: Flight) -> None:
        """Take a line that a node says instead of the values of one MGET."""
        link, cursor = flight.link, flight.cursor
        end = int(cursor[wire.LINE_END])
        said = Failed(link.buffer[link.begin + 1 : end].tobytes().decode(errors="replace"))
        link.begin = end + 2
        first, count = int(cursor[wire.AT]), int(flight.counts[cursor[wire.MGET]])
        keys = flight.order[first : first + count]
        cursor[wire.AT] += count
        cursor[wire.MGET] += 1
        keys = keys[self.status[keys] != wire.TAKEN]
        self._second = True
        self._refused(flight.number, keys, said)

    def _refused(self, number: int, keys: NDArray[np.int64], said: Failed) -> None:
        """Do what a node said it takes to have `keys`."""
        node = self._nodes.known[number]
        self._redirects += 1
        to = redirect_of(said, node)
        moving = to is not None or said.kind == "TRYAGAIN"
        if moving and self._redirects > _MOST_REDIRECTS + len(self.status):
            self._failed(number, keys, RefusedError(f"{node} sends from node to node: {said}"))
        elif to is not None:
            self._nodes.counts[number][_REDIRECTS] += 1
            if not to.once:
                self._nodes.care(refresh=True)
                self._at(self._nodes.number_of(to.node), keys, MOST_KEYS)
            else:
                self._once_at(self._nodes.number_of(to.node), keys)
        elif said.kind == "TRYAGAIN":
            # Some of a chunk have moved already: singly each is found, or sent on.
            self._at(number, keys, 1)
        else:
            if said.kind == "LOADING":
                self._nodes.failed(number, "down")
            why = "does not answer just now" if said.kind in _FOR_NOW else "refuses"
            self._failed(number, keys, RefusedError(f"{node} {why}: {said}"))
            self._elsewhere(number, keys)
