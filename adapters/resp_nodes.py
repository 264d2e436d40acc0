"""The nodes of a cluster: who they are, who answers, connections to them, and their care.

Requests only look at what is known. What takes time, which is to ask for the topology anew and to
try whether a node has come back, a thread in the background does, which lives as long as there is
something to do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.resp_address import Address, Node
from bandana_kv.adapters.resp_link import Link, LinkError, RefusedError
from bandana_kv.adapters.resp_links import Links
from bandana_kv.adapters.resp_protocol import Failed, command
from bandana_kv.adapters.resp_slots import SLOTS
from bandana_kv.adapters.resp_topology import Health, Topology, topology_of
from bandana_kv.errors import AdapterError, ThreadError
from bandana_kv.system.threads import start

__all__ = ["COUNTED", "Nodes", "View"]

_log = logging.getLogger("bandana_kv")

_ASK_SLOTS = command("CLUSTER", "SLOTS")
_CARE_TIMEOUT_S = 0.5
# A request waits this long for a node that was down, where no other has what it is to read.
_HOPE_TIMEOUT_S = 0.1
# A node that answers the background within this is sound.
_SOUND_S = 0.1
# The topology is asked for anew this often while a node is down, or a shard has fewer copies than
# others (those that are not in step are not listed), and while all are well.
_REFRESH_DOWN_S, _REFRESH_THIN_S, _REFRESH_S = 0.5, 1.0, 5.0
# The background ends when there was nothing to do for so long.
_IDLE_S = 2.0
_FIRST_TOPOLOGY_S = 5.0

COUNTED = ("round_trips", "bytes_in", "bytes_out", "second_asks", "redirects", "failures")
"""What is counted of each node."""


class View:
    """Whom to ask for each slot, as things stand; never changed.

    Attributes
    ----------
    topology : Topology
    first : list of ndarray
        For each turn, int64 (SLOTS + 1,): the number of the node that is asked first; -1: none is
        up, or there is no slot.
    whole : bool
        For each slot some node is up.
    """

    def __init__(self, topology: Topology, first: list[NDArray[np.int64]]) -> None:
        self.topology = topology
        self.first = first
        self.whole = bool((first[0][:SLOTS] >= 0).all())


class Nodes:
    """All that is known of a cluster's nodes; safe to use from many threads, and over a fork.

    Parameters
    ----------
    address
        Of some of them.
    where
        The cluster, as messages name it.
    """

    def __init__(self, address: Address, where: str) -> None:
        self.address = address
        self.where = where
        self.known: list[Node] = []
        """By number; numbers are never given twice."""
        self.counts: list[list[int]] = []
        """Of each node by number, what :data:`COUNTED` names."""
        self._numbers: dict[Node, int] = {}
        self._healths: list[Health] = []
        self._view: View | None = None
        self.links = Links(address, self.known)
        """The connections of each thread."""
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._carer: threading.Thread | None = None
        self._refresh_at = 0.0
        self._refreshed_at = self._failed_at = 0.0
        self._looking = threading.Lock()
        self._closed = False

    def after_fork_in_child(self) -> None:
        """Go on without the connections and the thread of the parent."""
        self.links.after_fork_in_child()
        self._begin()

    # -- what is known --------------------------------------------------------------------

    def number_of(self, node: Node) -> int:
        """Return the number of a node, new or not."""
        number = self._numbers.get(node)
        if number is None:
            with self._lock:
                number = self._number_locked(node)
        return number

    def _number_locked(self, node: Node) -> int:
        number = self._numbers.get(node)
        if number is None:
            number = len(self.known)
            self.known.append(node)
            self._healths.append(Health())
            self.counts.append([0] * len(COUNTED))
            self._numbers[node] = number
        return number

    def state_of(self, number: int) -> str:
        """Return ``"sound"``, ``"slow"`` or ``"down"``."""
        return self._healths[number].state

    def view(self) -> View:
        """Return whom to ask as things stand.

        Raises
        ------
        AdapterError
            No node of the address answers.
        """
        view = self._view
        if view is None:
            return self.refreshed(_FIRST_TOPOLOGY_S)
        if time.monotonic() > self._refresh_at:
            self.care()
        return view

    def shard(self, slot: int) -> list[int]:
        """Return the numbers of all nodes that have a slot, its primary first."""
        topology = self.view().topology
        shard = -1 if slot < 0 else int(topology.shard_of_slot[slot])
        return [] if shard < 0 else [self.number_of(node) for node in topology.shards[shard]]

    def copies(self, slot: int) -> list[int]:
        """Return the numbers of the nodes that are up and have a slot, whom to ask first first."""
        numbers = self.shard(slot)
        return self._by_health(numbers, self.links.turn()) if numbers else []

    def _by_health(self, numbers: list[int], turn: int) -> list[int]:
        at = turn % len(numbers)
        turned = numbers[at:] + numbers[:at]
        sound = [each for each in turned if self._healths[each].state == "sound"]
        return sound + [each for each in turned if self._healths[each].state == "slow"]

    def describe(self, slot: int) -> str:
        """Return the copies of a slot and how they stand, as messages name them."""
        copies = self.shard(slot)
        if not copies:
            return f"no node serves slot {slot}"
        return ", ".join(f"{self.known[each]} is {self.state_of(each)}" for each in copies)

    def _look_anew_locked(self, topology: Topology) -> None:
        """Work out whom to ask, after a change of the topology or of a node's health."""
        copies = max(len(shard) for shard in topology.shards)
        listed = {node for shard in topology.shards for node in shard}
        for node, health in zip(self.known, self._healths, strict=True):
            if node not in listed:
                health.answered()  # it has left: nobody is to wait for it
        numbers = [[self._number_locked(node) for node in shard] for shard in topology.shards]
        first = []
        for turn in range(copies):
            of_shard = [next(iter(self._by_health(each, turn)), -1) for each in numbers]
            of_slot = np.full(SLOTS + 1, -1, np.int64)  # the last for what has no slot, -1
            of_slot[:SLOTS] = np.array([*of_shard, -1], np.int64)[topology.shard_of_slot]
            first.append(of_slot)
        self._view = View(topology, first)

    # -- failures -------------------------------------------------------------------------

    def failed(self, number: int, state: str) -> None:
        """Hear that a node was ``"slow"``, or is ``"down"``: others are asked from now on."""
        with self._lock:
            self.counts[number][COUNTED.index("failures")] += 1
            self._failed_at = time.monotonic()
            news = self._healths[number].failed(state, time.monotonic())
            if news and self._view is not None:
                self._look_anew_locked(self._view.topology)
        if news:
            _log.warning(
                "%s: node %s is %s; its copies are asked",
                self.where,
                self.known[number],
                state,
                extra={"event": "node_failed", "node": str(self.known[number]), "state": state},
            )
            self.care(refresh=True)

    def care(self, *, refresh: bool = False) -> None:
        """Have the background look after the nodes; `refresh`: ask for the topology now."""
        if refresh:
            self._refresh_at = 0.0
        with self._lock:
            if self._closed:
                return
            self._wake.set()
            if self._carer is None:
                try:
                    self._carer = start(self._care, "bandana-kv-nodes")
                except ThreadError:
                    return  # nodes that failed are left alone until one can be started

    def _care(self) -> None:
        idle_since = time.monotonic()
        while True:
            self._wake.wait(self._care_in())
            self._wake.clear()
            now = time.monotonic()
            due = [
                n
                for n, each in enumerate(self._healths)
                if each.state != "sound" and each.until <= now
            ]
            for number in due:
                self._try_again(number)
            if self._refresh_at <= now:
                self._refresh_quietly()
            with self._lock:
                ill = any(each.state != "sound" for each in self._healths)
                if due or ill:
                    idle_since = now
                if self._closed or (now - idle_since > _IDLE_S and not self._wake.is_set()):
                    self._carer = None
                    return

    def _care_in(self) -> float:
        """Return in how many seconds there is something to do."""
        now = time.monotonic()
        rests = [each.until for each in self._healths if each.state != "sound"]
        return max(0.01, min([*rests, self._refresh_at, now + _IDLE_S]) - now)

    def _try_again(self, number: int, timeout_s: float = _CARE_TIMEOUT_S) -> None:
        begun = time.monotonic()
        said = self._topology_from(self.known[number], timeout_s=timeout_s)
        quick = time.monotonic() - begun < _SOUND_S
        with self._lock:
            health = self._healths[number]
            if said is None:
                health.tried_in_vain(time.monotonic())
            elif quick:
                health.answered()
            else:
                health.tried_in_vain(time.monotonic())
                health.state = "slow"
            if self._view is not None:
                self._look_anew_locked(self._view.topology)
        if said is not None and quick:
            _log.info(
                "%s: node %s answers again",
                self.where,
                self.known[number],
                extra={"event": "node_answers", "node": str(self.known[number])},
            )

    # -- the topology ---------------------------------------------------------------------

    def refreshed(self, timeout_s: float) -> View:
        """Ask for the topology until it is told, and return how things stand.

        Raises
        ------
        AdapterError
            No node tells it within the time; or all refuse the user.
        """
        until = time.monotonic() + timeout_s
        while True:
            reasons: list[str] = []
            view = self._refresh(reasons)
            if view is not None:
                return view
            if time.monotonic() > until or any("refuse" in reason for reason in reasons):
                raise AdapterError(
                    f"no node of {self.where} tells which node has what: "
                    f"{'; '.join(reasons) or 'none is known'}"
                )
            time.sleep(0.05)

    def seen_anew(self) -> View:
        """Return how things stand, looking anew if a node has failed since the last look.

        A copy that was not in step, and so not listed, may be by now; and one that is left alone
        may be back, where the others of its shard are gone.
        """
        with self._looking:
            if self._failed_at > self._refreshed_at:
                self._refresh_quietly()
                for number in self._only_hopes():
                    self._try_again(number, _HOPE_TIMEOUT_S)
        return self.view()

    def _only_hopes(self) -> list[int]:
        """Return who was down before and has the slots of others that are down just now."""
        shards = [] if self._view is None else self._view.topology.shards
        numbers = [[self.number_of(node) for node in shard] for shard in shards]
        gone = [each for each in numbers if all(self.state_of(n) == "down" for n in each)]
        before = time.monotonic() - _CARE_TIMEOUT_S
        return [n for each in gone for n in each if self._healths[n].failed_at < before]

    def _refresh_quietly(self) -> None:
        if self._refresh([]) is None:
            self._refresh_at = time.monotonic() + _REFRESH_DOWN_S

    def _refresh(self, reasons: list[str]) -> View | None:
        for node in self._to_ask():
            asked_at = time.monotonic()
            topology = self._topology_from(node, reasons)
            if topology is None:
                continue
            with self._lock:
                self._refreshed_at = asked_at
                self._refresh_at = time.monotonic() + self._refresh_in_s(topology)
                if self._view is None or not topology.same_as(self._view.topology):
                    self._look_anew_locked(topology)
                return self._view
        return None

    def _refresh_in_s(self, topology: Topology) -> float:
        if any(each.state != "sound" for each in self._healths):
            return _REFRESH_DOWN_S
        return (
            _REFRESH_S if len({len(shard) for shard in topology.shards}) == 1 else _REFRESH_THIN_S
        )

    def _to_ask(self) -> Iterable[Node]:
        """Return whom to ask for the topology: who is sound first, then whom the address names."""
        view = self._view
        listed = [node for shard in view.topology.shards for node in shard] if view else []
        sound = [each for each in listed if self.state_of(self.number_of(each)) == "sound"]
        rest = [each for each in self.address.nodes if each not in sound]
        down = {each for each in rest if self.state_of(self.number_of(each)) == "down"}
        return dict.fromkeys([*sound, *(each for each in rest if each not in down), *sorted(down)])

    def _topology_from(
        self, node: Node, reasons: list[str] | None = None, timeout_s: float = _CARE_TIMEOUT_S
    ) -> Topology | None:
        reason = ""
        try:
            link = Link(node, self.address, timeout_s)
            try:
                said = link.ask(_ASK_SLOTS, timeout_s)
            finally:
                link.close()
            if isinstance(said, Failed):
                # Or it is about to have what was asked for.
                refused = said.kind in ("NOPERM", "NOAUTH", "ERR")
                reason = f"{node} {'refuses' if refused else 'has no'} CLUSTER SLOTS: {said}"
            else:
                return topology_of(said, node)
        except (LinkError, RefusedError) as error:
            reason = str(error)
        except (ValueError, TypeError) as error:
            reason = f"{node} is no node of a cluster: {error}"
        if reasons is not None:
            reasons.append(reason)
        return None

    def close(self) -> None:
        """End all connections, and the background; no call may be running."""
        with self._lock:
            self._closed = True
            carer = self._carer
            self._wake.set()
        self.links.close()
        if carer is not None and carer is not threading.current_thread():
            carer.join(4 * _CARE_TIMEOUT_S)


def slots_of(view: View, turn: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the nodes to be asked first for `slots` (n,), int64."""
    return view.first[turn % len(view.first)][slots]
