"""An access log as a hypergraph: which requests each row takes part in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.compiled import kernel

__all__ = ["Hypergraph", "build_hypergraph"]


@dataclass(frozen=True)
class Hypergraph:
    """Vertices are the rows that some request looks up, hyperedges are requests.

    Attributes
    ----------
    id_of_vertex
        int32 (vertices,): the id that each vertex stands for.
    offsets, pins
        int64 (vertices + 1,) and int32: vertex v is in the requests
        ``pins[offsets[v]:offsets[v + 1]]``, ascending and without repeats. Requests that look
        up a single row are left out, since no placement changes what they cost.
    requests
        Number of requests that `pins` number.
    """

    id_of_vertex: NDArray[np.int32]
    offsets: NDArray[np.int64]
    pins: NDArray[np.int32]
    requests: int

    @property
    def vertices(self) -> int:
        """Number of vertices."""
        return int(self.id_of_vertex.size)


@kernel
def _count_pins(
    offsets: NDArray[np.int64], ids: NDArray[Any], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """Count each id's requests; number the requests that look up two rows or more."""
    last_request = np.full(rows, -1, np.int32)
    degree = np.zeros(rows, np.int64)
    number_of_request = np.full(offsets.size - 1, -1, np.int32)
    kept = 0
    for request in range(offsets.size - 1):
        begin, end = offsets[request], offsets[request + 1]
        distinct = 0
        for at in range(begin, end):
            if last_request[ids[at]] != request:
                last_request[ids[at]] = request
                distinct += 1
        if distinct >= 2:
            number_of_request[request] = kept
            kept += 1
            for at in range(begin, end):
                if last_request[ids[at]] == request:
                    last_request[ids[at]] = -1
                    degree[ids[at]] += 1
    return degree, number_of_request, kept


@kernel
def _fill_pins(
    offsets: NDArray[np.int64],
    ids: NDArray[Any],
    number_of_request: NDArray[np.int32],
    vertex_of_id: NDArray[np.int32],
    begins: NDArray[np.int64],
    pins: NDArray[np.int32],
) -> None:
    cursor = begins[:-1].copy()
    for request in range(offsets.size - 1):
        number = number_of_request[request]
        if number < 0:
            continue
        for at in range(offsets[request], offsets[request + 1]):
            vertex = vertex_of_id[ids[at]]
            place = cursor[vertex]
            # requests come in ascending order, so a repeat is the pin written last
            if place > begins[vertex] and pins[place - 1] == number:
                continue
            pins[place] = number
            cursor[vertex] = place + 1


def build_hypergraph(
    offsets: NDArray[np.int64], ids: NDArray[Any], order: NDArray[Any], rows: int
) -> Hypergraph:
    """Build the hypergraph of a log, its vertices in the order of `order`.

    Parameters
    ----------
    offsets, ids
        A validated log, read-only.
    order
        Integer (rows,): the ids in the order in which they become vertices.
    rows
        Rows of the table.

    Returns
    -------
    Hypergraph
        Ids that share no request with another are no vertices.

    Notes
    -----
    Cost: two passes over the lookups, 4 bytes a pin and some 32 bytes a row.
    """
    degree, number_of_request, kept = _count_pins(offsets, ids, rows)
    id_of_vertex = order[degree[order] > 0].astype(np.int32)
    vertex_of_id = np.full(rows, -1, np.int32)
    vertex_of_id[id_of_vertex] = np.arange(id_of_vertex.size, dtype=np.int32)
    begins = np.zeros(id_of_vertex.size + 1, np.int64)
    np.cumsum(degree[id_of_vertex], out=begins[1:])
    pins = np.empty(begins[-1], np.int32)
    _fill_pins(offsets, ids, number_of_request, vertex_of_id, begins, pins)
    return Hypergraph(id_of_vertex, begins, pins, int(kept))
