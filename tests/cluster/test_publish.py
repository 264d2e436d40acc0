"""Loads that are killed, paused or cut off: old or new is served, never mixed, and never back."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.cluster import epochs, sweeping
from bandana_kv.testing.cluster_node import Node
from bandana_kv.testing.real_cluster import RealCluster

catalogue_module = pytest.importorskip("bandana_kv.adapters.resp_catalogue")

HERE = Path(__file__).parent
PREFIX = "shop"
LEASE_S = 2.0


def where(cluster: RealCluster) -> str:
    return f"{cluster.address}/?prefix={PREFIX}"


class Child:
    """A Python process that takes and gives JSON objects, a line each."""

    def __init__(self, script: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.said: list[dict[str, Any]] = []
        self._stopped = 0
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put({"ended": True})

    def ask(self, **what: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps(what), file=self.process.stdin, flush=True)
        said = self._lines.get(timeout=60)
        assert said != {"ended": True}
        self._stopped = said.get("pid", 0)
        return said

    def until(self, sign: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first line that it says from now on, or has said, of which `sign` is true."""
        end = time.monotonic() + 60
        for line in self.said:
            if sign(line):
                return line
        while True:
            line = self._lines.get(timeout=max(0.01, end - time.monotonic()))
            self.said.append(line)
            assert sign(line) or "ended" not in line, self.said
            if sign(line):
                return line

    def end(self) -> None:
        if self._stopped:
            os.kill(self._stopped, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self._listener.join()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def children() -> Iterator[Callable[..., Child]]:
    made: list[Child] = []

    def make(*arguments: str) -> Child:
        made.append(Child(*arguments))
        return made[-1]

    yield make
    for child in made:
        child.end()


def loader(children: Callable[..., Child], cluster: RealCluster) -> Child:
    return children("loader_process.py", where(cluster), cluster.user, cluster.password)


@pytest.fixture(scope="module")
def loaders(shared_cluster: RealCluster) -> Iterator[tuple[Child, Child]]:
    """Two processes that load into one store."""
    arguments = (where(shared_cluster), shared_cluster.user, shared_cluster.password)
    both = Child("loader_process.py", *arguments), Child("loader_process.py", *arguments)
    yield both
    for each in both:
        each.end()


def server(children: Callable[..., Child], cluster: RealCluster, directory: Path) -> Child:
    return children(
        "serving_process.py",
        where(cluster),
        cluster.reader,
        cluster.password,
        str(directory),
        str(LEASE_S),
    )


def catalogue_at(cluster: RealCluster) -> Any:
    return catalogue_module.Catalogue.at(
        cluster.address, PREFIX, user=cluster.user, password=cluster.password
    )


def let_leases_of_writers_run_out(catalogue: Any) -> None:
    """What is killed leaves its lease: wait for it here, and no longer."""
    for writer in catalogue.members("writers"):
        catalogue.drop(f"writer:{writer}")


def spaces_with_blocks(cluster: RealCluster) -> set[int]:
    """Ask every primary what it has, past the adapter."""
    found = set()
    sign = b"{" + PREFIX.encode() + b"."
    for node in cluster.primaries():
        for key in node.ask("KEYS", sign.decode() + "*"):
            name = key.removeprefix(sign)
            if not name.startswith(b"settled"):
                found.add(int(name[:6], 16))
    return found


def picked(steps: list[str]) -> list[int]:
    """The first and the last step of each kind, counted from 1."""
    first = {label: number for number, label in reversed(list(enumerate(steps, 1)))}
    last = {label: number for number, label in enumerate(steps, 1)}
    return sorted({*first.values(), *last.values()})


def test_a_loader_killed_at_each_step_leaves_old_or_new(
    cluster: RealCluster, children: Callable[..., Child], tmp_path: Path
) -> None:
    loads = loader(children, cluster)
    options = {"lease_seconds": LEASE_S, "ready_seconds": 20.0}
    for marker in (1, 2):
        assert "version" in loads.ask(marker=marker, **options)
    # Two share an index, one has its own.
    serving = [server(children, cluster, tmp_path / name) for name in ("one", "one", "two")]
    for each in serving:
        each.until(lambda line: line.get("marker") == 2)
    with contextlib.closing(catalogue_at(cluster)) as catalogue:
        dry = loads.ask(marker=3, **options)
        marker, served, switched = 3, 3, 0
        for step in picked(dry["steps"]):
            marker += 1
            let_leases_of_writers_run_out(catalogue)
            said = loads.ask(marker=marker, at=step, how="kill", **options)
            assert said == {"hit": True}, (step, dry["steps"][step - 1], said)
            before, version = served, epochs.now(catalogue).version
            _, now = bandana_rows(cluster, tmp_path / "three", version)
            assert now in (before, marker), dry["steps"][step - 1]
            served = now
            switched += now == marker
        let_leases_of_writers_run_out(catalogue)
        marker += 1
        last = loads.ask(marker=marker, **options)
        for each in serving:
            each.until(lambda line: line.get("marker") == marker)
        after = loads.ask(marker=marker + 1, keep=1, **options)
        for each in serving:
            each.until(lambda line: line.get("marker") == marker + 1)
        final = loads.ask(marker=marker + 2, keep=1, **options)
        assert 0 < switched < len(picked(dry["steps"])), dry["steps"]
        # Nothing is left of what was killed: of one version two tables and its files, and of the
        # one before, which others may still have served at that moment.
        kept = {*map(int, catalogue.members("spaces"))}
        assert spaces_with_blocks(cluster) == kept
        assert {*map(int, catalogue.members("segments"))} <= {
            last["version"],
            after["version"],
            final["version"],
        }
        # The node dies that says which version is current; its copy goes on from there.
        had_it = next(each for each in cluster.nodes if each.port == catalogue._held.port)
        cluster.kill(had_it)
        said = loads.ask(marker=marker + 3, copies=0, **options)
        assert "version" in said, said
    for each in serving:
        each.until(lambda line: line.get("marker") == marker + 3)
        assert each.process.stdin is not None
        each.process.stdin.close()
        calls = each.until(lambda line: "calls" in line)["calls"]
        markers = [line["marker"] for line in each.said if "marker" in line]
        assert markers == sorted(markers)
        assert [line for line in each.said if "wrong" in line or "error" in line] == []
        assert calls > 100


def bandana_rows(cluster: RealCluster, directory: Path, version: int) -> tuple[int, int]:
    """Open the store as a new process would, and return version and marker of all its rows."""
    with bandana_kv.open(
        where(cluster),
        cache_bytes=0,
        local_dir=directory,
        user=cluster.reader,
        password=cluster.password,
    ) as store:
        assert store.version == version
        rows = store.multi_get({"a": np.arange(300), "b": np.arange(300)})
    marker = int(rows["a"][0, 0] // 1000)
    expected = marker * 1000 + np.arange(300)[:, None]
    assert (rows["a"] == expected).all()
    assert (rows["b"] == expected + 500).all()
    return version, marker


@pytest.mark.parametrize("step", ["ZADD next", "ZADD current", "SET version:N", "write blocks"])
def test_a_writer_paused_past_its_lease_and_woken_is_refused(
    step: str, shared_cluster: RealCluster, loaders: tuple[Child, Child], tmp_path: Path
) -> None:
    cluster = shared_cluster
    loads, others = loaders
    options = {"lease_seconds": 5.0, "ready_seconds": 0.5}
    first = loads.ask(marker=1, **options)
    # Of ZADD current the last one is the switch, the first the barrier.
    at = max(number for number, each in enumerate(first["steps"], 1) if each == step)
    assert loads.ask(marker=2, at=at, how="stop", **options)["hit"]
    with contextlib.closing(catalogue_at(cluster)) as catalogue:
        # On the server; by its own clock it will think that it has it still.
        let_leases_of_writers_run_out(catalogue)
        new = others.ask(marker=3, **options)
        assert "version" in new, new
        current = epochs.now(catalogue)
        assert current.version == new["version"]
        woken = loads.ask(go_on=True)
        assert woken["error"] == "LeaseLostError", woken
        assert "paused or cut off" in woken["message"]
        assert epochs.now(catalogue) == current
        assert bandana_rows(cluster, tmp_path, new["version"])[1] == 3
        # What it wrote after its space was deleted is found again.
        last = others.ask(marker=4, **options)
        assert "version" in last, last
        assert spaces_with_blocks(cluster) == {*map(int, catalogue.members("spaces"))}
        assert sweeping.whole_versions(catalogue)[-1] == epochs.now(catalogue).version


def test_a_loader_refuses_while_another_loads_and_goes_on_when_that_died(
    loaders: tuple[Child, Child],
) -> None:
    loads, others = loaders
    steps = loads.ask(marker=1, lease_seconds=5.0, ready_seconds=0)["steps"]
    at = 1 + steps.index("settle blocks")
    assert loads.ask(marker=2, at=at, how="stop", lease_seconds=3.0, ready_seconds=0)["hit"]
    refused = others.ask(marker=3, lease_seconds=5.0, ready_seconds=0)
    assert refused["error"] == "LoadInProgressError"
    time.sleep(3.1)
    assert "version" in others.ask(marker=3, lease_seconds=5.0, ready_seconds=0)
    assert loads.ask(go_on=True)["error"] == "LeaseLostError"


def primary_of_blocks(cluster: RealCluster) -> Node:
    """A primary that has blocks, and not the small keys, whose loss is another test's."""
    sizes = {node: len(node.ask("KEYS", "{" + PREFIX + ".*")) for node in cluster.primaries()}
    return max(sizes, key=lambda node: sizes[node])
