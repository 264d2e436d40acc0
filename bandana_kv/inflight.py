"""Blocks that are being read right now, so that two misses on one block read it once."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import BandanaError

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
    arrived : ndarray or None
        bool (n,), of which blocks the payloads are there and sound; None: of all.
    errors : dict of int to BandanaError
        What is wrong with others, by block number.
    done : Event
        Set when nothing more will come.
    ahead : bool
        Begun before anybody asked: it stays until its blocks were, or newer ones crowd it out.
    apart : bool
        Helping threads read it; whoever asked may have gone when it ends.
    left : callable or None
        What the one who asked and has gone wants done when it ends.
    """

    blocks: NDArray[np.int64]
    payloads: NDArray[np.uint8] | None = None
    arrived: NDArray[np.bool_] | None = None
    errors: dict[int, BandanaError] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    ahead: bool = False
    apart: bool = False
    left: Callable[[], None] | None = None

    def payload(self, block: int) -> NDArray[np.uint8] | None:
        """Return the payload (payload_bytes,) of a block, or None: not there yet, or bad."""
        if self.payloads is None:
            return None
        at = np.searchsorted(self.blocks, block)
        if self.arrived is not None and not self.arrived[at]:
            return None
        payload: NDArray[np.uint8] = self.payloads[at]
        return payload


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

    def release(self, claim: Claim, left: Callable[[], None] | None = None) -> None:
        """End the read that `claim` registered, however it went; a second call does nothing.

        A read that helping threads have not ended stays: others may join it. What is to be
        done when it ends is `left`; see :meth:`end`. Blocks read ahead that the claim took are
        forgotten: their rows had their chance to enter.
        """
        if claim.mine.apart and not claim.mine.done.is_set():
            claim.mine.left = left or _nothing
        else:
            claim.mine.done.set()
            self._forget(claim.mine, claim.mine.blocks.tolist())
        for block, reading in claim.others:
            if reading.ahead:
                self._forget(reading, [block])

    def end(self, reading: Reading) -> Callable[[], None] | None:
        """Hear that helping threads have ended a read; return what is to be done then.

        Where something is, the caller must :meth:`drop` the read after it.
        """
        reading.done.set()
        return reading.left

    def forget_blocks(self, blocks: NDArray[np.int64]) -> None:
        """Forget all reads of `blocks`: whoever asks for one from now on reads it anew."""
        for block in blocks.tolist():
            self._readings.pop(block, None)

    def drop(self, reading: Reading) -> None:
        """Forget a read."""
        self._forget(reading, reading.blocks.tolist())

    def _forget(self, reading: Reading, blocks: list[int]) -> None:
        for block in blocks:
            if self._readings.get(block) is reading:
                del self._readings[block]


def _nothing() -> None:
    pass
