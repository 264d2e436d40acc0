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
    blocks : ndarray
        int64 (n,), sorted: what it reads.
    payloads : ndarray or None
        uint8 (n, payload_bytes), once `done` is set; None after a failure.
    done : Event
        Set when `payloads` is there, or will never be.
    """

    blocks: NDArray[np.int64]
    payloads: NDArray[np.uint8] | None = None
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Claim:
    """How the blocks of one request will come.

    Attributes
    ----------
    mine : Reading
        The read that this request must do itself, of no block perhaps.
    others : list of (int, Reading)
        The remaining blocks, each with the read that fetches it.
    """

    mine: Reading
    others: list[tuple[int, Reading]]


class InFlight:
    """The blocks of one table that are being read; the caller holds the table's lock."""

    def __init__(self) -> None:
        self._readings: dict[int, Reading] = {}

    def claim(self, blocks: NDArray[np.int64]) -> Claim:
        """Join the reads of `blocks` (sorted) that are under way; register one for the rest."""
        wanted = blocks.tolist()
        others: list[tuple[int, Reading]] = []
        mine = Reading(blocks)
        if not self._readings.keys().isdisjoint(wanted):
            others = [(block, self._readings[block]) for block in wanted if block in self._readings]
            wanted = [block for block in wanted if block not in self._readings]
            mine = Reading(np.array(wanted, np.int64))
        self._readings.update(dict.fromkeys(wanted, mine))
        return Claim(mine, others)

    def release(self, claim: Claim) -> None:
        """End the read that `claim` registered, however it went; a second call does nothing."""
        claim.mine.done.set()
        for block in claim.mine.blocks.tolist():
            if self._readings.get(block) is claim.mine:
                del self._readings[block]
