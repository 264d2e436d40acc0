"""Blocks asked of several nodes at once: what is sent, and by which connections."""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters import resp_replies as wire
from bandana_kv.adapters.payloads import Payloads
from bandana_kv.adapters.resp_commands import KEY_TAIL, PART_WORDS, compose_reads
from bandana_kv.adapters.resp_flights import Flight, Located, Pace, key_of
from bandana_kv.adapters.resp_link import Link, LinkError, RefusedError, SilentError
from bandana_kv.adapters.resp_nodes import COUNTED, Nodes
from bandana_kv.adapters.resp_protocol import command

__all__ = ["MOST_KEYS", "Asking"]

MOST_KEYS = 64
"""Of one MGET."""

_ROUND_TRIPS, _IN, _OUT = (COUNTED.index(name) for name in ("round_trips", "bytes_in", "bytes_out"))
_COMMAND_BYTES = 48  # of one key at most, beside its prefix and what is behind that
_ASKING = command("ASKING")


class Asking(ABC):
    """What one call has asked, and whom; :class:`~.resp_reads.Reading` sees to the replies."""

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

    @abstractmethod
    def _elsewhere(self, number: int, keys: Iterable[int]) -> None:
        """Ask the next copy of each key that has not come; `number` was asked for them."""

    @abstractmethod
    def _lost(self, flight: Flight, error: LinkError) -> None:
        """See to the keys of a node whose connection has ended."""

    @abstractmethod
    def _parsed(self, flight: Flight) -> bool:
        """Take what is in a connection's buffer; return whether that was all."""

    def _unfit(self, flight: Flight) -> NDArray[np.int64]:
        """Return the keys for which a node had no value that fits."""
        status = self.status[flight.order]
        unfit: NDArray[np.int64] = flight.order[(status == wire.NIL) | (status == wire.LENGTH)]
        return unfit

    def _ask(self, numbers: NDArray[np.int64], most: int) -> None:
        """Send each node the MGETs for the keys that it is to be asked for."""
        located = self._located
        count = len(located.keys)
        room = count * (len(located.prefix) + KEY_TAIL + _COMMAND_BYTES)
        buffer = np.empty(room, np.uint8)
        order, counts = np.empty(count, np.int64), np.empty(count, np.int64)
        parts = np.empty((count, PART_WORDS), np.int64)
        asked = compose_reads(
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
        lost: list[tuple[int, NDArray[np.int64]]] = []
        together: list[tuple[list[int], Link]] = []
        quickly, at_hand = not self._flights, self._nodes.links.at_hand
        for part in parts[:asked].tolist():
            number, get, gets, begin, end, key, keys = part
            link = at_hand.get(number) if quickly else None
            if quickly and (link is None or link.owes or link.closed):
                link = self._idle(number, order[key : key + keys])
            if link is not None and link.plain:
                together.append((part, link))
            elif (quickly and link is None) or not self._send(
                number, order[key : key + keys], counts[get : get + gets], buffer.data[begin:end]
            ):
                lost.append((number, order[key : key + keys]))
        if together:
            self._exchange(together, buffer, counts, order)
        for number, of_node in lost:
            self._elsewhere(number, of_node)

    def _idle(self, number: int, keys: NDArray[np.int64]) -> Link | None:
        """Return this thread's connection to a node; None, and it is noted, where there is none."""
        try:
            return self._nodes.links.idle(number, self._pace.patience_s / 2)
        except (LinkError, RefusedError) as error:
            self._failed(number, keys, error)
            return None

    def _exchange(
        self,
        together: list[tuple[list[int], Link]],
        buffer: NDArray[np.uint8],
        counts: NDArray[np.int64],
        order: NDArray[np.int64],
    ) -> None:
        """Do what compiled code can of asking nodes; what it cannot goes on as flights."""
        calls = np.array(
            [
                [*link.room, 0, 0, *part[3:5], *part[1:3], *part[5:], 0, 0]
                for part, link in together
            ],
            np.int64,
        )
        cursors = np.zeros((len(together), wire.CURSOR_WORDS), np.int64)
        cursors[:, wire.ITEM] = -1
        begun = time.monotonic()
        for _, link in together:
            link.owes = True
        wait_ms = int(1000 * self._pace.second_ask_s)
        unfinished = wire.exchange(
            calls, cursors, buffer, counts, order, self.status, self.found, self._out, wait_ms
        )
        for call, (part, link) in zip(calls.tolist(), together, strict=True):
            counted = self._nodes.counts[part[0]]
            counted[_ROUND_TRIPS] += 1
            counted[_OUT] += part[4] - part[3]
            counted[_IN] += call[wire.BYTES]
            if call[wire.STATE] == wire.FINISHED:
                link.owes = link.fresh = False
        if unfinished:
            self._go_on(calls, cursors, together, counts, order, begun)

    def _go_on(
        self,
        calls: NDArray[np.int64],
        cursors: NDArray[np.int64],
        together: list[tuple[list[int], Link]],
        counts: NDArray[np.int64],
        order: NDArray[np.int64],
        begun: float,
    ) -> None:
        """Make flights of what was not done by compiled code, and see to each."""
        flights = []
        for call, cursor, (part, link) in zip(calls.tolist(), cursors, together, strict=True):
            number, get, gets, _, _, key, keys = part
            flight = Flight(
                number, link, order[key : key + keys], counts[get : get + gets], apart=False
            )
            flight.begun, flight.cursor = begun, cursor
            if call[wire.STATE] != wire.FINISHED:
                link.begin, link.end, link.fresh = call[wire.BEGIN], call[wire.END], False
                self._flights[link.fd] = flight
                self._poll.register(link.fd, select.POLLIN)
            flights.append((flight, call[wire.STATE]))
        for flight, state in flights:
            if state == wire.FINISHED:
                if flight.cursor[wire.UNTAKEN]:
                    self._elsewhere(flight.number, self._unfit(flight))
            elif state == wire.LOST:
                self._lost(flight, LinkError(f"{flight.link.node} has ended the connection"))
            elif state == wire.SAID:
                try:
                    self._parsed(flight)
                except LinkError as error:
                    self._lost(flight, error)

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
                link, apart = self._link(number)
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

    def _link(self, number: int) -> tuple[Link, bool]:
        """Return a connection that owes nothing, and whether it is one of this call alone."""
        timeout_s = self._pace.patience_s / 2
        link = self._nodes.links.of(number, timeout_s)
        if link.fd in self._flights:  # replies to it come first
            return self._nodes.links.new(number, timeout_s), True
        return self._nodes.links.idle(number, timeout_s), False

    def _failed(self, number: int, keys: Iterable[int], error: Exception) -> None:
        if isinstance(error, SilentError):
            again = self._nodes.state_of(number) == "slow"
            self._nodes.failed(number, "down" if again else "slow")
        elif isinstance(error, LinkError):
            self._nodes.failed(number, "down")
        node = str(self._nodes.known[number])
        for key in keys:
            self.why[int(key)] = (node, str(error))

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
