"""What ops ask of a store, as plain data: rows, or bags of several tables at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.serve.bags import Mode
from bandana_kv.torch.stores import store_of
from bandana_kv.torch.tensors import array_of, room, tensor_of

__all__ = ["BagsAsked", "RowsAsked", "pooling_threads"]

Ids = NDArray[np.integer[Any]]


def pooling_threads() -> int:
    """Return how many threads may pool a large request: as many as torch takes, if they are free.

    Between two layers torch's own threads spin, and keep their processors, unless OpenMP is told
    not to: there the caller has those that are left, and its own.
    """
    threads = torch.get_num_threads()
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        return threads
    return max(1, min(threads, len(os.sched_getaffinity(0)) - threads + 1))


@dataclass(frozen=True)
class RowsAsked:
    """Rows of one table.

    Attributes
    ----------
    number
        Of the store.
    table, dim, dtype
    pinned
        Whether the answer goes on to a GPU.
    ids
        Of any shape.
    """

    number: int
    table: str
    dim: int
    dtype: torch.dtype
    pinned: bool
    ids: Ids = field(compare=False)

    @property
    def arrays(self) -> tuple[NDArray[Any] | None, ...]:
        """What else two requests that are alike have in common."""
        return (self.ids,)

    def kept(self) -> RowsAsked:
        """Return the request with memory of its own."""
        return replace(self, ids=self.ids.copy())

    def read(self) -> list[torch.Tensor]:
        """Return the rows, ``ids.shape + (dim,)``, on the host."""
        out = room((*self.ids.shape, self.dim), self.dtype, self.pinned)
        store_of(self.number).multi_get(self.table, self.ids, out=array_of(out))
        return [out]


@dataclass(frozen=True)
class BagsAsked:
    """Bags of parts of one array of ids, as KeyedJaggedTensors have them.

    Attributes
    ----------
    number
        Of the store.
    tables, parts, dims, dtypes
        Of each answer: where its rows come from, which part has its bags, and what a row is.
    bags
        How many bags each part has; parts lie one after the other.
    mode, padding_idx
        As of :meth:`~bandana_kv.EmbeddingStore.embedding_bag`.
    last
        Whether `offsets` say where the last bag ends.
    pinned
        Whether the answers go on to a GPU.
    ids, offsets, weights
        Offsets: integers (bags,), or with `last` one more; None for ids (bags, n) of one part.
    """

    number: int
    tables: tuple[str, ...]
    parts: tuple[int, ...]
    bags: tuple[int, ...]
    dims: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    mode: Mode
    last: bool
    padding_idx: int | None
    pinned: bool
    ids: Ids = field(compare=False)
    offsets: Ids | None = field(compare=False)
    weights: NDArray[Any] | None = field(compare=False)

    @property
    def arrays(self) -> tuple[NDArray[Any] | None, ...]:
        """What else two requests that are alike have in common."""
        return self.ids, self.offsets, self.weights

    def kept(self) -> BagsAsked:
        """Return the request with memory of its own."""
        ids, offsets, weights = (None if each is None else each.copy() for each in self.arrays)
        assert ids is not None
        return replace(self, ids=ids, offsets=offsets, weights=weights)

    def read(self) -> list[torch.Tensor]:
        """Return a tensor (bags, dim) for each answer, on the host."""
        if len(self.bags) == 1 and len(self.tables) == 1:
            return [self._read_one()]
        by_table: dict[str, list[int]] = {}
        for k, table in enumerate(self.tables):
            by_table.setdefault(table, []).append(k)
        answers: dict[int, NDArray[Any]] = {}
        for table, rows in self._read_several(by_table).items():
            first = 0
            for k in by_table[table]:
                end = first + self.bags[self.parts[k]]
                answers[k], first = rows[first:end], end
        tensors = [tensor_of(answers[k]) for k in range(len(self.tables))]
        return [each.pin_memory() for each in tensors] if self.pinned else tensors

    def _read_one(self) -> torch.Tensor:
        out = room((self.bags[0], self.dims[0]), self.dtypes[0], self.pinned)
        store_of(self.number).embedding_bag(
            self.tables[0],
            self.ids,
            self.offsets,
            self.mode,
            per_sample_weights=self.weights,
            include_last_offset=self.last,
            padding_idx=self.padding_idx,
            out=array_of(out),
        )
        return out

    def _read_several(self, by_table: dict[str, list[int]]) -> dict[str, NDArray[Any]]:
        """Return the bags of all answers from a table, one after the other, by table."""
        asked = {
            table: joined if joined[2] is not None else joined[:2]
            for table, joined in ((each, self._joined(at)) for each, at in by_table.items())
        }
        return store_of(self.number).embedding_bag(
            asked,
            mode=self.mode,
            include_last_offset=True,
            padding_idx=self.padding_idx,
            threads=pooling_threads(),
        )

    def _joined(self, answers: list[int]) -> tuple[Ids, NDArray[np.int64], NDArray[Any] | None]:
        """Return ids, edges and weights of several answers from one table."""
        spans = [self.span(self.parts[k]) for k in answers]
        if len(spans) == 1:
            part, edges = spans[0]
            weights = None if self.weights is None else self.weights[part]
            return self.ids[part], edges, weights
        ids = np.concatenate([self.ids[part] for part, _ in spans])
        ends = np.concatenate([np.diff(edges) for _, edges in spans]).cumsum()
        weights = None
        if self.weights is not None:
            weights = np.concatenate([self.weights[part] for part, _ in spans])
        return ids, np.concatenate([[0], ends]), weights

    def span(self, part: int) -> tuple[slice, NDArray[np.int64]]:
        """Return where ids of a part lie, and where its bags begin among those, and end."""
        first = sum(self.bags[:part])
        edges = self.edges[first : first + self.bags[part] + 1]
        return slice(int(edges[0]), int(edges[-1])), edges - edges[0]

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """Where all bags begin, and the last one ends: int64 (bags + 1,).

        Raises
        ------
        InputError
            Offsets fall, are of another number than bags, or pass the ids.
        """
        if self.offsets is None:
            return np.arange(self.bags[0] + 1, dtype=np.int64) * self.ids.shape[1]
        edges = self.offsets.astype(np.int64)
        if not self.last:
            edges = np.append(edges, self.ids.size)
        if edges.shape != (sum(self.bags) + 1,) or edges[0] or edges[-1] > self.ids.size:
            raise InputError(
                f"offsets of {sum(self.bags)} bags must be one for each, and the end, from 0 to "
                f"the {self.ids.size} ids, not {self.offsets.shape}"
            )
        if (edges[1:] < edges[:-1]).any():
            raise InputError("offsets must not fall")
        return edges
