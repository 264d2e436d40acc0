"""The bench of graphs: a small run of it holds together."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from bandana_kv import AccessLog

with warnings.catch_warnings(action="ignore"):  # PyG's own, of what torch calls deprecated
    pytest.importorskip("torch", reason="torch is not installed: make test-torch")
    pytest.importorskip("torch_geometric", reason="PyG is not installed: make test-torch")

BENCH = Path(__file__).parents[2] / "bench"
NODES = 400


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("graphs")


def groups(rng: np.random.Generator) -> list[np.ndarray]:
    """Nodes link to themselves and to some of their group of 20."""
    return [
        np.unique(np.append(node // 20 * 20 + rng.integers(0, 20, 6), node))
        for node in range(NODES)
    ]


def test_a_small_run(bench: ModuleType, tmp_path: Path, rng: np.random.Generator) -> None:
    AccessLog.from_requests(groups(rng)).write(tmp_path / "log.npz")
    arguments = f"--dir {tmp_path} --log {tmp_path}/log.npz --seeds 0.5 --batch 10 --fanout 4,3"
    done = CliRunner().invoke(bench.main, [*arguments.split(), "--cache", "0.1", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.output.splitlines()[-1])
    assert result["losses_equal"] == dict.fromkeys(
        ("memory", "ours", "row_per_key", "memmap"), True
    )
    assert result["steps"] == 3 * 20
    assert result["last_loss"] < result["first_loss"]
    reads, placements = result["block_reads_per_epoch"], result["placements"]
    assert placements["neighbourhoods"] == reads["ours"]  # asked without training, the same
    assert placements["neighbourhoods"] < placements["shuffled"]
    assert reads["ours"] < reads["row_per_key"]


def test_whose_neighbours_a_request_is(rng: np.random.Generator, bench: ModuleType) -> None:
    """Nodes without links make no request; links of nodes to themselves tell which they are."""
    sampling = importlib.import_module("sampling")
    nodes = np.sort(rng.permutation(NODES)[: NODES - 37])
    every = groups(rng)
    log = AccessLog.from_requests(every[node] for node in nodes)
    found = sampling.nodes_of(log.offsets, log.ids.astype(np.int64), NODES)
    assert (np.diff(found) > 0).all()
    assert np.mean(found == nodes) > 0.9
    whole = AccessLog.from_requests(every)
    assert np.array_equal(
        sampling.nodes_of(whole.offsets, whole.ids.astype(np.int64), NODES), np.arange(NODES)
    )
    edges = sampling.graph_of(whole.offsets, whole.ids, NODES).numpy()
    pairs = set(map(tuple, edges.T.tolist()))
    assert pairs == {(b, a) for a, b in pairs}
    assert len(pairs) == edges.shape[1]
    assert {(int(i), 7) for i in every[7]} <= pairs


def test_memmap_is_charged_for_each_page(bench: ModuleType) -> None:
    """Rows of 512 bytes behind 128 of a header: every eighth lies in two pages."""
    log = AccessLog.from_requests([[0, 1, 6], [7], [8, 15]])
    pages = bench.pages_of(log, 512)
    assert [pages.request(r).tolist() for r in range(3)] == [[0], [0, 1], [1, 2]]
