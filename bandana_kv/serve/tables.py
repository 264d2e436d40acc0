"""One request to several tables: their misses go to the device together.

Rankers ask dozens of tables for a few rows each. Here the tables of such a request are the rows
of one array, and each step of the others is done for all of them by one call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.addresses import bytes_at, call_at, words_at
from bandana_kv.kernels.compile import brief, kernel
from bandana_kv.kernels.reads import READ_WORDS
from bandana_kv.serve.answer import abandon, answer_many, answer_request
from bandana_kv.serve.inflight import WORDS as IN_FLIGHT_WORDS
from bandana_kv.serve.lookup import claim_blocks, look_up_request
from bandana_kv.serve.reads import blocks_to_read, read_by, take_blocks
from bandana_kv.serve.words import (
    AGAIN,
    BAGS,
    BUSY,
    HEAD,
    READS,
    ROW_BYTES,
    ROWS_READ,
    TABLE_WORDS,
    UNABLE,
    WORDS_OF_ID,
    scratch_words,
)

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter
    from bandana_kv.serve.failsafe import Deadline
    from bandana_kv.serve.reader import BlockReader, Errors
    from bandana_kv.serve.table import ServedTable

__all__ = ["Tables"]

# Constants of kernels. Columns of the tables of a request: where a table's words are, and those of
# the blocks in flight of its engine; where its scratch begins, and its rows go; how many rows
# missed; what the last step said; by which engine its blocks are read; where the words of its bags
# are, or 0.
_TABLE, _FLIGHTS, _SCRATCH, _OUT, _MISSED, _STATE, _ENGINE, _BAGS = range(8)
_COLUMNS = 8
_FEW_IDS = 512
_HEADS = np.arange(HEAD)


@kernel
def _ask(
    tables: np.ndarray,
    offsets: np.ndarray,
    ids: np.ndarray,
    scratch: np.ndarray,
    first: int,
    patient: bool,
) -> int:
    """Look up in all tables from `first` on, then claim blocks for what they missed.

    Returns the number of tables that missed something; -1 - k where table k has a wrong id, as its
    state says; BUSY - k where it is busy.
    """
    missing = 0
    for k in range(tables.shape[0]):
        low, high = offsets[k], offsets[k + 1]
        if k >= first and high > low:
            table = words_at(tables[k, _TABLE], TABLE_WORDS)
            at = tables[k, _SCRATCH]
            own = scratch[at : at + scratch_words(high - low)]
            own[:HEAD] = 0
            own[BAGS] = tables[k, _BAGS]
            row_bytes = table[ROW_BYTES]
            rows = bytes_at(tables[k, _OUT], (high - low) * row_bytes)
            rows = rows.reshape(high - low, row_bytes)
            missed = look_up_request(table, own, ids[low:high], rows, patient)
            if missed == BUSY:
                return BUSY - k
            tables[k, _MISSED] = missed
            if missed < 0:
                return -1 - k
        missing += tables[k, _MISSED] > 0
    for k in range(tables.shape[0]):
        if tables[k, _MISSED] > 0:
            table = words_at(tables[k, _TABLE], TABLE_WORDS)
            flights = words_at(tables[k, _FLIGHTS], IN_FLIGHT_WORDS)
            count = offsets[k + 1] - offsets[k]
            at = tables[k, _SCRATCH]
            own = scratch[at : at + scratch_words(count)]
            claim_blocks(table, flights, own, count, tables[k, _MISSED])
    return missing


@brief
def _ask_few(tables: np.ndarray, offsets: np.ndarray, ids: np.ndarray, scratch: np.ndarray) -> int:
    return _ask(tables, offsets, ids, scratch, 0, False)


@kernel
def _ask_many(
    tables: np.ndarray, offsets: np.ndarray, ids: np.ndarray, scratch: np.ndarray, first: int
) -> int:
    return _ask(tables, offsets, ids, scratch, first, True)


@kernel
def _read_and_answer(
    tables: np.ndarray,
    offsets: np.ndarray,
    scratch: np.ndarray,
    number: int,
    reads: np.ndarray,
    engine: np.ndarray,
) -> int:
    """Do all reads of the tables of one engine, and answer them; return how many are not done.

    Those have a state other than 0, as :func:`bandana_kv.serve.answer.answer_many` says. UNABLE:
    the engine cannot be read so just now, and nothing was done.
    """
    count = 0
    for k in range(tables.shape[0]):
        if tables[k, _MISSED] > 0 and tables[k, _ENGINE] == number:
            at = tables[k, _SCRATCH]
            first = at + HEAD + ROWS_READ * (offsets[k + 1] - offsets[k])
            for r in range(scratch[at + READS]):
                for word in range(READ_WORDS):
                    reads[count, word] = scratch[first + READ_WORDS * r + word]
                reads[count, 3] = first + READ_WORDS * r
                count += 1
    if count and call_at(engine[0], engine.ctypes.data, reads.ctypes.data, count) != 0:
        return UNABLE
    for r in range(count):
        scratch[reads[r, 3] + 2] = reads[r, 2]
    left = 0
    for k in range(tables.shape[0]):
        if tables[k, _MISSED] > 0 and tables[k, _ENGINE] == number:
            table = words_at(tables[k, _TABLE], TABLE_WORDS)
            flights = words_at(tables[k, _FLIGHTS], IN_FLIGHT_WORDS)
            ids = offsets[k + 1] - offsets[k]
            at = tables[k, _SCRATCH]
            own = scratch[at : at + scratch_words(ids)]
            rows = bytes_at(tables[k, _OUT], ids * table[ROW_BYTES]).reshape(ids, table[ROW_BYTES])
            tables[k, _STATE] = answer_request(table, flights, own, ids, rows)
            left += tables[k, _STATE] != 0
    return left


class Tables:
    """Tables of one version that are asked together, made once for many requests.

    Parameters
    ----------
    tables
        In the order in which requests name them.

    Attributes
    ----------
    tables : list of ServedTable
    alike : bool
        Whether all have rows of one kind.
    """

    def __init__(self, tables: Sequence[ServedTable]) -> None:
        self.tables = list(tables)
        self._addresses = np.array(
            [[table.words.ctypes.data, table.flights.ctypes.data] for table in tables], np.int64
        ).reshape(-1, 2)
        self._row_bytes = np.array([table.row_bytes for table in tables], np.int64)
        kinds = {(table.dim, table.dtype) for table in tables}
        self.alike = len(kinds) == 1

    def multi_get(
        self,
        reader: BlockReader,
        ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        out: NDArray[np.int64],
        deadline: Deadline | None,
        bags: NDArray[np.int64] | int = 0,
    ) -> None:
        """Put the rows that each table is asked for where ``out[k]``, an address, says.

        Parameters
        ----------
        ids, offsets
            int64: table k is asked for ``ids[offsets[k]:offsets[k + 1]]``.
        bags
            Where the words of each table's bags are, if rows are pooled, as
            :meth:`ServedTable.multi_get` has it.
        """
        if deadline is not None or any(table.breaks for table in self.tables):
            self._one_by_one(reader, ids, offsets, out, deadline, np.broadcast_to(bags, len(out)))
            return
        count = len(self.tables)
        sizes = np.diff(offsets)
        requests = np.zeros((count, _COLUMNS), np.int64)
        requests[:, : _FLIGHTS + 1] = self._addresses
        words = HEAD + WORDS_OF_ID * sizes
        requests[1:, _SCRATCH] = np.cumsum(words)[:-1]
        requests[:, _OUT] = out
        requests[:, _BAGS] = bags
        scratch = np.empty(int(words.sum()), np.int64)
        # Also of tables that are not come to: an error looks there.
        scratch[requests[:, _SCRATCH, None] + _HEADS] = 0
        try:
            missing = _ask_few(requests, offsets, ids, scratch) if ids.size <= _FEW_IDS else BUSY
            if missing <= BUSY:
                missing = _ask_many(requests, offsets, ids, scratch, BUSY - missing)
            if missing < 0:
                at = -1 - missing
                wrong = -1 - int(requests[at, _MISSED])
                raise self.tables[at].out_of_range(ids[offsets[at] : offsets[at + 1]], wrong)
            if missing:
                self._answer(reader, requests, ids, offsets, scratch)
        except BaseException:
            for k in range(count):
                abandon(self.tables[k].flights, self._own(requests, scratch, words, k))
            raise

    def _one_by_one(
        self,
        reader: BlockReader,
        ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        out: NDArray[np.int64],
        deadline: Deadline | None,
        bags: NDArray[np.int64],
    ) -> None:
        """Ask one table after the other: a breaker is asked for each, or helping threads read."""
        for k, table in enumerate(self.tables):
            wanted = ids[offsets[k] : offsets[k + 1]]
            if wanted.size:
                rows = _rows_at(int(out[k]), wanted.size * table.row_bytes)
                rows = rows.reshape(wanted.size, -1)
                table.multi_get(reader, wanted, rows, deadline, bags=int(bags[k]))

    def _own(
        self,
        requests: NDArray[np.int64],
        scratch: NDArray[np.int64],
        words: NDArray[np.int64],
        k: int,
    ) -> NDArray[np.int64]:
        first = int(requests[k, _SCRATCH])
        return scratch[first : first + int(words[k])]

    def _answer(
        self,
        reader: BlockReader,
        requests: NDArray[np.int64],
        ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        scratch: NDArray[np.int64],
    ) -> None:
        words = HEAD + WORDS_OF_ID * np.diff(offsets)
        singly: list[int] = []
        memory: list[NDArray[np.uint8]] = []  # beside that of blocks in flight; until all is over
        # Asked anew each time: a flush gives a table the engine that it has written with, and
        # another table of the same engine goes on with one that does not see that.
        adapters: dict[int, Adapter] = {}
        by_adapter: dict[int, list[int]] = {}
        for k in np.flatnonzero(requests[:, _MISSED]).tolist():
            adapter = self.tables[k].stored.adapter
            adapters[id(adapter)] = adapter
            by_adapter.setdefault(id(adapter), []).append(k)
        for number, (known, of_engine) in enumerate(by_adapter.items(), 1):
            requests[of_engine, _ENGINE] = number
            owns = {k: self._own(requests, scratch, words, k) for k in of_engine}
            room = np.zeros((sum(int(own[READS]) for own in owns.values()), READ_WORDS), np.int64)
            for k, own in owns.items():
                memory += self.tables[k].place(own)
            answer = partial(_read_and_answer, requests, offsets, scratch, number, room)
            left = read_by(adapters[known], len(room), answer) if len(room) else None
            if left is None or left == UNABLE:
                requests[of_engine, _STATE] = AGAIN
                singly += of_engine
            elif left:
                singly += [k for k in of_engine if requests[k, _STATE]]
        owns = {k: self._own(requests, scratch, words, k) for k in singly}
        rows = {k: self._rows_of(requests, offsets, k) for k in singly}
        for k, told in self._read_together(reader, requests, owns, rows, memory).items():
            wanted, missed = ids[offsets[k] : offsets[k + 1]], int(requests[k, _MISSED])
            self.tables[k].answer_from_blocks(
                reader, wanted, missed, owns[k], rows[k], None, int(requests[k, _STATE]), told
            )

    def _rows_of(
        self, requests: NDArray[np.int64], offsets: NDArray[np.int64], k: int
    ) -> NDArray[np.uint8]:
        count = int(offsets[k + 1] - offsets[k])
        size = count * int(self._row_bytes[k])
        return _rows_at(int(requests[k, _OUT]), size).reshape(count, -1)

    def _read_together(
        self,
        reader: BlockReader,
        requests: NDArray[np.int64],
        owns: dict[int, NDArray[np.int64]],
        rows: dict[int, NDArray[np.uint8]],
        memory: list[NDArray[np.uint8]],
    ) -> dict[int, Errors]:
        """Have several tables' blocks in flight at once that only Python can read.

        Returns which tables are not answered yet, and what is wrong with blocks of theirs.
        """
        left: dict[int, Errors] = {k: {} for k in owns}
        # Until none of this request's own are left: others may wait for those, while it waits.
        while todo := [k for k in left if owns[k][READS]]:
            tables = [self.tables[k] for k in todo]
            for k, table in zip(todo, tables, strict=True):
                memory += table.place(owns[k])
            blocks = [blocks_to_read(owns[k]) for k in todo]
            reads = reader.read_all([table.stored for table in tables], blocks)
            for k, table, (payloads, wrong) in zip(todo, tables, reads, strict=True):
                take_blocks(owns[k], payloads, wrong, left[k])
                state = answer_many(table.words, table.flights, owns[k], rows[k])
                requests[k, _STATE] = state
                if state == 0:
                    del left[k]
        return left


def _rows_at(address: int, size: int) -> NDArray[np.uint8]:
    raw = (ctypes.c_uint8 * size).from_address(address)
    rows: NDArray[np.uint8] = np.ctypeslib.as_array(raw)
    return rows
