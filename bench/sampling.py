"""PyG's neighbour sampler with the step in NumPy that PyG leaves to pyg-lib or torch-sparse.

Neither has a wheel on PyPI for every interpreter and machine that this library is tested with. The
sampler is PyG's own otherwise, and goes into its `NeighborLoader` as `neighbor_sampler`. It is
seeded by itself, so that two loaders sample alike.
"""

from __future__ import annotations

import bisect
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.sampler import HeteroSamplerOutput, NeighborSampler, SamplerOutput

__all__ = ["NumpySampler", "graph_of"]

Ids = NDArray[np.int64]
WHOLE = "the only type of nodes"


def graph_of(offsets: Ids, ids: Ids, nodes: int) -> Any:
    """Return `edge_index` of the graph whose nodes' neighbours are the requests of a log.

    Both ways, each edge once, sorted by target and source.
    """
    ids = ids.astype(np.int64)
    sources = np.repeat(nodes_of(offsets, ids, nodes), np.diff(offsets))
    edges = np.unique(np.concatenate([sources * nodes + ids, ids * nodes + sources]))
    return torch.from_numpy(np.stack([edges % nodes, edges // nodes]))


def nodes_of(offsets: Ids, ids: Ids, nodes: int) -> Ids:
    """Return whose neighbours each request is: requests are in the order of their nodes.

    Nodes without any make no request. Which these are is seen from links of nodes to themselves,
    as most nodes of the Slashdot graph have: the numbering is taken that agrees with most.
    """
    requests = offsets.size - 1
    numbers = np.repeat(np.arange(requests), np.diff(offsets))
    passed = ids - numbers  # nodes without a request before this one, if it is the request's own
    possible = np.flatnonzero((passed >= 0) & (passed <= nodes - requests))
    # The longest series that does not fall, of at most one link a request.
    order = possible[np.lexsort((-passed[possible], numbers[possible]))]
    lowest: list[int] = []  # what a series of this length ends with at least
    ends: list[int] = []  # and the link that it ends with
    before = np.full(ids.size, -1)
    for link in order.tolist():
        length = bisect.bisect_right(lowest, passed[link])
        before[link] = ends[length - 1] if length else -1
        lowest[length : length + 1] = [passed[link]]
        ends[length : length + 1] = [link]
    shift = np.zeros(requests, np.int64)
    link = ends[-1] if ends else -1
    while link >= 0:
        shift[numbers[link]] = passed[link]
        link = before[link]
    return np.arange(requests) + np.maximum.accumulate(shift)


class NumpySampler(NeighborSampler):  # type: ignore[misc, unused-ignore]
    """Samples without replacement, hop by hop; a node is in a batch once."""

    def __init__(self, data: Any, num_neighbors: Any, seed: int = 0) -> None:
        with warnings.catch_warnings(action="ignore"):  # that it would like pyg-lib
            super().__init__(data, num_neighbors)
        self.rng = np.random.default_rng(seed)

    def _sample(self, seed: Any, seed_time: Any = None, **_: Any) -> Any:
        assert seed_time is None
        if isinstance(seed, dict):
            return self._sample_typed(seed)
        hops = self.num_neighbors.get_mapped_values()
        relation = (WHOLE, "to", WHOLE)
        arrays = {relation: (self.colptr.numpy(), self.row.numpy(), hops)}
        nodes, edges = sample(arrays, {WHOLE: seed.numpy()}, self.rng)
        row, col, edge = (torch.from_numpy(each) for each in edges[relation])
        return SamplerOutput(torch.from_numpy(nodes[WHOLE]), row, col, edge)

    def _sample_typed(self, seed: dict[str, Any]) -> Any:
        hops = self.num_neighbors.get_mapped_values(self.edge_types)
        arrays = {}
        for kind, name in self.to_rel_type.items():
            colptr, row = self.colptr_dict[name], self.row_dict[name]
            arrays[kind] = (colptr.numpy(), row.numpy(), hops[name])
        nodes, edges = sample(arrays, {k: v.numpy() for k, v in seed.items()}, self.rng)
        row, col, edge = (
            {kind: torch.from_numpy(each[part]) for kind, each in edges.items()}
            for part in range(3)
        )
        return HeteroSamplerOutput(
            {kind: torch.from_numpy(each) for kind, each in nodes.items()}, row, col, edge
        )


def sample(
    graph: dict[Any, tuple[Ids, Ids, list[int]]], seeds: dict[str, Ids], rng: np.random.Generator
) -> tuple[dict[str, Ids], dict[Any, list[Ids]]]:
    """Return the nodes of a batch by type, and its edges by kind: neighbour, target, which edge.

    `graph` has for each (neighbour's type, name, target's type) where each target's edges begin,
    the neighbours, and how many of them to take at each hop.
    """
    types = {kind for relation in graph for kind in (relation[0], relation[2])}
    nodes = {kind: seeds.get(kind, np.empty(0, np.int64)) for kind in types}
    begins = dict.fromkeys(types, 0)  # where the nodes begin that were new at the last hop
    parts: dict[Any, list[list[Ids]]] = {relation: [] for relation in graph}
    for hop in range(max(len(hops) for _, _, hops in graph.values())):
        frontier = {kind: np.arange(begins[kind], nodes[kind].size) for kind in types}
        begins = {kind: nodes[kind].size for kind in types}
        for relation, (starts, neighbours, hops) in graph.items():
            places = frontier[relation[2]]
            targets, edges = choose(starts, nodes[relation[2]][places], hops[hop], rng)
            found = neighbours[edges]
            known = nodes[relation[0]]
            nodes[relation[0]], where = joined(known, found)
            parts[relation].append([where, places[targets], edges])
    none = [np.empty(0, np.int64)] * 3
    return nodes, {
        relation: [np.concatenate(each) for each in zip(*(hops or [none]), strict=True)]
        for relation, hops in parts.items()
    }


def choose(starts: Ids, targets: Ids, most: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Return up to `most` edges of each target, drawn at random: number of the target, and edge."""
    counts = starts[targets + 1] - starts[targets]
    before = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(targets.size), counts)
    edges = np.arange(owner.size) + np.repeat(starts[targets] - before, counts)
    order = np.lexsort((rng.random(owner.size), owner))
    kept = order[np.arange(owner.size) - np.repeat(before, counts) < most]
    return owner[kept], edges[kept]


def joined(known: Ids, found: Ids) -> tuple[Ids, Ids]:
    """Return `known` with what is new behind it, and where in it each of `found` is."""
    new = np.setdiff1d(found, known)
    every = np.concatenate([known, new])
    order = np.argsort(every)
    return every, order[np.searchsorted(every[order], found)]
