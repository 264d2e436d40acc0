"""The demo and the bench of a cluster: small runs of them, and what they say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.testing.cluster_node import Node
from bandana_kv.testing.real_cluster import RealCluster
from bandana_kv.tools.cluster_demo import main

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """Every node that a command started."""
    nodes: list[Node] = []
    start = RealCluster._start

    def noted(self: RealCluster) -> Node:
        nodes.append(start(self))
        return nodes[-1]

    monkeypatch.setattr(RealCluster, "_start", noted)
    return nodes


@pytest.mark.slow
def test_the_demo_compares_every_row_and_ends_what_it_started(started: list[Node]) -> None:
    options = ["--rows=4000", "--seconds=0.5", "--threads=2"]
    said = CliRunner().invoke(main, [*options, "--json"], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    summary = json.loads(said.stdout)
    names = [each["name"] for each in summary["stretches"]]
    assert names == ["steady", "one killed", "another frozen", "mended"]
    for each in summary["stretches"]:
        assert (each["wrong_rows"], each["errors"]) == (0, 0)
        assert each["rows_per_second"] > 0
    assert len(started) == 6
    assert not any(node.running for node in started)


@pytest.mark.slow
def test_the_bench_serves_the_same_rows_both_ways(
    started: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    bench = importlib.import_module("cluster")
    rng = np.random.default_rng(0)
    lists = rng.permutation(3000).reshape(100, 30)
    requests = [rng.choice(lists[min(99, rng.geometric(0.05))], 12) for _ in range(1500)]
    bandana_kv.AccessLog.from_requests(requests).write(tmp_path / "log.npz")
    monkeypatch.setattr(bench, "AFTER_S", 0.5)
    said = CliRunner().invoke(
        bench.main,
        [f"--dir={tmp_path}", f"--log={tmp_path / 'log.npz'}", "--seconds=0.4", "--rounds=1"],
        catch_exceptions=False,
    )
    assert said.exit_code == 0
    result = json.loads(said.stdout.splitlines()[-1])
    blocks, rows, last = result["serving"]
    for each in (blocks, rows, last, *result["faults"]):
        assert (each["wrong_rows"], each["errors"]) == (0, 0)
        assert each["rows"] > 0
    assert blocks["dram_bytes"] == rows["dram_bytes"] == result["dram_bytes"]
    assert 0 < blocks["values_a_request"] < rows["values_a_request"] < 12
    assert 0 < last["values_a_request"] < 12
    assert result["missed_rows_to_blocks"] > 1
    assert blocks["wire_bytes_a_row"] > rows["wire_bytes_a_row"] > 0
    assert [each["blocks"] for each in result["crossover"]] == list(bench.BATCHES)
    assert not any(node.running for node in started)
