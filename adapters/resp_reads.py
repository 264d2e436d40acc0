"""Blocks asked of several nodes at once, and of their copies where those do not answer.

All commands are sent before any reply is waited for, and whichever reply comes is read, by the
calling thread: a thread a node costs more CPU than the reads. Blocks never change while they are
served, so that any copy may answer; what a copy has not got, the others are asked for.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters import resp_kernels as wire
from bandana_kv.adapters.payloads import Payloads
from bandana_kv.adapters.resp_flights import Flight, Located, Pace, key_of
from bandana_kv.adapters.resp_link import LinkError, RefusedError, SilentError
from bandana_kv.adapters.resp_nodes import COUNTED, Nodes, slots_of
from bandana_kv.adapters.resp_protocol import Failed, command, redirect_of

__all__ = ["Reading"]

_ROUND_TRIPS, _IN, _OUT, _SECOND, _REDIRECTS = (
    COUNTED.index(name)
    for name in ("round_trips", "bytes_in", "bytes_out", "second_asks", "redirects")
)
_MOST_KEYS = 64  # of one MGET
_COMMAND_BYTES = 48  # of one key at most, beside its prefix and what is behind that
_MOST_REDIRECTS = 8
_ASKING = command("ASKING")
# Who says so has the slot, and does not answer for it just now.
_FOR_NOW = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY")


class Reading:
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

    def __init__(self, nodes: Nodes, located: Located, out: Payloads, pace: Pace) -> None:
        self._nodes = nodes
        self._located = located
        self._out = out
        self._pace = pace
        count = len(located.keys)
        self.status = np.zeros(count, np.int8)
        self.found = np.zeros(count, np.int64)
        self.why: dict[int, tuple[str, str]] = {}
        self.tried: dict[int, set[int]] = {}
        self._flights: dict[int, Flight] = {}  # by file descriptor
        self._poll = select.poll()
        self._redirects = 0
        self._second = False

    def any_copy(self) -> bool:
        """Ask whoever is first for each slot, and others as needed; return whether all came."""
        nodes = self._nodes
        first = slots_of(nodes.view(), nodes.links.turn(), self._located.slots)
        if first.min() < 0:
            first = slots_of(nodes.seen_anew(), nodes.links.turn(), self._located.slots)
        self._run(first, self._pace.second_ask_s)
        return bool((self.status == wire.TAKEN).all())

    def of_nodes(self, numbers: NDArray[np.int64]) -> bool:
        """Ask just these nodes, int64 (n,), for each key; return whether all came."""
        for at, number in enumerate(numbers.tolist()):
            # Whoever else has it counts as asked.
            shard = self._nodes.shard(int(self._located.slots[at]))
            self.tried[at] = set(shard) - {number}
        self._run(numbers, self._pace.patience_s)
        return bool((self.status == wire.TAKEN).all())

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
            self._ask(first, _MOST_KEYS)
            while self._flights:
                self._step(second_ask_s, until)
                if self._second and (self.status == wire.TAKEN).all():
                    return
        finally:
            for flight in self._flights.values():
                flight.link.close()  # replies to it may still come

    # -- asking ---------------------------------------------------------------------------

    def _ask(self, numbers: NDArray[np.int64], most: int) -> None:
        """Send each node the MGETs for the keys that it is to be asked for."""
        located = self._located
        count = len(located.keys)
        room = count * (len(located.prefix) + wire.KEY_TAIL + _COMMAND_BYTES)
        buffer = np.empty(room, np.uint8)
        order, counts = np.empty(count, np.int64), np.empty(count, np.int64)
        parts = np.empty((count, wire.PART_WORDS), np.int64)
        asked = wire.compose_reads(
            located.keys,
            located.shift_of,
            located.slots,
            numbers,
            most,
            located.prefix,
            buffer,
            order,
            counts,
            parts,
        )
        data = buffer.data
        at = 0
        lost: list[tuple[int, NDArray[np.int64]]] = []
        for number, get, gets, begin, end in parts[:asked].tolist():
            of_node = counts[get : get + gets]
            keys = order[at : (at := at + int(of_node.sum()))]
            if not self._send(number, keys, of_node, data[begin:end]):
                lost.append((number, keys))
        for number, keys in lost:
            self._elsewhere(number, keys)

    def _send(
        self,
        number: int,
        keys: NDArray[np.int64],
        counts: NDArray[np.int64],
        data: memoryview | bytes,
    ) -> bool:
        """Send a node what it is asked for; return False where it cannot be asked."""
        while True:
            link, fresh = None, True
            try:
                link = self._nodes.links.of(number, self._pace.patience_s / 2)
                apart = link.fd in self._flights  # it owes replies, which would come first
                if apart:
                    link = self._nodes.links.new(number, self._pace.patience_s / 2)
                fresh = link.fresh
                flight = Flight(number, link, keys, counts, apart=apart)
                link.send(data, self._pace.second_ask_s)
            except (LinkError, RefusedError) as error:
                if link is not None:
                    link.close()
                if not fresh:  # the node had ended it meanwhile
                    continue
                self._failed(number, keys, error)
                return False
            counted = self._nodes.counts[number]
            counted[_ROUND_TRIPS] += 1
            counted[_OUT] += len(data)
            self._flights[link.fd] = flight
            self._poll.register(link.fd, select.POLLIN)
            return True

    def _failed(self, number: int, keys: Iterable[int], error: Exception) -> None:
        if isinstance(error, SilentError):
            again = self._nodes.state_of(number) == "slow"
            self._nodes.failed(number, "down" if again else "slow")
        elif isinstance(error, LinkError):
            self._nodes.failed(number, "down")
        node = str(self._nodes.known[number])
        for key in keys:
            self.why[int(key)] = (node, str(error))

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
            self._ask(nodes, _MOST_KEYS)

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
        now = time.monotonic()
        flights = self._flights
        soon = min((f.begun + second_ask_s for f in flights.values() if not f.late), default=until)
        ready = self._poll.poll(max(0.0, 1000 * (min(soon, until) - now)))
        for fd, _ in ready:
            flight = flights.get(fd)
            if flight is not None:
                self._take(flight)
        if now < soon and now < until:
            return
        # By the time before that look: what this process was kept from seeing is not late.
        came = {fd for fd, _ in ready}
        for fd, flight in list(flights.items()):
            if fd in came:
                continue
            if now >= until:
                self._give_up(flight)
            elif not flight.late and now >= flight.begun + second_ask_s:
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
        if close or flight.apart:
            flight.link.close()

    def _take(self, flight: Flight) -> None:
        """Take what has arrived from one node."""
        link, cursor = flight.link, flight.cursor
        try:
            while True:
                taken = link.receive()
                self._nodes.counts[flight.number][_IN] += taken
                if not taken:
                    return
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
                if cursor[wire.ENDED] == wire.DONE:
                    self._end(flight, close=False)
                    link.begin = link.end = 0
                    if cursor[wire.UNTAKEN]:
                        self._elsewhere(flight.number, self._unfit(flight))
                    return
                if cursor[wire.ENDED] == wire.BROKEN:
                    raise LinkError(f"{link.node} does not answer as the protocol has it")
                link.make_room(int(cursor[wire.NEED]))
                if not link.holds_more:
                    return
        except LinkError as error:
            self._end(flight, close=True)
            if flight.fresh:
                self._failed(flight.number, self._left_of(flight), error)
                self._elsewhere(flight.number, self._left_of(flight))
            else:
                # The connection was of an earlier time: the node itself may be well.
                self._at(flight.number, self._left_of(flight), _MOST_KEYS)

    def _unfit(self, flight: Flight) -> NDArray[np.int64]:
        """Return the keys for which it had no value that fits."""
        status = self.status[flight.order]
        unfit: NDArray[np.int64] = flight.order[(status == wire.NIL) | (status == wire.LENGTH)]
        return unfit

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
                self._at(self._nodes.number_of(to.node), keys, _MOST_KEYS)
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

    def _at(self, number: int, keys: NDArray[np.int64], most: int) -> None:
        nodes = np.full(len(self.status), -1, np.int64)
        nodes[keys] = number
        self._ask(nodes, most)

    def _once_at(self, number: int, keys: NDArray[np.int64]) -> None:
        """Ask a node for keys that it is about to be given."""
        located = self._located
        prefix = located.prefix.tobytes()
        data = b"".join(
            _ASKING
            + command("MGET", key_of(prefix, int(located.keys[key]), int(located.shift_of[key])))
            for key in keys.tolist()
        )
        if not self._send(number, keys, np.ones(len(keys), np.int64), data):
            self._elsewhere(number, keys)
