"""Blocks that are being read right now, so that two misses on one block read it once."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Claim", "InFlight", "Reading"]


@dataclass
class Reading:
    """A read that some thread has begun.

    Attributes
    ----------
    done : Event
        Set when `payloads` is there, or will never be.
    payloads : ndarray or None
        uint8 (n, payload_bytes) of the blocks it was begun for; None after a failure.
    """

    done: threading.Event = field(default_factory=threading.Event)
    payloads: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Claim:
    """How the blocks of one request will come.

    Attributes
    ----------
    mine : ndarray
        int64, indices of the blocks that this request must read.
    reading : Reading
        Its own read.
    others : list of (int, Reading, int)
        Index of the block, the read that fetches it, its row in there.
    """

    mine: NDArray[np.int64]
    reading: Reading
    others: list[tuple[int, Reading, int]]


class InFlight:
    """The blocks of one table that are being read; the caller holds the table's lock."""

    def __init__(self) -> None:
        self._readings: dict[int, tuple[Reading, int]] = {}

    def claim(self, blocks: NDArray[np.int64]) -> Claim:
        """Join the reads that are under way, and register one for the remaining blocks."""
        mine: list[int] = []
        others: list[tuple[int, Reading, int]] = []
        reading = Reading()
        for index, block in enumerate(blocks.tolist()):
            under_way = self._readings.get(block)
            if under_way is None:
                self._readings[block] = (reading, len(mine))
                mine.append(index)
            else:
                others.append((index, *under_way))
        return Claim(np.array(mine, np.int64), reading, others)

    def release(self, claim: Claim, blocks: NDArray[np.int64]) -> None:
        """Forget the read that `claim` registered for its share of `blocks`."""
        for block in blocks[claim.mine].tolist():
            under_way = self._readings.get(block)
            if under_way is not None and under_way[0] is claim.reading:
                del self._readings[block]
