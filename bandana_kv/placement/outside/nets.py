"""An access log as the nets that partitioners take: a request and the rows it looks up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel

__all__ = ["Nets", "build_nets", "transposed", "write_hmetis"]

_PINS_AT_A_TIME = 1 << 20
_LONGEST_NUMBER = 11  # ten digits and what follows them


@dataclass(frozen=True)
class Nets:
    """Vertices are rows that share a request with another row, nets are requests.

    Attributes
    ----------
    id_of_vertex
        int32 (vertices,), ascending: the id that each vertex stands for.
    offsets, pins
        int64 (nets + 1,) and int32: net e joins the vertices ``pins[offsets[e]:offsets[e + 1]]``,
        two or more, without repeats.
    """

    id_of_vertex: NDArray[np.int32]
    offsets: NDArray[np.int64]
    pins: NDArray[np.int32]

    @property
    def vertices(self) -> int:
        """Number of vertices."""
        return int(self.id_of_vertex.size)

    @property
    def nets(self) -> int:
        """Number of nets."""
        return int(self.offsets.size - 1)


@kernel
def _distinct_pins(
    offsets: NDArray[np.int64],
    ids: NDArray[Any],
    rows: int,
    net_offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
) -> int:
    """Copy every request of two ids or more, each id once; return how many there are."""
    last_request = np.full(rows, -1, np.int64)
    nets = 0
    cursor = 0
    net_offsets[0] = 0
    for request in range(offsets.size - 1):
        begin = cursor
        for at in range(offsets[request], offsets[request + 1]):
            if last_request[ids[at]] != request:
                last_request[ids[at]] = request
                pins[cursor] = ids[at]
                cursor += 1
        if cursor - begin >= 2:
            nets += 1
            net_offsets[nets] = cursor
        else:
            cursor = begin
    return nets


def build_nets(offsets: NDArray[np.int64], ids: NDArray[Any], rows: int) -> Nets:
    """Build the nets of a log.

    Parameters
    ----------
    offsets, ids
        A validated log, read-only.
    rows
        Rows of the table.

    Returns
    -------
    Nets
        Ids that share no request with another are no vertices.

    Notes
    -----
    Cost: one pass over the lookups; 4 bytes a lookup and some 13 bytes a row.
    """
    net_offsets = np.empty(offsets.size, np.int64)
    pins = np.empty(ids.size, np.int32)
    copy: Callable[..., int] = _distinct_pins
    nets = copy(offsets, ids, rows, net_offsets, pins)
    pins = pins[: net_offsets[nets]]
    is_vertex = np.zeros(rows, np.bool_)
    is_vertex[pins] = True
    id_of_vertex = np.flatnonzero(is_vertex).astype(np.int32)
    vertex_of_id = np.empty(rows, np.int32)
    vertex_of_id[id_of_vertex] = np.arange(id_of_vertex.size, dtype=np.int32)
    return Nets(id_of_vertex, net_offsets[: nets + 1], vertex_of_id[pins])


@kernel
def _fill_transposed(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    begins: NDArray[np.int64],
    nets_of_vertex: NDArray[np.int32],
) -> None:
    cursor = begins[:-1].copy()
    for net in range(offsets.size - 1):
        for at in range(offsets[net], offsets[net + 1]):
            nets_of_vertex[cursor[pins[at]]] = net
            cursor[pins[at]] += 1


def transposed(nets: Nets) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the nets by vertex: offsets, int64 (vertices + 1,), and nets, int32 (pins,)."""
    begins = np.zeros(nets.vertices + 1, np.int64)
    np.cumsum(np.bincount(nets.pins, minlength=nets.vertices), out=begins[1:])
    nets_of_vertex = np.empty(nets.pins.size, np.int32)
    _fill_transposed(nets.offsets, nets.pins, begins, nets_of_vertex)
    return begins, nets_of_vertex


@kernel
def _format(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    first: int,
    last: int,
    text: NDArray[np.uint8],
) -> int:
    """Write nets first .. last - 1 as decimal numbers from 1, a line each; return the length."""
    digits = np.empty(10, np.uint8)
    cursor = 0
    for net in range(first, last):
        for at in range(offsets[net], offsets[net + 1]):
            number = np.int64(pins[at]) + 1
            count = 0
            while number > 0:
                digits[count] = 48 + number % 10
                number //= 10
                count += 1
            for k in range(count):
                text[cursor + k] = digits[count - 1 - k]
            text[cursor + count] = 32
            cursor += count + 1
        text[cursor - 1] = 10
    return cursor


def write_hmetis(nets: Nets, path: Path) -> None:
    """Write the nets as an hMETIS file, which the partitioners read themselves.

    Notes
    -----
    Cost: some 7 bytes on disk and 10 ns a pin; a few dozen MiB of memory.
    """
    into_text: Callable[..., int] = _format
    with open(path, "wb") as file:
        file.write(f"{nets.nets} {nets.vertices}\n".encode())
        first = 0
        while first < nets.nets:
            end = nets.offsets[first] + _PINS_AT_A_TIME
            last = int(np.searchsorted(nets.offsets, end, side="right")) - 1
            last = min(max(last, first + 1), nets.nets)
            pins = int(nets.offsets[last] - nets.offsets[first])
            text = np.empty(pins * _LONGEST_NUMBER, np.uint8)
            file.write(text[: into_text(nets.offsets, nets.pins, first, last, text)].data)
            first = last
