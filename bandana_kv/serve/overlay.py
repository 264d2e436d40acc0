"""Rows that were updated and are not in their blocks yet, in DRAM by position."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.index import find, index
from bandana_kv.cache.state import DIRECT, CacheState
from bandana_kv.disk.blocks import HEADER_BYTES
from bandana_kv.kernels.bitpack import bits_for, position_at
from bandana_kv.kernels.compile import copy_bytes, kernel, signed
from bandana_kv.kernels.layout import Layout, first_copy, position_of_place

__all__ = ["Overlay", "blocks_with", "positions_of_ids"]

_FIRST_CAPACITY = 64
_BUCKETS_PER_ROW = 2


@kernel
def _put(
    buckets: np.ndarray,
    held: np.ndarray,
    sequences: np.ndarray,
    data: np.ndarray,
    counted: np.ndarray,
    positions: np.ndarray,
    rows: np.ndarray,
    sequence: np.ndarray,
) -> None:
    """Keep rows, unless a later update of theirs is there; in `counted` is how many are held."""
    row_bytes, used = data.shape[1], counted[0]
    for i in range(positions.size):
        position = signed(positions[i])
        slot = find(buckets, 0, position)
        if slot < 0:
            slot, used = used, used + 1
            index(buckets, 0, position, slot)
            held[slot] = position
        elif sequences[slot] > sequence[i]:
            continue
        sequences[slot] = sequence[i]
        copy_bytes(rows, i * row_bytes, data, slot * row_bytes, row_bytes)
    # Here, not by who called: Ctrl-C between the two would give slots out twice.
    counted[0] = used


@kernel
def _patch(
    buckets: np.ndarray,
    data: np.ndarray,
    layout: Layout,
    blocks: np.ndarray,
    payloads: np.ndarray,
) -> None:
    """Put the rows that this holds into the blocks that hold them."""
    row_bytes = data.shape[1]
    first = first_copy(layout.heat.size, layout.rows_per_block)
    for k in range(blocks.size):
        for row in range(layout.rows_per_block):
            place = blocks[k] * layout.rows_per_block + row
            position = position_of_place(place, layout.heat.size, layout.original_of, first)
            slot = find(buckets, 0, position) if position >= 0 else -1
            if slot >= 0:
                at = k * payloads.shape[1] + HEADER_BYTES + row * row_bytes
                copy_bytes(data, slot * row_bytes, payloads, at, row_bytes)


@kernel
def _renew(
    buckets: np.ndarray,
    data: np.ndarray,
    positions: np.ndarray,
    state: CacheState,
    cached: np.ndarray,
) -> None:
    """Overwrite the rows that the cache holds with what this holds of them."""
    row_bytes = data.shape[1]
    for i in range(positions.size):
        cached_slot = find(state.buckets, state.clock[DIRECT], positions[i])
        slot = find(buckets, 0, positions[i])
        if cached_slot >= 0 and slot >= 0:
            copy_bytes(data, slot * row_bytes, cached, cached_slot * row_bytes, row_bytes)


@kernel
def _positions(ids: np.ndarray, index: np.ndarray, rows: int, positions: np.ndarray) -> None:
    bits = bits_for(rows)
    for i in range(ids.size):
        positions[i] = position_at(index, bits, signed(ids[i]))


def positions_of_ids(
    ids: NDArray[np.uint32], index: NDArray[np.uint64], rows: int
) -> NDArray[np.int64]:
    """Return the positions, int64 (n,), of ids that are known to be in range."""
    positions = np.empty(ids.size, np.int64)
    _positions(ids, index, rows, positions)
    return positions


def blocks_with(positions: NDArray[np.int64], layout: Layout) -> NDArray[np.int64]:
    """Return the blocks, sorted, in which rows lie, and those in which their copies do."""
    per_block = layout.rows_per_block
    copied = np.flatnonzero(np.isin(layout.original_of, positions))
    places = first_copy(layout.heat.size, per_block) + copied
    blocks: NDArray[np.int64] = np.union1d(positions // per_block, places // per_block)
    return blocks


class Overlay:
    """Updated rows; the caller keeps changes apart from looks.

    Parameters
    ----------
    row_bytes
        Bytes of a row.

    Attributes
    ----------
    buckets : uint64 array
        Position to slot, as :mod:`bandana_kv.cache.index` has them; never direct.
    data : uint8 array (capacity, row_bytes)
        Rows by slot.
    """

    _held: NDArray[np.uint32]
    _sequences: NDArray[np.uint64]
    data: NDArray[np.uint8]

    def __init__(self, row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self._refill(0, np.empty(0, np.int64))

    @property
    def count(self) -> int:
        """Rows that it holds."""
        return int(self._counted[0])

    def _refill(self, capacity: int, kept: NDArray[np.int64]) -> None:
        """Make room for so many rows, and keep those in slots `kept`; all of it or nothing."""
        # One at least, empty: a search ends there. Whoever saw rows here may come too late.
        buckets = np.zeros(max(1, _BUCKETS_PER_ROW * capacity), np.uint64)
        held = np.empty(capacity, np.uint32)
        sequences = np.empty(capacity, np.uint64)
        data = np.empty((capacity, self._row_bytes), np.uint8)
        counted = np.zeros(1, np.int64)
        if kept.size:
            positions = self._held[kept].astype(np.int64)
            old = self._sequences[kept]
            _put(buckets, held, sequences, data, counted, positions, self.data[kept], old)
        self.buckets, self._held, self._sequences = buckets, held, sequences
        self.data, self._counted = data, counted

    @property
    def held_bytes(self) -> int:
        """DRAM that it takes."""
        arrays = (self.buckets, self._held, self._sequences, self.data)
        return sum(array.nbytes for array in arrays)

    def put(
        self,
        positions: NDArray[np.int64],
        rows: NDArray[np.uint8],
        sequences: NDArray[np.uint64],
    ) -> None:
        """Keep rows, uint8 (n, row_bytes); of a row's updates the one with the last sequence."""
        count = self.count
        if count + positions.size > self._held.size:
            wanted = max(_FIRST_CAPACITY, 2 * self._held.size, count + positions.size)
            self._refill(wanted, np.arange(count))
        _put(
            self.buckets,
            self._held,
            self._sequences,
            self.data,
            self._counted,
            positions,
            rows,
            sequences,
        )

    def patch(self, layout: Layout, blocks: NDArray[np.int64], payloads: NDArray[np.uint8]) -> None:
        """Put the rows that it holds into the payloads of `blocks`."""
        _patch(self.buckets, self.data, layout, blocks, payloads)

    def renew(
        self, positions: NDArray[np.int64], state: CacheState, cached: NDArray[np.uint8]
    ) -> None:
        """Overwrite the rows that a cache holds with what this holds of them.

        Not with what a caller just put: of two updates at once, the later one may be in first.
        """
        _renew(self.buckets, self.data, positions, state, cached)

    def positions(self, upto: int) -> NDArray[np.int64]:
        """Return the positions, sorted, of rows whose last update is `upto` or earlier."""
        old = self._sequences[: self.count] <= np.uint64(upto)
        return np.sort(self._held[: self.count][old].astype(np.int64))

    def drop(self, upto: int) -> None:
        """Forget rows whose last update is `upto` or earlier."""
        late = np.flatnonzero(self._sequences[: self.count] > np.uint64(upto))
        self._refill(late.size, late)
