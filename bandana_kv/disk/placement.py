"""What a placement is: at which position, and so in which block, each row of a table lies."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.placement_file import Stored, read_placement, write_placement
from bandana_kv.errors import InputError
from bandana_kv.kernels.layout import Layout
from bandana_kv.kernels.views import refuse_masked

__all__ = ["Placement", "check_copies", "check_fits", "check_permutation", "layout_of"]


@dataclass(frozen=True, eq=False)
class Placement:
    """Which position, and so which block, each row of a table has.

    Attributes
    ----------
    position_of_id
        uint32 (rows,). A permutation of 0 .. rows - 1: every block is exactly full, except
        the last one, which holds what remains. The block of an id is
        ``position_of_id[id] // rows_per_block``.
    rows_per_block
        Rows in a full block.
    method
        The name of the method that made it.
    replicas
        None: no row has a second copy.
    learned_from
        Share of the log's lookups that the method saw; below 1 if the log was sampled.
    """

    position_of_id: NDArray[np.uint32] = field(repr=False)
    rows_per_block: int
    method: str
    replicas: NDArray[np.uint32] | None = field(default=None, repr=False)
    learned_from: float = 1.0

    @property
    def rows(self) -> int:
        """Number of rows of the table."""
        return int(self.position_of_id.size)

    @property
    def blocks(self) -> int:
        """Number of blocks, the last of which may be part full."""
        return -(-self.rows // self.rows_per_block)

    def id_of_position(self) -> NDArray[np.uint32]:
        """Return the inverse, uint32 (rows,): the id of the row at each position.

        Cost: one pass over the rows; a new array each time.
        """
        inverse = np.empty_like(self.position_of_id)
        inverse[self.position_of_id] = np.arange(self.rows, dtype=np.uint32)
        return inverse

    def extended(self, rows: int) -> Placement:
        """Return the placement of a table of `rows`, whose further ones lie behind these."""
        if rows <= self.rows:
            return self
        behind = np.arange(self.rows, rows, dtype=np.uint32)
        positions = np.concatenate([self.position_of_id, behind])
        return replace(self, position_of_id=positions)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the placement to a file, durably and in one step.

        Parameters
        ----------
        path
            A file; what is there is replaced once the new one is complete.

        Raises
        ------
        OSError
            The file cannot be written.

        Notes
        -----
        Cost: 4 bytes a row, read twice for the checksum. The format is described in
        :mod:`bandana_kv.disk.placement_file`.
        """
        replicas = np.zeros(0, np.uint32) if self.replicas is None else self.replicas
        write_placement(
            path,
            Stored(
                self.position_of_id, replicas, self.rows_per_block, self.learned_from, self.method
            ),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Map a placement that :meth:`save` wrote.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        Placement
            Its arrays are read-only and backed by the file.

        Raises
        ------
        FormatError
            Not a placement, damaged, or of a format that this release does not read.
        InputError
            The file cannot be read.

        Notes
        -----
        Cost: reads the file once, for its checksum.
        """
        stored = read_placement(path)
        return cls(
            stored.position_of_id,
            stored.rows_per_block,
            stored.method,
            stored.replicas if stored.replicas.size else None,
            stored.learned_from,
        )


def layout_of(placement: Placement, heat: NDArray[np.uint8]) -> Layout:
    """Return a placement as the kernels take it.

    Parameters
    ----------
    placement
        Of the table.
    heat
        uint8 (rows,), by position.
    """
    original_of = np.zeros(0, np.uint32)
    if placement.replicas is not None:
        original_of = placement.position_of_id[placement.replicas]
    by_position = np.argsort(original_of).astype(np.uint32)
    return Layout(placement.rows_per_block, heat, original_of, by_position)


def check_fits(table: str, rows: int, per_block: int, given: Placement) -> None:
    """Refuse a placement that was made for another table or another size of block."""
    if (given.rows, given.rows_per_block) != (rows, per_block):
        raise InputError(
            f"table {table!r}: the placement is for {given.rows} rows, "
            f"{given.rows_per_block} a block; the table has {rows} rows, "
            f"{per_block} a block in this engine"
        )


def check_permutation(table: str, rows: int, placement: Placement) -> None:
    """Refuse what would serve rows of other ids, whoever made the placement."""
    positions = placement.position_of_id
    refuse_masked(f"table {table!r}: the placement {placement.method!r}", positions)
    taken = np.zeros(rows, np.bool_)
    if positions.dtype == np.uint32 and positions.shape == taken.shape:
        taken[positions[positions < taken.size]] = True
    if not taken.all():
        raise InputError(
            f"table {table!r}: the placement {placement.method!r} is not a permutation of "
            f"{taken.size} positions as uint32, so rows would be lost"
        )
    check_copies(table, rows, placement)


def check_copies(table: str, rows: int, placement: Placement) -> None:
    """Refuse copies of what is no row, or of the same row twice."""
    copies = placement.replicas
    if (
        copies is not None
        and copies.size
        and (
            copies.dtype != np.uint32
            or int(copies.max()) >= rows
            or np.unique(copies).size != copies.size
        )
    ):
        raise InputError(
            f"table {table!r}: the placement {placement.method!r} has copies that are not "
            "distinct ids of the table as uint32"
        )
