"""What a worker's memory is spent on, so that it can be stated, and kept to."""

from __future__ import annotations

from typing import NamedTuple

from bandana_kv.errors import InputError
from bandana_kv.placement.neighbours import MOST_CELLS
from bandana_kv.units import size_text

__all__ = ["Room", "room_of"]

# Measured with bench/placement_distributed.py, and rounded up.
_ROW_BYTES = 24  # lookups and degree in the first pass; gains, sides and numbers are less
_SHARE_BYTES = 28  # a lookup of the share in hand, while it is shuffled
_PART_BYTES = 40  # a pin of a part, while it is bisected
_PART_ROW_BYTES = 64
_SMALLEST_SHARE = 1 << 12
_USUAL_SHARE = 1 << 16
_LARGEST_SHARE = 1 << 22


class Room(NamedTuple):
    """What fits into a worker.

    Attributes
    ----------
    lookups
        Of a share.
    bytes
        For the pins and the rows of a part or of groups, beside what all rows take.
    """

    lookups: int
    bytes: int

    def holds(self, rows: int, pins: int) -> bool:
        """Return whether a part fits."""
        return _PART_BYTES * pins + _PART_ROW_BYTES * rows <= self.bytes

    @property
    def pins(self) -> int:
        """Pins of the groups of a task, which are refined and not bisected."""
        return max(1, self.bytes // _PART_BYTES)

    @property
    def cells(self) -> int:
        """Pins times blocks of a group; a cell takes two bytes, for half as many requests."""
        return max(1, min(MOST_CELLS, self.bytes // 4))


def room_of(worker_memory_bytes: int, rows: int, lookups: int) -> Room:
    """Return what fits into a worker, for a table of `rows` and a log of `lookups`.

    Raises
    ------
    InputError
        Not even a share does.
    """
    left = worker_memory_bytes - _ROW_BYTES * rows
    least = _SHARE_BYTES * _SMALLEST_SHARE
    if left < least:
        raise InputError(
            f"worker_memory_bytes {worker_memory_bytes} is too little for {rows} rows: give each "
            f"worker at least {size_text(_ROW_BYTES * rows + least)}"
        )
    # by log and memory, and not by who works on it: samples are drawn share by share
    share = max(_USUAL_SHARE, min(_LARGEST_SHARE, lookups // 64))
    return Room(min(share, left // _SHARE_BYTES), left)
