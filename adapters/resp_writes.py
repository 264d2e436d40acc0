"""What changes a cluster: sent to primaries, and not done before the copies asked for have it.

Replication is asynchronous: what a primary has acknowledged dies with it. So each piece ends with
a WAIT on the connection that wrote it, and where that connection broke, the piece is written anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.resp_address import Node
from bandana_kv.adapters.resp_link import Link, LinkError, RefusedError, SilentError
from bandana_kv.adapters.resp_nodes import Nodes
from bandana_kv.adapters.resp_protocol import Failed, command, redirect_of
from bandana_kv.adapters.resp_slots import SLOTS, slot_of
from bandana_kv.errors import AdapterError, DiskFullError

__all__ = ["Insist", "carry_out", "packed", "settle"]

# Commands that are sent to a node before it is waited for: half a MiB of blocks.
_AT_ONCE = 128
_AGAIN_S = 0.05
# What passes: a slot moves, a replica takes over, a node begins.
_PASSING = (
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "BUSY",
)

Pack = Callable[[NDArray[np.int64], bool], "memoryview | bytes"]
"""Makes the commands of some items; True: each with an ASKING before it."""


@dataclass(frozen=True)
class Insist:
    """How long writes are tried, and how often they are kept.

    Attributes
    ----------
    copies
        Copies beside the primary that must have what was written.
    patience_s
        How long a write is tried again where a node is down or a slot moves.
    answer_s
        How long a node may take to answer.
    settle_s
        How long copies may take.
    """

    copies: int
    patience_s: float = 10.0
    answer_s: float = 5.0
    settle_s: float = 5.0


def carry_out(nodes: Nodes, slots: NDArray[np.int64], pack: Pack, insist: Insist) -> list[object]:
    """Carry out commands, one an item, and return their replies.

    Parameters
    ----------
    slots
        int64 (n,): of each item.
    pack
        Makes the commands of some items. They must be such that they may be repeated.

    Raises
    ------
    AdapterError
        A primary does not answer, refuses, or its copies do not have it in time; names the node.
        Part of it may have been done.
    DiskFullError
        A node has no room.
    """
    work = _Work(nodes, slots, pack, insist)
    until = time.monotonic() + insist.patience_s
    while work.left.size:
        work.attempt()
        if not work.left.size:
            break
        if time.monotonic() > until:
            raise AdapterError(
                f"{nodes.where} took {work.left.size} of {slots.size} writes in vain for "
                f"{insist.patience_s:g} s: {work.why}"
            )
        time.sleep(_AGAIN_S)
        nodes.refreshed(insist.answer_s)
    return work.replies


class _Work:
    """Commands under way: those left, and what was said of the others."""

    def __init__(self, nodes: Nodes, slots: NDArray[np.int64], pack: Pack, insist: Insist) -> None:
        self._nodes = nodes
        self._slots = slots
        self._pack = pack
        self._insist = insist
        self.left = np.arange(slots.size)
        self.replies: list[object] = [None] * slots.size
        self.why = ""
        self._once: dict[int, Node] = {}  # items that are asked for at another node, this once

    def attempt(self) -> None:
        """Try all that is left, at all nodes at once."""
        groups = self._groups()
        for number in {group[0] for group in groups}:
            self._nodes.links.drop_owing(number)
        turns = [(each, self._pieces(*each)) for each in groups]
        done: list[NDArray[np.int64]] = []
        while turns:
            sent = []
            for each, pieces in turns:
                piece = next(pieces, None)
                if piece is None and not self._insist.copies:
                    done.append(each[1])
                else:
                    sent.append((each, pieces, self._send(each, piece)))
            turns = []
            for each, pieces, under_way in sent:
                if under_way is None:
                    continue
                said = self._hear(each, under_way)
                if said is None:
                    continue
                if said:
                    turns.append((each, pieces))
                else:
                    done.append(each[1])
        taken = np.concatenate([*done, np.empty(0, np.int64)])
        passed = [at for at in taken.tolist() if not self._must_repeat(at)]
        self.left = np.setdiff1d(self.left, passed)

    def _groups(self) -> list[tuple[int, NDArray[np.int64], bool]]:
        """Return nodes, what each is to be sent, and whether it must be asked for this once."""
        once = {at: self._nodes.number_of(node) for at, node in self._once.items()}
        self._once = {}
        topology = self._nodes.view().topology
        primaries = [self._nodes.number_of(shard[0]) for shard in topology.shards]
        of_slot = np.array([*primaries, -1])[topology.shard_of_slot]
        owners = of_slot[self._slots[self.left]]
        for place, at in enumerate(self.left.tolist()):
            if at in once:
                owners[place] = -2
        if (owners == -1).any():
            self.why = self._nodes.describe(int(self._slots[self.left[owners == -1][0]]))
        groups = [
            (int(number), self.left[owners == number], False)
            for number in np.unique(owners[owners >= 0])
        ]
        moving: dict[int, list[int]] = {}
        for at, number in once.items():
            moving.setdefault(number, []).append(at)
        return groups + [(number, np.array(items), True) for number, items in moving.items()]

    @staticmethod
    def _pieces(_: int, items: NDArray[np.int64], once: bool) -> Iterator[NDArray[np.int64]]:
        del once
        for at in range(0, items.size, _AT_ONCE):
            yield items[at : at + _AT_ONCE]

    def _send(
        self, group: tuple[int, NDArray[np.int64], bool], piece: NDArray[np.int64] | None
    ) -> tuple[Link, NDArray[np.int64]] | None:
        """Send a node a piece, or with the last a WAIT; None where it is not to be heard."""
        number, _, once = group
        link = None
        try:
            link = self._nodes.links.of(number, self._insist.answer_s)
            if piece is None:
                wait = command("WAIT", self._insist.copies, int(1000 * self._insist.settle_s))
                link.send(wait, self._insist.answer_s)
                return link, np.empty(0, np.int64)
            link.send(self._pack(piece, once), self._insist.answer_s)
        except LinkError as error:
            self._lost(number, link, error)
            return None
        except RefusedError as error:
            raise AdapterError(f"{self._nodes.where}: {error}") from error
        return link, piece

    def _hear(
        self, group: tuple[int, NDArray[np.int64], bool], sent: tuple[Link, NDArray[np.int64]]
    ) -> bool | None:
        """Hear what a node says: True, go on; False, all of its group is settled; None, lost."""
        number, _, once = group
        link, piece = sent
        try:
            if not piece.size:
                limit_s = self._insist.settle_s + self._insist.answer_s
                self._settled(link.node, link.replies(1, limit_s)[0])
                return False
            said = link.replies(piece.size * (1 + once), self._insist.answer_s)[once :: 1 + once]
        except LinkError as error:
            self._lost(number, link, error)
            return None
        for at, reply in zip(piece.tolist(), said, strict=True):
            self.replies[at] = reply
        return True

    def _settled(self, node: Node, reply: object) -> None:
        if isinstance(reply, Failed):
            raise AdapterError(f"{self._nodes.where}: {node} refuses WAIT: {reply}")
        if not isinstance(reply, int) or reply < self._insist.copies:
            raise AdapterError(
                f"{self._nodes.where}: {reply} of {self._insist.copies} copies of {node} have what "
                f"was written, {self._insist.settle_s:g} s later; see to its replicas and write "
                "again"
            )

    def _lost(self, number: int, link: Link | None, error: LinkError) -> None:
        """Note that a node is gone: what it was sent since the last WAIT is sent anew."""
        self.why = str(error)
        if link is not None:
            link.close()
        self._nodes.failed(number, "slow" if isinstance(error, SilentError) else "down")

    def _must_repeat(self, at: int) -> bool:
        """Return whether a node said to come again; raises where it is of no use."""
        said = self.replies[at]
        if not isinstance(said, Failed):
            return False
        if said.kind not in _PASSING:
            kind = DiskFullError if said.kind == "OOM" else AdapterError
            full = "no room for more: " if said.kind == "OOM" else "a node refuses: "
            raise kind(f"{self._nodes.where}: {full}{said}")
        self.why = str(said)
        redirect = redirect_of(said, self._nodes.address.nodes[0])
        if redirect is not None and redirect.once:
            self._once[at] = redirect.node
        return True


def settle(nodes: Nodes, key_of: Callable[[int], bytes], insist: Insist) -> None:
    """Wait until `insist.copies` copies of every shard have all that was written before.

    Whoever wrote it: a connection is settled up to what it wrote last itself, so each primary is
    given a key, which is taken away again, and copies take changes in their order.

    Parameters
    ----------
    key_of
        Makes a key of a number; slots depend on the number.

    Raises
    ------
    AdapterError
        As :func:`carry_out`.
    """
    topology = nodes.view().topology
    wanted = set(range(len(topology.shards)))
    keys: list[bytes] = []
    slots: list[int] = []
    number = 0
    while wanted:
        key = key_of(number)
        slot = slot_of(key)
        shard = int(topology.shard_of_slot[slot])
        if shard in wanted:
            wanted.discard(shard)
            keys += [key, key]
            slots += [slot, slot]
        number += 1
        if number > 64 * SLOTS:
            raise AdapterError(f"{nodes.where}: a shard has no slot")
    words = [
        command("SET", key, 1) if not at % 2 else command("DEL", key) for at, key in enumerate(keys)
    ]
    carry_out(nodes, np.array(slots, np.int64), packed(words), insist)


_ASKING = command("ASKING")


def packed(commands: list[bytes]) -> Pack:
    """Return what makes these commands."""

    def pack(items: NDArray[np.int64], once: bool) -> bytes:
        chosen = [commands[at] for at in items.tolist()]
        return b"".join([_ASKING + each for each in chosen] if once else chosen)

    return pack
