"""Requests out of what a sampler of graphs gives: neighbourhoods, or whole batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.logs.formats.growable import Growing

__all__ = ["read_batches"]

_Ids = NDArray[Any]
# By number in the batch: nodes whose neighbours were sampled, and beside each such a neighbour;
# and whether both are nodes of the type that is asked for, or the neighbours alone.
_Edges = list[tuple[_Ids, _Ids, bool]]


def read_batches(
    batches: Iterable[Any],
    epochs: int,
    node_type: str | None,
    take: Callable[[Any], Any] | None,
    whole: bool,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return offsets and ids of the requests in batches, which are gone through so often.

    Raises
    ------
    InputError
        A batch has no ids, or the batches cannot be gone through again.
    """
    if not isinstance(epochs, (int, np.integer)) or epochs < 1:
        raise InputError(f"epochs {epochs!r} is not a whole number from 1 up")
    if epochs > 1 and iter(batches) is batches:
        raise InputError(
            f"batches end after one epoch of {epochs}: give the loader itself, not iter(loader) or "
            "a generator"
        )
    ids, ends = Growing(np.int64), Growing(np.int64)
    ends.append(np.zeros(1, np.int64))
    for number, batch in enumerate(_again(batches, epochs)):
        nodes = _as_array(_nodes_of(batch, node_type) if take is None else take(batch))
        if nodes.ndim != 1 or (nodes.size and nodes.dtype.kind not in "iu"):
            raise InputError(
                f"batch {number} ({type(batch).__name__}) does not have node ids: they are whole "
                "numbers, as its n_id, or it is a sequence of them; say take= how to get at others"
            )
        edges = [] if whole or take is not None else _edges_of(batch, node_type)
        counts, looked_up = _neighbourhoods(nodes, edges) if edges else ([nodes.size], nodes)
        ends.append(ids.size + np.cumsum(counts))
        ids.append(looked_up)
    return ends.done(), ids.done()


def _again(batches: Iterable[Any], epochs: int) -> Iterator[Any]:
    for _ in range(epochs):
        yield from batches


def _nodes_of(batch: Any, node_type: str | None) -> Any:
    """Return where a batch has its node ids; what has no `n_id` holds them itself."""
    if node_type is not None:
        try:
            return batch[node_type].n_id
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise InputError(
                f"a batch ({type(batch).__name__}) has no nodes of type {node_type!r}; say take= "
                "how to get at its ids"
            ) from error
    if types := getattr(batch, "node_types", None):
        raise InputError(f"a batch has nodes of several types, say node_type=: {', '.join(types)}")
    return getattr(batch, "n_id", batch)


def _edges_of(batch: Any, node_type: str | None) -> _Edges:
    """Return the sampled edges whose neighbours are of the type, for each kind of edge."""
    if node_type is None:
        edges = getattr(batch, "edge_index", None)
        return [] if edges is None else [_ends(edges, True)]
    return [
        _ends(batch[kind].edge_index, kind[2] == node_type)
        for kind in getattr(batch, "edge_types", ())
        if kind[0] == node_type and getattr(batch[kind], "edge_index", None) is not None
    ]


def _ends(edges: Any, alike: bool) -> tuple[_Ids, _Ids, bool]:
    neighbours, targets = _as_array(edges).astype(np.int64, copy=False)
    return targets, neighbours, alike


def _neighbourhoods(nodes: _Ids, edges: _Edges) -> tuple[_Ids, _Ids]:
    """Return how many ids each request has, and all of them: a node with its neighbours is one.

    Nodes that are in none, such as seeds without neighbours, are a request each.
    """
    alone = np.ones(nodes.size, bool)
    counts, members = [], []
    for targets, neighbours, alike in edges:
        centres, sizes = np.unique(targets, return_counts=True)
        if alike:  # a node goes before its neighbours
            targets = np.concatenate([centres, targets])
            neighbours = np.concatenate([centres, neighbours])
        inside = neighbours[np.argsort(targets, kind="stable")]
        alone[inside] = False
        counts.append(sizes + alike)
        members.append(inside)
    rest = np.flatnonzero(alone)
    counts.append(np.ones(rest.size, np.int64))
    members.append(rest)
    return np.concatenate(counts), nodes[np.concatenate(members)]


def _as_array(given: Any) -> NDArray[Any]:
    """Return ids as an array; of a tensor, from whichever device it is on."""
    return np.asarray(given.cpu() if hasattr(given, "cpu") else given)
