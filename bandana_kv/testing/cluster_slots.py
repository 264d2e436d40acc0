"""Who serves which slots of a real cluster, and how slots move from one node to another."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bandana_kv.errors import AdapterError
from bandana_kv.testing.cluster_node import Node

__all__ = ["SLOTS", "Seen", "move_by_engine", "move_by_key", "seen_by"]

SLOTS = 16_384
_MOVE_S, _POLL_S = 60.0, 0.02
_KEYS_AT_ONCE = 100


@dataclass(frozen=True)
class Seen:
    """What one node says of another."""

    flags: frozenset[str]
    primary: str
    ranges: tuple[tuple[int, int], ...]

    @property
    def slots(self) -> int:
        """How many slots it has."""
        return sum(last - first + 1 for first, last in self.ranges)

    @property
    def failed(self) -> bool:
        """Whether it counts as dead, or may be."""
        return bool(self.flags & {"fail", "fail?"})

    @property
    def handshake(self) -> bool:
        """Whether the two have not got to know each other yet."""
        return "handshake" in self.flags

    @property
    def serves(self) -> bool:
        """Whether it is a primary with slots that is not known to be dead."""
        return "master" in self.flags and bool(self.ranges) and "fail" not in self.flags


def seen_by(node: Node) -> dict[str, Seen]:
    """Return what a node says of all nodes it knows, by their ids."""
    found = {}
    for line in node.ask("CLUSTER", "NODES").decode().splitlines():
        words = line.split()
        # "[slot->-node]" at the end stands for a slot that is moving
        ranges = tuple(_range(word) for word in words[8:] if not word.startswith("["))
        primary = "" if words[3] == "-" else words[3]
        found[words[0]] = Seen(frozenset(words[2].split(",")), primary, ranges)
    return found


def _range(word: str) -> tuple[int, int]:
    first, _, last = word.partition("-")
    return int(first), int(last or first)


def _taken(primaries: list[Node], share: float, to: Node) -> list[tuple[Node, int, int]]:
    """Return (from whom, first, last) of the slots that are to move."""
    others = [node for node in primaries if node is not to]
    seen = seen_by(to)
    taken = []
    for number, node in enumerate(others):
        wanted = round(share * SLOTS * (number + 1) / len(others))
        wanted -= round(share * SLOTS * number / len(others))
        for first, last in reversed(seen[node.id].ranges):
            if wanted <= 0:
                break
            first = max(first, last - wanted + 1)
            wanted -= last - first + 1
            taken.append((node, first, last))
    return taken


def move_by_engine(primaries: list[Node], share: float, to: Node) -> int:
    """Move slots by CLUSTER MIGRATESLOTS, whole ranges at a time; returns how many.

    Raises
    ------
    AdapterError
        The engine has no such command, a migration failed, or it took longer than a minute.
    """
    taken = _taken(primaries, share, to)
    for node in {each.number: each for each, _, _ in taken}.values():
        words: list[object] = []
        for each, first, last in taken:
            if each is node:
                words += ["SLOTSRANGE", first, last, "NODE", to.id]
        node.ask("CLUSTER", "MIGRATESLOTS", *words)
        _wait_moved(node)
    moved = sum(last - first + 1 for _, first, last in taken)
    until = time.monotonic() + _MOVE_S
    while any(seen_by(node)[to.id].slots < moved for node in primaries if node.answers):
        if time.monotonic() > until:
            raise AdapterError(f"the slots that moved to {to!r} are not known to all")
        time.sleep(_POLL_S)
    return moved


def _wait_moved(node: Node) -> None:
    until = time.monotonic() + _MOVE_S
    while True:
        jobs = [_fields(job) for job in node.ask("CLUSTER", "GETSLOTMIGRATIONS")]
        states = {job["name"]: job for job in jobs if job.get("operation") == b"EXPORT"}
        bad = [job for job in states.values() if job["state"] in (b"failed", b"cancelled")]
        if bad:
            raise AdapterError(f"slots of {node!r} did not move: {bad[0].get('message')!r}")
        if all(job["state"] == b"success" for job in states.values()):
            return
        if time.monotonic() > until:
            raise AdapterError(f"slots of {node!r} did not move within {_MOVE_S:g} s")
        time.sleep(_POLL_S)


def _fields(job: list[bytes]) -> dict[str, bytes]:
    names = (name.decode() for name in job[::2])
    return dict(zip(names, job[1::2], strict=True))


def move_by_key(primaries: list[Node], share: float, to: Node, user: str, password: str) -> int:
    """Move slots by CLUSTER SETSLOT and MIGRATE, one after the other; returns how many.

    Raises
    ------
    AdapterError
        A node did not answer, or refused.
    """
    moved = 0
    for node, first, last in _taken(primaries, share, to):
        for slot in range(first, last + 1):
            to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", node.id)
            node.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
            while keys := node.ask("CLUSTER", "GETKEYSINSLOT", slot, _KEYS_AT_ONCE):
                auth = ("AUTH2", user, password)
                node.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, *auth, "KEYS", *keys)
            for told in (to, node, *(each for each in primaries if each not in (to, node))):
                told.ask("CLUSTER", "SETSLOT", slot, "NODE", to.id)
            moved += 1
    return moved
