"""Logs out of batches of a sampler: ducks of what PyG's loaders give, without torch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog


class Tensor:
    """What is asked of a tensor, wherever it lies: it comes to the CPU, and is an array there."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

    def cpu(self) -> np.ndarray:
        return self._values


class Typed(dict[Any, Any]):
    """A batch with nodes and edges of several types."""

    @property
    def node_types(self) -> list[str]:
        return [key for key in self if isinstance(key, str)]

    @property
    def edge_types(self) -> list[tuple[str, str, str]]:
        return [key for key in self if isinstance(key, tuple)]


def batch(nodes: Any, neighbours: list[int], targets: list[int]) -> SimpleNamespace:
    return SimpleNamespace(n_id=Tensor(nodes), edge_index=Tensor([neighbours, targets]))


def requests_of(log: AccessLog) -> list[list[int]]:
    return [log.request(number).tolist() for number in range(log.requests)]


def test_a_neighbourhood_is_a_request() -> None:
    """A node first, then what was sampled for it; a node alone is a request of its own."""
    one = batch([10, 20, 30, 40, 50], [3, 2, 3, 1], [0, 0, 2, 0])
    other = batch([7, 8], [1], [0])
    log = AccessLog.from_neighbors([one, other])
    assert requests_of(log) == [[10, 40, 30, 20], [30, 40], [50], [7, 8]]
    assert log.rows == 51
    assert log.ids.dtype == np.int64


def test_a_whole_batch_is_a_request_where_that_is_asked_for() -> None:
    one = batch([10, 20, 30], [1, 2], [0, 0])
    log = AccessLog.from_neighbors([one, one], whole=True)
    assert requests_of(log) == [[10, 20, 30], [10, 20, 30]]


@pytest.mark.parametrize("kind", [list, tuple, np.array, Tensor])
def test_bare_ids_are_a_request(kind: Any) -> None:
    log = AccessLog.from_neighbors([kind([3, 1]), kind([2])])
    assert requests_of(log) == [[3, 1], [2]]


def test_batches_without_edges_are_requests() -> None:
    nothing = SimpleNamespace(n_id=np.array([3, 1]))
    no_edges = batch([5, 6], [], [])
    log = AccessLog.from_neighbors([nothing, no_edges])
    assert requests_of(log) == [[3, 1], [5], [6]]


def test_every_epoch_samples_anew() -> None:
    class Loader:
        epoch = 0

        def __iter__(self) -> Any:
            self.epoch += 1
            yield np.array([self.epoch])
            yield np.array([7, self.epoch])

    log = AccessLog.from_neighbors(Loader(), epochs=3)
    assert requests_of(log) == [[1], [7, 1], [2], [7, 2], [3], [7, 3]]


def typed() -> Typed:
    def edges(neighbours: list[int], targets: list[int]) -> SimpleNamespace:
        return SimpleNamespace(edge_index=Tensor([neighbours, targets]))

    return Typed(
        {
            "paper": SimpleNamespace(n_id=Tensor([100, 101, 102])),
            "author": SimpleNamespace(n_id=Tensor([5, 6, 7])),
            ("author", "writes", "paper"): edges([2, 0, 1], [1, 0, 1]),
            ("paper", "cites", "paper"): edges([2], [0]),
            ("paper", "is by", "author"): SimpleNamespace(),
        }
    )


def test_nodes_of_one_type_among_several() -> None:
    """Authors that are looked up together are those of one paper; no paper is among them."""
    authors = AccessLog.from_neighbors([typed()], node_type="author")
    assert requests_of(authors) == [[5], [7, 6]]
    papers = AccessLog.from_neighbors([typed()], node_type="paper")
    assert requests_of(papers) == [[100, 102], [101]]
    whole = AccessLog.from_neighbors([typed()], node_type="author", whole=True)
    assert requests_of(whole) == [[5, 6, 7]]


def test_batches_of_another_kind() -> None:
    """As those of other libraries: ids of inputs, ids of seeds, what lies between."""
    log = AccessLog.from_neighbors([([4, 2], [4], "blocks")], take=lambda one: one[0])
    assert requests_of(log) == [[4, 2]]


def test_every_lookup_of_a_batch_is_in_a_neighbourhood(rng: np.random.Generator) -> None:
    nodes = rng.permutation(1000)[:200]
    targets, neighbours = rng.integers(0, 60, 500), rng.integers(0, 200, 500)
    log = AccessLog.from_neighbors([batch(nodes, neighbours.tolist(), targets.tolist())])
    wanted = {
        int(nodes[t]): sorted([int(nodes[t]), *nodes[neighbours[targets == t]].tolist()])
        for t in np.unique(targets)
    }
    found = {one[0]: sorted(one) for one in requests_of(log)}
    assert found | wanted == found
    assert set(log.ids.tolist()) == set(nodes.tolist())
    assert all(len(found[node]) == 1 for node in found.keys() - wanted.keys())


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([[1.5]], {}, "batch 0 .list. does not have node ids"),
        ([[1], "ab"], {}, "batch 1 .str. does not have node ids"),
        ([[[1, 2]]], {}, "does not have node ids"),
        ([object()], {}, "does not have node ids"),
        ([[1], [-1]], {}, "-1"),
        ([[1], [1 << 31]], {}, "2147483648"),
        ([[1]], {"epochs": 0}, "epochs 0"),
        ([[1]], {"epochs": 1.5}, "epochs 1.5"),
        (iter([[1]]), {"epochs": 2}, "give the loader itself"),
        ([typed()], {}, "say node_type=: paper, author"),
        ([typed()], {"node_type": "venue"}, "no nodes of type 'venue'"),
        ([[1]], {"node_type": "paper"}, "no nodes of type 'paper'"),
    ],
)
def test_what_is_no_batch(batches: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AccessLog.from_neighbors(batches, **options)
