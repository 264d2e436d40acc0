"""Blocks that are being read right now, so that two misses on one block read it once."""

from __future__ import annotations

import collections
import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Claim", "InFlight", "Reading"]


@dataclass(eq=False)
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
    ahead : bool
        Begun before anybody asked: it stays until its blocks were, or newer ones crowd it out.
    """

    blocks: NDArray[np.int64]
    payloads: NDArray[np.uint8] | None = None
    done: threading.Event = field(default_factory=threading.Event)
    ahead: bool = False


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

    def fresh_blocks(self) -> NDArray[np.int64]:
        """Return the blocks, sorted, whose rows nobody has considered for the cache yet."""
        ahead = [block for block, reading in self.others if reading.ahead]
        if not ahead:
            return self.mine.blocks
        return np.union1d(self.mine.blocks, np.array(ahead, np.int64))


class InFlight:
    """The blocks of one table that are being read; the caller holds the table's lock.

    Parameters
    ----------
    most_ahead
        Blocks read ahead that are kept, at most.
    """

    def __init__(self, most_ahead: int) -> None:
        self._readings: dict[int, Reading] = {}
        self._ahead: collections.deque[Reading] = collections.deque()
        self._blocks_ahead = 0
        self._most_ahead = most_ahead

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

    def claim_ahead(self, blocks: NDArray[np.int64]) -> Reading | None:
        """Register a read ahead of those of `blocks` that are not under way; None: all are."""
        wanted = [block for block in blocks.tolist() if block not in self._readings]
        wanted = wanted[: self._most_ahead]
        if not wanted:
            return None
        reading = Reading(np.array(wanted, np.int64), ahead=True)
        self._readings.update(dict.fromkeys(wanted, reading))
        self._ahead.append(reading)
        self._blocks_ahead += len(wanted)
        while self._blocks_ahead > self._most_ahead:
            self.drop_ahead(self._ahead[0])
        return reading

    def drop_ahead(self, reading: Reading) -> None:
        """Forget a read ahead; whoever waits for it still gets its payloads."""
        if reading in self._ahead:
            self._ahead.remove(reading)
            self._blocks_ahead -= reading.blocks.size
        self._forget(reading, reading.blocks.tolist())

    def release(self, claim: Claim) -> None:
        """End the read that `claim` registered, however it went; a second call does nothing.

        Blocks read ahead that it took are forgotten: their rows had their chance to enter.
        """
        claim.mine.done.set()
        self._forget(claim.mine, claim.mine.blocks.tolist())
        for block, reading in claim.others:
            if reading.ahead:
                self._forget(reading, [block])

    def _forget(self, reading: Reading, blocks: list[int]) -> None:
        for block in blocks:
            if self._readings.get(block) is reading:
                del self._readings[block]
