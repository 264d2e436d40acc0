"""Two placements of one table -> the blocks that differ, and where each row comes from.

Everything here is as long as the table, and runs while requests are answered: compiled, so that
it does not hold the GIL.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.block_map import stamps_of
from bandana_kv.disk.placement import Placement
from bandana_kv.errors import InputError
from bandana_kv.kernels.compile import copy_bytes, kernel, signed
from bandana_kv.kernels.views import readable

__all__ = ["Moves", "between", "carried", "sources_of", "take_rows"]

_NOBODY = np.uint32(0xFFFFFFFF)


@kernel
def _invert(position_of_id: np.ndarray, ids: np.ndarray) -> bool:
    """Fill `ids` with the id at each position; False: some position comes twice, or not at all."""
    ids[:] = _NOBODY
    for id in range(position_of_id.size):
        position = position_of_id[id]
        if position >= ids.size or ids[position] != _NOBODY:
            return False
        ids[position] = id
    return True


@kernel
def _differing(old: np.ndarray, new: np.ndarray, rows_per_block: int) -> np.ndarray:
    """Return the blocks (int64, rising) of the ids `new` that hold others than those of `old`."""
    blocks = (new.size + rows_per_block - 1) // rows_per_block
    found = np.empty(blocks, np.int64)
    count = 0
    for block in range(blocks):
        first = block * rows_per_block
        last = min(first + rows_per_block, new.size)
        same = min(first + rows_per_block, old.size) == last
        at = first
        while same and at < last:
            same = old[at] == new[at]
            at += 1
        if not same:
            found[count] = block
            count += 1
    return found[:count].copy()


@kernel
def _moved(old_ids: np.ndarray, new_position_of_id: np.ndarray, moved: np.ndarray) -> None:
    for position in range(old_ids.size):
        moved[position] = new_position_of_id[old_ids[position]]


@kernel
def carried(values: np.ndarray, moved: np.ndarray, rows: int) -> np.ndarray:
    """Return `values`, by old position, by new position: (rows,), zeros where nothing lay."""
    new = np.zeros(rows, values.dtype)
    for position in range(moved.size):
        new[moved[position]] = values[position]
    return new


@dataclass(frozen=True)
class Moves:
    """What becomes of a table's blocks.

    Attributes
    ----------
    placement : Placement
        The new one, with the copies that the table will have.
    ids : uint32 (rows,)
        The id at each new position.
    moved : uint32 (rows before,)
        The new position of what lies at each old one.
    blocks : int64 (n,)
        The blocks to write, rising.
    stamps : int64 (n,)
        Of each.
    """

    placement: Placement
    ids: NDArray[np.uint32]
    moved: NDArray[np.uint32]
    blocks: NDArray[np.int64]
    stamps: NDArray[np.int64]

    @property
    def block_count(self) -> int:
        """Blocks of the rows and behind them those of copies."""
        return self.placement.blocks - (-self.copies.size // self.placement.rows_per_block)

    @property
    def copies(self) -> NDArray[np.uint32]:
        """The ids of rows that lie a second time in the blocks behind."""
        return _copies_of(self.placement)

    def ids_in(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids of the rows of `blocks` (n,): int64 (n, rows_per_block), -1 for none."""
        ids = np.full((blocks.size, self.placement.rows_per_block), -1, np.int64)
        _fill_ids(readable(self.ids), self.copies, self.placement.blocks, blocks, ids)
        return ids


def _copies_of(placement: Placement) -> NDArray[np.uint32]:
    copies = np.zeros(0, np.uint32) if placement.replicas is None else placement.replicas
    return readable(copies)


@kernel
def _fill_ids(
    row_ids: np.ndarray, copies: np.ndarray, whole: int, blocks: np.ndarray, ids: np.ndarray
) -> None:
    per_block = ids.shape[1]
    for k in range(blocks.size):
        of_rows = blocks[k] < whole
        source = row_ids if of_rows else copies
        first = (blocks[k] if of_rows else blocks[k] - whole) * per_block
        for row in range(min(per_block, source.size - first)):
            ids[k, row] = signed(source[first + row])


def between(table: str, old: Placement, new: Placement) -> Moves:
    """Compare the placement that is served with a new one of the same rows, and perhaps more.

    Parameters
    ----------
    table
        Its name, for the error.
    old, new
        Of the same table and blocks. Where `new` says nothing of copies, those of `old` stay.
        Further rows of `new` are zeros.

    Raises
    ------
    InputError
        `new` is no permutation.

    Notes
    -----
    Cost: four passes over the rows without the GIL, 16 bytes a row.
    """
    old_ids, moved = (np.empty(old.rows, np.uint32) for _ in range(2))
    ids = np.empty(new.rows, np.uint32)
    served, positions = readable(old.position_of_id), readable(new.position_of_id)
    _invert(served, old_ids)
    if positions.dtype != np.uint32 or not _invert(positions, ids):
        raise InputError(
            f"table {table!r}: the placement {new.method!r} is not a permutation of "
            f"{new.rows} positions as uint32, so rows would be lost"
        )
    _moved(old_ids, positions, moved)
    copies = old.replicas if new.replicas is None else new.replicas
    copies = None if copies is None or not copies.size else readable(copies)
    placement = Placement(positions, new.rows_per_block, new.method, copies, new.learned_from)
    per_block = placement.rows_per_block
    blocks, stamps = _changed(old_ids, ids, per_block)
    before = _copies_of(old)
    if placement.blocks != old.blocks:
        before = before[:0]  # blocks behind others say how many those are
    behind, stamps_behind = _changed(before, _copies_of(placement), per_block)
    return Moves(
        placement,
        ids,
        moved,
        np.concatenate([blocks, behind + placement.blocks]),
        np.concatenate([stamps, stamps_behind]),
    )


def _changed(
    old: NDArray[np.uint32], new: NDArray[np.uint32], per_block: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    old, new = readable(old), readable(new)
    blocks = _differing(old, new, per_block)
    return blocks, stamps_of(new, per_block, blocks)


def sources_of(
    ids: NDArray[np.int64], position_of_id: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where rows come from, in the order of the blocks to read.

    Parameters
    ----------
    ids
        int64 (n, rows_per_block), -1 for none.
    position_of_id
        uint32 (rows,), as the rows lie now.

    Returns
    -------
    positions, targets
        int64 (m,) each: old positions, rising, and which of all the places in `ids` it is for.
    """
    flat = ids.reshape(-1)
    targets = np.flatnonzero((flat >= 0) & (flat < position_of_id.size))
    positions = position_of_id[flat[targets]].astype(np.int64)
    order = np.argsort(positions, kind="stable")
    return positions[order], targets[order]


@kernel
def take_rows(
    read: np.ndarray,
    blocks: np.ndarray,
    positions: np.ndarray,
    targets: np.ndarray,
    rows_per_block: int,
    row_bytes: int,
    header_bytes: int,
    payloads: np.ndarray,
) -> None:
    """Copy rows out of the payloads `read` of `blocks` to their places in new `payloads`."""
    for i in range(positions.size):
        block = positions[i] // rows_per_block
        source = np.searchsorted(blocks, block) * read.shape[1] + header_bytes
        source += (positions[i] - block * rows_per_block) * row_bytes
        target = targets[i] // rows_per_block * payloads.shape[1] + header_bytes
        target += targets[i] % rows_per_block * row_bytes
        copy_bytes(read, source, payloads, target, row_bytes)
