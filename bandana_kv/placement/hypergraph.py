"""An access log as a hypergraph: which requests each row takes part in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel

__all__ = ["Hypergraph", "RequestCounts", "build_hypergraph", "count_requests"]


@dataclass(frozen=True)
class Hypergraph:
    """Vertices are rows, hyperedges are requests.

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


@dataclass(frozen=True)
class RequestCounts:
    """What has to be known of a log before its hypergraph is built.

    Attributes
    ----------
    degree
        int64 (rows,): the requests that look each id up together with another.
    number_of_request
        int32 (requests,): their numbers in the hypergraph, -1 for those left out.
    kept
        How many are numbered.
    """

    degree: NDArray[np.int64]
    number_of_request: NDArray[np.int32]
    kept: int


def count_requests(offsets: NDArray[np.int64], ids: NDArray[Any], rows: int) -> RequestCounts:
    """Count the requests of a validated log. Cost: one pass over the lookups."""
    degree, number_of_request, kept = _count_pins(offsets, ids, rows)
    return RequestCounts(degree, number_of_request, int(kept))


def build_hypergraph(
    offsets: NDArray[np.int64], ids: NDArray[Any], order: NDArray[Any], counts: RequestCounts
) -> Hypergraph:
    """Build the hypergraph of a log.

    Parameters
    ----------
    offsets, ids
        A validated log, read-only.
    order
        Integer (vertices,): the ids that become vertices, in this order; all that share a
        request with another must be among them.
    counts
        Of this log.

    Returns
    -------
    Hypergraph
        Its vertices in the order asked for.

    Notes
    -----
    Cost: one pass over the lookups, 4 bytes a pin and some 32 bytes a row.
    """
    id_of_vertex = order.astype(np.int32)
    vertex_of_id = np.full(counts.degree.size, -1, np.int32)
    vertex_of_id[id_of_vertex] = np.arange(id_of_vertex.size, dtype=np.int32)
    begins = np.zeros(id_of_vertex.size + 1, np.int64)
    np.cumsum(counts.degree[id_of_vertex], out=begins[1:])
    pins = np.empty(begins[-1], np.int32)
    _fill_pins(offsets, ids, counts.number_of_request, vertex_of_id, begins, pins)
    return Hypergraph(id_of_vertex, begins, pins, counts.kept)
