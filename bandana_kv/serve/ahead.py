"""Blocks read ahead of the lookups that will want them, outside of the cache."""

from __future__ import annotations

import collections
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv.serve import answer

if TYPE_CHECKING:
    from bandana_kv.serve.inflight import InFlight
    from bandana_kv.serve.reader import BlockRead, BlockReader, StoredTable
    from bandana_kv.serve.words import TableWords

__all__ = ["ReadAhead"]

# Blocks that a table keeps until they are asked for: 4 MiB.
_MOST = 1024

_Kept = collections.deque[tuple[NDArray[np.int64], NDArray[np.uint64]]]


def _let_go(in_flight: InFlight, kept: _Kept) -> None:
    """Free what a table that is gone had read ahead: its entries are its engine's."""
    while kept:
        in_flight.drop_ahead(*kept.popleft())


class ReadAhead:
    """Reads blocks of one table ahead, and keeps them until a lookup takes them.

    Parameters
    ----------
    table
        The words of the table.
    in_flight
        The blocks that are being read of its engine.
    serial
        What the table's blocks are in flight under: `serial` or'ed with their numbers.
    """

    def __init__(self, table: TableWords, in_flight: InFlight, serial: int) -> None:
        self._table = table
        self._in_flight = in_flight
        self._serial = serial
        self._kept: _Kept = collections.deque()
        self._blocks = 0
        self.lock = threading.Lock()
        """Guards what is kept; taken last."""
        weakref.finalize(self, _let_go, in_flight, self._kept).atexit = False

    def flights_of(self, blocks: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return under which numbers blocks are in flight."""
        return (blocks | self._serial).view(np.uint64)

    def read(
        self,
        stored: Callable[[], StoredTable],
        reader: BlockReader,
        positions: NDArray[np.int64],
        arrived: Callable[[int], None],
        ended: Callable[[], None],
    ) -> bool:
        """Begin to read the blocks of rows at `positions`.

        Returns whether there was something to read. Then `arrived` is told how many blocks came,
        if they did, and `ended` is called when it is over. `stored` is asked where they lie once
        they are claimed: a flush may have written some until then.
        """
        flights = self._in_flight.words
        most = min(_MOST, self._in_flight.entries // 2, positions.size)
        claimed = np.full((2, most), -1, np.int64)  # blocks, and their entries
        turns = itertools.count()

        def over(read: BlockRead | None) -> None:
            if next(turns):
                return  # an exception came after the reading had begun
            blocks, entries = claimed[:, claimed[1] >= 0].copy()
            sound = read is not None and bool(read.arrived.all())
            payloads = np.empty((0, 0), np.uint8) if read is None or not sound else read.payloads
            answer.deliver_ahead(flights, entries, payloads)
            if sound:
                with self.lock:
                    arrived(blocks.size)
            else:
                self._in_flight.drop_ahead(entries, self.flights_of(blocks))

        def ended_reading(read: BlockRead) -> None:
            over(read)
            ended()

        try:
            count = answer.claim_ahead(
                self._table.words, flights, positions, claimed[0], claimed[1], most
            )
            if count:
                blocks, entries = claimed[:, :count].copy()
                self._keep(entries, self.flights_of(blocks))
                reader.begin(stored(), blocks, ended_reading)
        except BaseException:
            over(None)
            raise
        return count > 0

    def _keep(self, entries: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
        """Note blocks that are read ahead; of too many, those that came first are let go."""
        with self.lock:
            self._kept.append((entries, keys))
            self._blocks += entries.size
            while self._blocks > _MOST:
                old = self._kept.popleft()
                self._blocks -= old[0].size
                self._in_flight.drop_ahead(*old)

    def after_fork_in_child(self) -> None:
        """Forget it: the threads that read do not exist here."""
        self._kept.clear()
        self._blocks = 0
