"""Which node has which slots, as the nodes say, and which of its copies answers just now."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.resp_address import Node
from bandana_kv.adapters.resp_slots import SLOTS

__all__ = ["Health", "Topology", "topology_of"]

# A node that did not answer is left alone this long, then twice as long, and so on.
_FIRST_REST_S, _LONGEST_REST_S = 1.0, 8.0
# After so many times its last rest without another failure it counts as sound again.
_SOUND_AFTER = 8.0


class Topology(NamedTuple):
    """The shards of a cluster.

    Attributes
    ----------
    shard_of_slot : ndarray
        int16 (SLOTS,); -1: no node serves it.
    shards : tuple of tuples of Node
        Copies of each shard, its primary first.
    """

    shard_of_slot: NDArray[np.int16]
    shards: tuple[tuple[Node, ...], ...]

    def same_as(self, other: Topology) -> bool:
        """Return whether both say the same."""
        return self.shards == other.shards and np.array_equal(
            self.shard_of_slot, other.shard_of_slot
        )


def topology_of(reply: object, asked: Node) -> Topology:
    """Return what the reply to ``CLUSTER SLOTS`` says; a node without a host is who was asked.

    Raises
    ------
    ValueError
        The reply is none of that kind, or names no node.
    """
    if not isinstance(reply, list):
        raise ValueError(f"CLUSTER SLOTS answered {reply!r}")
    shard_of_slot = np.full(SLOTS, -1, np.int16)
    numbers: dict[tuple[Node, ...], int] = {}
    for first, last, *nodes in reply:
        copies = tuple(_node_of(each, asked) for each in nodes)
        if not copies:
            continue
        number = numbers.setdefault(copies, len(numbers))
        shard_of_slot[int(first) : int(last) + 1] = number
    if not numbers:
        raise ValueError("no node has any slot")
    return Topology(shard_of_slot, tuple(numbers))


def _node_of(said: list[object], asked: Node) -> Node:
    host, port = said[0], said[1]
    name = host.decode() if isinstance(host, bytes) else ""
    return Node(name if name not in ("", "?") else asked.host, int(port))  # type: ignore[call-overload]


class Health:
    """Whether a node answers, and when it is tried again.

    *Slow* is who let a request wait too long: the others are asked first. *Down* is who did not
    answer at all: nobody asks it. Requests never try whether it has come back; the background
    does, so that none of them waits for it.
    """

    __slots__ = ("failed_at", "rest_s", "state", "until")

    def __init__(self) -> None:
        self.state = "sound"
        self.rest_s = 0.0
        self.until = 0.0
        self.failed_at = 0.0

    def failed(self, state: str, now: float) -> bool:
        """Hear that the node was slow, or is down; return whether that is news."""
        if self.state == state or (self.state, state) == ("down", "slow"):
            return False
        if self.state == "sound":
            long_ago = now - self.failed_at > _SOUND_AFTER * max(self.rest_s, _FIRST_REST_S)
            self.rest_s = _FIRST_REST_S if long_ago else min(2 * self.rest_s, _LONGEST_REST_S)
            self.until = now + self.rest_s
        self.state = state
        self.failed_at = now
        return True

    def tried_in_vain(self, now: float) -> None:
        """Hear that it did not answer the background either."""
        self.state = "down"
        self.failed_at = now
        self.rest_s = min(2 * self.rest_s, _LONGEST_REST_S)
        self.until = now + self.rest_s

    def answered(self) -> None:
        """Hear that it answers again."""
        self.state = "sound"
