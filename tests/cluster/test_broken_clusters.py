"""Nodes are killed, frozen and moved while threads read: every row is right, and soon there."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bandana_kv.errors import AdapterError, BandanaError, DeadlineError
from bandana_kv.testing.cluster_faults import run
from bandana_kv.testing.cluster_readers import Readers, Stretch, rows_of
from bandana_kv.testing.cluster_trial import TABLE, Trial
from bandana_kv.testing.real_cluster import RealCluster

LONGEST_MS = 1000
DEADLINE_MS = 1000
ROUNDS = 2
# More than sockets hold of it: the kernel passes on what a dead primary had written to one.
LARGE = {"rows": 10_000, "dim": 1000}


def assert_right(stretches: list[Stretch]) -> None:
    """No row is wrong, no call failed, none took long, and none of the stretches is empty."""
    # Where the machine is busy with something else, calls take long without any fault.
    longest_ms = max(LONGEST_MS, 4 * stretches[0].longest_ms)
    for each in stretches:
        assert (each.wrong_rows, each.errors) == (0, 0), each
        assert each.rows > 0, each
        assert each.longest_ms < longest_ms, each


def test_a_primary_is_killed_and_another_frozen(
    cluster: RealCluster, tmp_path: Path, seed: int
) -> None:
    with Trial(cluster, tmp_path / "store", seed) as trial:
        with Readers(trial.ask, trial.judge, trial.requests(2000)) as readers:
            time.sleep(1)
            killed = trial.kill()
            readers.begin("killed")
            time.sleep(2)
            frozen = trial.freeze()
            readers.begin("frozen")
            time.sleep(2)
            assert {killed, frozen} == set(trial.broken)
            trial.mend()
            readers.begin("mended")
            time.sleep(0.5)
        assert trial.wrong_rows() == 0, trial.why
    assert not trial.broken
    assert_right(readers.stretches())


def test_a_node_joins_and_slots_move(cluster: RealCluster, tmp_path: Path, seed: int) -> None:
    with Trial(cluster, tmp_path / "store", seed) as trial:
        with Readers(trial.ask, trial.judge, trial.requests(2000)) as readers:
            time.sleep(0.5)
            readers.begin("joined")
            joined = trial.join()
            time.sleep(0.5)
            readers.begin("by key")
            moved = sum(trial.move(0.001, by_key=True) for _ in range(2))
            time.sleep(0.5)
        assert trial.wrong_rows() == 0, trial.why
        assert joined in set(trial.nodes_of(np.arange(trial.rows)))
    assert moved > 0
    assert_right(readers.stretches())


def both_copies_dead(trial: Trial) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """End both copies of a shard; return the ids that went with it, and the others."""
    lost = trial.cluster.primaries()[0]
    gone = np.array([node is lost for node in trial.nodes_of(np.arange(trial.rows))])
    copy = trial.cluster.replica_of(lost)
    trial.cluster.freeze(copy)  # so that it does not take over in between
    trial.cluster.kill(lost)
    trial.cluster.kill(copy)
    return np.flatnonzero(gone), np.flatnonzero(~gone)


def timed(ask: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    try:
        answer = ask()
    except BandanaError as error:
        answer = error
    return answer, 1000 * (time.perf_counter() - begun)


def test_without_a_copy_rows_are_a_named_error_in_time(
    cluster: RealCluster, tmp_path: Path, seed: int
) -> None:
    with Trial(cluster, tmp_path / "store", seed, deadline_ms=DEADLINE_MS) as trial:
        gone, there = both_copies_dead(trial)
        assert 0.1 < gone.size / trial.rows < 0.6
        rng = np.random.default_rng(seed)
        ended = threading.Event()
        requests = [rng.choice(there, 30) for _ in range(500)]
        with Readers(trial.ask, trial.judge, requests, threads=2) as readers:
            for number in range(10):
                ids = np.append(rng.choice(there, 10), rng.choice(gone, 1 + number))
                answer, took_ms = timed(lambda ids=ids: trial.ask(ids))
                assert isinstance(answer, (AdapterError, DeadlineError)), answer
                assert TABLE in str(answer)
                assert took_ms < DEADLINE_MS + 300, answer
            time.sleep(1)
            ended.set()
        assert_right(readers.stretches())


def test_without_a_copy_the_fallback_answers_for_those_rows_alone(
    cluster: RealCluster, tmp_path: Path, seed: int
) -> None:
    asked: list[NDArray[np.int64]] = []

    def fallback(table: str, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        assert table == TABLE
        asked.append(ids.copy())
        return rows_of(1, ids, trial.dim)

    options = {"fallback": fallback, "deadline_ms": DEADLINE_MS}
    with Trial(cluster, tmp_path / "store", seed, **options) as trial:
        gone, there = both_copies_dead(trial)
        rng = np.random.default_rng(seed)
        requests = [
            np.append(rng.choice(there, 20), rng.choice(gone, rng.integers(0, 4)))
            for _ in range(500)
        ]
        with Readers(trial.ask, trial.judge, requests) as readers:
            time.sleep(3)
        # Blocks are what is read: a lost block's rows are asked for together.
        elsewhere = np.setdiff1d(np.concatenate(asked), gone)
    assert elsewhere.size == 0
    stretches = readers.stretches()
    assert_right(stretches)
    assert stretches[0].p50_ms < DEADLINE_MS / 2


def test_what_a_replica_missed_while_frozen_is_read_elsewhere(
    cluster: RealCluster, tmp_path: Path, seed: int
) -> None:
    with (
        Trial(cluster, tmp_path / "store", seed) as trial,
        trial.adapter(cluster.user, copies=0) as hasty,
    ):
        with Readers(trial.ask, trial.judge, trial.requests(2000)) as readers:
            frozen = trial.freeze_a_replica()
            assert frozen is not None
            with pytest.raises(AdapterError, match="copies"):
                trial.load()
            assert trial.wrong_rows() == 0, trial.why
            readers.begin("loaded")
            trial.load(hasty)
            cluster.thaw(frozen)
            time.sleep(0.5)
        assert trial.wrong_rows() == 0, trial.why
        assert trial.oldest == trial.newest == 3
    assert_right(readers.stretches())


def test_a_primary_that_dies_with_a_load_takes_nothing_along(
    cluster: RealCluster, tmp_path: Path, seed: int
) -> None:
    loaded = 0
    with Trial(cluster, tmp_path / "store", seed, **LARGE) as trial:
        for _ in range(ROUNDS):
            loaded += trial.load_and_kill()
            trial.mend()
        assert trial.counts["lost_rows"] == 0, trial.why
        assert trial.wrong_rows() == 0, trial.why
    assert loaded + trial.counts["refused_loads"] == ROUNDS


def test_without_settling_it_does(cluster: RealCluster, tmp_path: Path, seed: int) -> None:
    """The control: the test above can fail."""
    with (
        # A connection that has carried much has room for much: the first version is small.
        Trial(cluster, tmp_path / "store", seed, rows=500, dim=LARGE["dim"]) as trial,
        trial.adapter(cluster.user, copies=0) as hasty,
    ):
        frozen = trial.freeze_a_replica()
        assert frozen is not None
        primary = cluster.primary_of(frozen)
        trial.rows = LARGE["rows"]
        trial.load(hasty)
        cluster.kill(primary)
        cluster.thaw(frozen)
        cluster.wait_whole()
        assert trial.wrong_rows() > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs Debian's redis-server")
def test_another_server_is_killed_frozen_and_moved_too(tmp_path: Path, seed: int) -> None:
    server = Path(shutil.which("redis-server") or "")
    with (
        RealCluster(server=server) as cluster,
        Trial(cluster, tmp_path / "store", seed) as trial,
    ):
        with Readers(trial.ask, trial.judge, trial.requests(2000)) as readers:
            time.sleep(0.5)
            trial.kill()
            readers.begin("killed")
            time.sleep(1.5)
            trial.freeze()
            readers.begin("frozen")
            time.sleep(1.5)
            trial.mend()
            readers.begin("moved")
            moved = trial.move(0.003)  # it has no migration of its own: key by key
        assert trial.wrong_rows() == 0, trial.why
    assert moved > 0
    assert_right(readers.stretches())


@pytest.mark.slow
def test_the_harness_finds_nothing_and_counts(seed: int) -> None:
    found = run(6, seed)
    assert (found["wrong_rows"], found["errors"], found["lost_rows"]) == (0, 0, 0), found
    assert found["rounds"] > 0
    assert found["rows"] > 1000
