"""Reading with a deadline: whoever asks may go before the blocks have come."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import BandanaError
from bandana_kv.serve import answer, words
from bandana_kv.serve.reads import blocks_of, reads_of, tell

if TYPE_CHECKING:
    from bandana_kv.serve.failsafe import Deadline
    from bandana_kv.serve.inflight import InFlight
    from bandana_kv.serve.reader import BlockRead, BlockReader, Errors, StoredTable
    from bandana_kv.serve.words import TableWords

__all__ = ["LateReads"]

Words = NDArray[np.int64]

# Why a block that was given up on did not come: nobody is told.
_GONE = BandanaError("given up")


class _Late:
    """What is left of a read whose caller may go before it ends."""

    def __init__(self, memory: list[NDArray[np.uint8]]) -> None:
        self.memory = memory  # of blocks for which there was none among those in flight
        self.rest: Words | None = None
        self.over = False


class LateReads:
    """Reads of one table in helping threads: what is late arrives for others, and the cache.

    Without that a device that is always a little late would never fill the cache.

    Parameters
    ----------
    table
        The words of the table. What late reads need of it they keep.
    in_flight
        The blocks that are being read of its engine.
    """

    def __init__(self, table: TableWords, in_flight: InFlight) -> None:
        self._table = table
        self._in_flight = in_flight
        self.lock = threading.Lock()
        """Guards which reads are late; taken last."""

    def read(
        self,
        stored: StoredTable,
        reader: BlockReader,
        scratch: Words,
        deadline: Deadline,
        errors: Errors,
        memory: list[NDArray[np.uint8]],
    ) -> None:
        """Do the reads of a request that end by the deadline; `memory` is kept as long as needed.

        What is wrong with blocks is put into `errors`; those that are late are LATE.
        """
        todo = reads_of(scratch)
        blocks = blocks_of(scratch, todo)
        late = _Late(memory)
        read = reader.begin(stored, blocks, partial(self._ended, stored, late))
        read.finished.wait(deadline.left())
        with self.lock:
            told = dict(read.errors)
            there = read.arrived | np.isin(blocks, list(told))
            if not late.over and not there.all():
                late.rest = scratch.copy()
                answer.part_late(scratch, late.rest, there)
        reader.withdraw(read)
        if read.failure is not None and late.rest is None:
            raise read.failure
        todo = reads_of(scratch)
        if len(todo):
            answer.take_payloads(scratch, read.payloads[there], 0)
            tell(scratch, todo, blocks[there], told, errors)

    def _ended(self, stored: StoredTable, late: _Late, read: BlockRead) -> None:
        """Hear, in a helping thread, that nothing more will arrive."""
        with self.lock:
            late.over = True
            rest = late.rest
        if rest is None:
            return
        flights = self._in_flight.words
        try:
            todo = reads_of(rest)
            blocks = blocks_of(rest, todo)
            at = np.searchsorted(read.blocks, blocks)
            gone = blocks[~read.arrived[at]].tolist()
            answer.take_payloads(rest, read.payloads[at], 0)
            tell(rest, todo, blocks, dict.fromkeys(gone, _GONE), {})
            nowhere = np.empty((int(rest[words.IDS]), stored.row_bytes), np.uint8)
            answer.answer_many(self._table.words, flights, rest, nowhere)
        except BaseException:
            answer.abandon(flights, rest)
            raise
