"""A store on a real cluster, and what may be broken of it next without its last copy going.

Every row says its version and its id, so an answer tells what it is made of, whatever was killed,
frozen, moved or loaded meanwhile.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import bandana_kv
from bandana_kv.adapters.resp import RespAdapter
from bandana_kv.errors import BandanaError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.testing.cluster_node import Node
from bandana_kv.testing.cluster_readers import Ids, rows_of, wrong_of
from bandana_kv.testing.cluster_slots import seen_by
from bandana_kv.testing.real_cluster import RealCluster

__all__ = ["TABLE", "Trial"]

TABLE = "t"
_IDS_A_REQUEST = (1, 8, 34, 34, 120)


class Trial:
    """A cluster with a store on it.

    Parameters
    ----------
    cluster
        Nobody else's.
    directory
        Where the store keeps what is not in the cluster.
    seed
        Of what is chosen.
    rows, dim
        Of the table, of int32.
    cache_bytes
        Of the store that is open: 0, and every row comes over the network.
    log
        Of which rows are looked up together; without one they are shuffled.
    patience_ms
        How long a read waits for a block before it is an error.
    options
        More of what :func:`bandana_kv.open` takes.

    Attributes
    ----------
    writer, reader
        Adapters on the cluster; the second may only read.
    store
        Open, on the reader.
    counts
        What was done, by what.
    why
        What was said of rows that did not come when all were read.
    """

    def __init__(
        self,
        cluster: RealCluster,
        directory: Path,
        seed: int = 0,
        *,
        rows: int = 20_000,
        dim: int = 32,
        cache_bytes: int = 0,
        log: AccessLog | None = None,
        patience_ms: float = 500.0,
        **options: Any,
    ) -> None:
        self.cluster, self.directory = cluster, directory
        self.rows, self.dim = rows, dim
        self._log = log
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.why: list[str] = []
        self.oldest = self.newest = 0
        self._shards = _shards_of(cluster)
        self._stack = contextlib.ExitStack()
        self.writer = self._stack.enter_context(self.adapter(cluster.user))
        self.load()
        self.reader = self._stack.enter_context(
            self.adapter(cluster.reader, read_only=True, patience_ms=patience_ms)
        )
        self.store = bandana_kv.open(directory, cache_bytes, adapter=self.reader, **options)
        self._stack.callback(self.store.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def adapter(self, user: str, **options: Any) -> RespAdapter:
        """Return another adapter on the cluster, as a user of it."""
        cluster = self.cluster
        return RespAdapter.on(
            cluster.address, prefix="trial", user=user, password=cluster.password, **options
        )

    # -- reading ------------------------------------------------------------------------

    def requests(self, count: int) -> list[Ids]:
        """Return ids of requests, some of one row, some of many."""
        rng = np.random.default_rng(self.rng.randrange(1 << 32))
        lengths = rng.choice(_IDS_A_REQUEST, count)
        return [rng.integers(0, self.rows, length) for length in lengths]

    def ask(self, ids: Ids) -> tuple[int, NDArray[Any]]:
        """Look ids up; returns the oldest version that may answer, and the rows."""
        return self.oldest, self.store.multi_get(TABLE, ids)

    def judge(self, ids: Ids, answer: tuple[int, NDArray[Any]]) -> int:
        """Return how many rows of an answer are wrong."""
        oldest, rows = answer
        return wrong_of(ids, rows, oldest, self.newest)

    def wrong_rows(self) -> int:
        """Return how many of all rows are wrong or do not come, read anew; `why` says more."""
        wrong = 0
        for first in range(0, self.rows, 1000):
            ids = np.arange(first, min(first + 1000, self.rows))
            try:
                wrong += self.judge(ids, self.ask(ids))
            except BandanaError as error:
                wrong += ids.size
                self.why.append(f"{type(error).__name__}: {error}")
        return wrong

    def nodes_of(self, ids: Ids) -> list[Node]:
        """Return which primary has the block of each id."""
        placement = self.store.placement(TABLE)
        blocks = placement.position_of_id[ids].astype(np.int64) // placement.rows_per_block
        keys = self.store._tables[TABLE].stored.keys(blocks)
        owners: dict[int, Node] = {}
        for node in self.cluster.primaries():
            for first, last in seen_by(node)[node.id].ranges:
                owners |= dict.fromkeys(range(first, last + 1), node)
        return [owners[slot] for slot in self.reader._spaces.located(keys).slots.tolist()]

    # -- breaking -----------------------------------------------------------------------

    @property
    def broken(self) -> list[Node]:
        """Who is dead or frozen."""
        return [node for node in self.cluster.nodes if not node.answers]

    def kill(self) -> Node | None:
        """Kill a node of a shard that has another copy in step; None where there is none."""
        node = self._to_break()
        if node is not None:
            self.cluster.kill(node)
            self.counts["kills"] += 1
        return node

    def freeze(self) -> Node | None:
        """Freeze a node, as :meth:`kill`."""
        node = self._to_break()
        if node is not None:
            self.cluster.freeze(node)
            self.counts["freezes"] += 1
        return node

    def thaw(self) -> None:
        """Let one of those that are frozen go on."""
        node = self.rng.choice([node for node in self.broken if node.frozen])
        self.cluster.thaw(node)
        self.counts["thaws"] += 1

    def mend(self) -> None:
        """Thaw and restart whoever is broken, and wait until all copies are in step."""
        for node in self.broken:
            if node.frozen:
                self.cluster.thaw(node)
                self.counts["thaws"] += 1
            else:
                self.cluster.restart(node)
                self.counts["restarts"] += 1
        self.cluster.wait_whole()

    def move(self, share: float = 0.05, *, by_key: bool = False) -> int:
        """Move a share of the slots to a primary, of those that answer."""
        self.cluster.wait_whole()
        to = self.rng.choice(self.cluster.primaries())
        move = self.cluster.migrate_slots_by_key if by_key else self.cluster.migrate_slots
        moved = move(share, to)
        self.counts["slots_moved"] += moved
        return moved

    def join(self) -> Node:
        """Let a node join, with a replica, and move a quarter of the slots to it."""
        node = self.cluster.add_node()
        copy = self.cluster.add_node(replica_of=node)
        number = max(self._shards.values()) + 1
        self._shards |= {node.number: number, copy.number: number}
        self.counts["slots_moved"] += self.cluster.migrate_slots(0.25, node)
        return node

    def load(self, writer: RespAdapter | None = None) -> None:
        """Load the next version of all rows, and switch to it.

        Parameters
        ----------
        writer
            In the place of :attr:`writer`.

        Raises
        ------
        BandanaError
            Not loaded; what was served goes on being served.
        """
        self.newest += 1
        rows = rows_of(self.newest, np.arange(self.rows), self.dim)
        bandana_kv.load(
            self.directory,
            {TABLE: rows},
            None if self._log is None else {TABLE: self._log},
            adapter=writer or self.writer,
            placement="shuffled" if self._log is None else "shp",
        )
        if self.oldest:
            self.store.refresh()
        self.oldest = self.newest
        self.counts["loads"] += 1

    def try_to_load(self) -> bool:
        """Load, and return whether it was not refused."""
        try:
            self.load()
        except BandanaError:
            self.counts["refused_loads"] += 1
            return False
        return True

    def freeze_a_replica(self) -> Node | None:
        """Freeze a node that copies another, as :meth:`kill`."""
        node = self._to_break(primary=False)
        if node is not None:
            self.cluster.freeze(node)
            self.counts["freezes"] += 1
        return node

    def load_and_kill(self) -> bool:
        """Load while a replica freezes and thaws at some moment, and kill a primary right after.

        Returns whether the load was not refused; then the primary's replica has to take over with
        all that was loaded (:meth:`wrong_rows` tells).
        """
        replica = self._to_break(primary=False)
        if replica is None:
            return False
        stop = threading.Event()
        freezer = threading.Thread(target=self._freeze_a_while, args=(replica, stop))
        freezer.start()
        try:
            loaded = self.try_to_load()
        finally:
            stop.set()
            freezer.join()
        if loaded:
            self.cluster.kill(self.cluster.primary_of(replica))
            self.counts["kills"] += 1
            self.cluster.wait_whole()
            self.counts["lost_rows"] += self.wrong_rows()
        return loaded

    def _freeze_a_while(self, node: Node, stop: threading.Event) -> None:
        stop.wait(self.rng.uniform(0, 0.3))
        self.cluster.freeze(node)
        stop.wait(self.rng.uniform(0, 1.5))
        self.cluster.thaw(node)

    def _to_break(self, *, primary: bool = True) -> Node | None:
        spoilt = {self._shards[node.number] for node in self.broken}
        self.cluster.wait_whole()
        primaries = self.cluster.primaries()
        may = [
            node
            for node in self.cluster.nodes
            if self._shards[node.number] not in spoilt and (node in primaries) == primary
        ]
        return self.rng.choice(may) if may else None


def _shards_of(cluster: RealCluster) -> dict[int, int]:
    """Return which nodes copy each other: numbers of nodes to numbers of shards."""
    found = {}
    for shard, node in enumerate(cluster.primaries()):
        found[node.number] = shard
        found[cluster.replica_of(node).number] = shard
    return found
