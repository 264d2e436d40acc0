"""Requests that wait for blocks, any number of them, and the one thread that reads for them all.

Whoever asks puts a request in, and goes; the thread claims, begins to read, and answers what has
come, by the steps of any other request, and hands it over to the event loop that it is from. All
of it is compiled, and does without the GIL. The thread never waits for one request: not for its
blocks, and not for those that others read. What goes wrong, or cannot be done so, is handed over
unclaimed, to be done over by a thread that may wait.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.addresses import (
    add,
    bytes_at,
    call_at,
    load,
    now_ns,
    store,
    wake_descriptor,
    words_at,
)
from bandana_kv.kernels.compile import brief, inlined, kernel
from bandana_kv.kernels.reads import ADDRESS, FOUND, KEY, READ_WORDS
from bandana_kv.serve.answer import abandon, answer_request
from bandana_kv.serve.inflight import BLOCK_BYTES, watch_entries
from bandana_kv.serve.inflight import WORDS as FLIGHT_WORDS
from bandana_kv.serve.lookup import claim_blocks
from bandana_kv.serve.tickets import (
    BEGUN,
    CLAIMED,
    ENGINE,
    FAILED,
    GONE,
    LEFT,
    LOOP,
    NEXT,
    OUT,
    TABLE,
    TAKEN,
    TICKET,
    hand_over_as,
    push,
    scratch_of,
    take,
)
from bandana_kv.serve.words import (
    AGAIN,
    BEGUN_NS,
    CLOCK_ROOM,
    EPOCH,
    FLIGHTS,
    HEAD,
    IDS,
    MISSED,
    NO_MEMORY,
    NOT_CLAIMED,
    READS,
    ROWS_READ,
    SEEN_EPOCH,
    TABLE_WORDS,
    UNPLACED,
    WAIT,
)

__all__ = ["PendingReads", "hand_back", "put_in", "read_pending", "stop"]

# Constants of kernels.

# Of the thread: what is put in, on a cache line of its own; then what it alone uses. Reads in
# flight stand in slots, each with the ticket that it is of. Tickets are chained by NEXT.
_INBOX, _SLEEPING, _STOP = range(3)
(
    _QUEUE,
    _WAKE,
    _ROOM,
    _SLOTS,
    _OWNERS,
    _FREE,
    _FREE_COUNT,
    _ENDED,
    _BACKLOG,
    _LAST,
    _WAITING,
    _ACTIVE,
) = range(8, 20)
_WORDS = 24
_QUEUE_WORDS = 4
# Requests that have claimed blocks, for each read that may be in flight.
_ACTIVE_EACH = 2


@brief
def put_in(
    pending_at: int, ticket_at: int, table_at: int, engine_at: int, loop_at: int, out: np.ndarray
) -> None:
    """Have a request read that :func:`bandana_kv.serve.lookup.look_up_request` has looked up.

    Parameters
    ----------
    pending_at
        Words of :class:`PendingReads`.
    ticket_at
        Of the request; its scratch follows.
    table_at, engine_at
        Of the table, and what :meth:`bandana_kv.adapters.contract.Adapter.standing` gave since.
    loop_at
        Who is told; its words are LOOP_WORDS.
    out
        uint8 (n, row_bytes). All of these are kept until the request is handed over.
    """
    ticket = words_at(ticket_at, TICKET)
    ticket[TABLE], ticket[ENGINE], ticket[LOOP] = table_at, engine_at, loop_at
    ticket[OUT] = out.ctypes.data
    ticket[TAKEN] = 1
    scratch = words_at(ticket_at + 8 * TICKET, HEAD)
    scratch[BEGUN_NS] = now_ns(scratch[CLOCK_ROOM : CLOCK_ROOM + 2])
    pending = words_at(pending_at, _WORDS)
    push(pending, _INBOX, ticket_at)
    if load(pending, _SLEEPING):
        wake_descriptor(pending[_WAKE])


@brief
def stop(pending: np.ndarray) -> None:
    """Have the thread end when nothing is left; nothing is put in any more."""
    store(pending, _STOP, 1)
    wake_descriptor(pending[_WAKE])


# -- the thread's own ----------------------------------------------------------------------------


@inlined
def _append(pending: np.ndarray, first: int) -> None:
    """Put a chain of tickets behind those that wait to be begun."""
    if first == 0:
        return
    if pending[_BACKLOG]:
        words_at(pending[_LAST], TICKET)[NEXT] = first
    else:
        pending[_BACKLOG] = first
    while words_at(first, TICKET)[NEXT]:
        first = words_at(first, TICKET)[NEXT]
    pending[_LAST] = first


@inlined
def _prepend(pending: np.ndarray, ticket_at: int) -> None:
    if pending[_BACKLOG] == 0:
        pending[_LAST] = ticket_at
    words_at(ticket_at, TICKET)[NEXT] = pending[_BACKLOG]
    pending[_BACKLOG] = ticket_at


@inlined
def _pop(pending: np.ndarray) -> None:
    pending[_BACKLOG] = words_at(pending[_BACKLOG], TICKET)[NEXT]


@kernel
def _claim(ticket_at: int) -> int:
    """Claim the blocks of a request; 0, or the state in which it is to be handed over."""
    ticket, scratch = words_at(ticket_at, TICKET), scratch_of(ticket_at)
    table = words_at(ticket[TABLE], TABLE_WORDS)
    in_flight = words_at(table[FLIGHTS], FLIGHT_WORDS)
    if ticket[GONE]:
        return 0
    begun_ns = scratch[BEGUN_NS]
    # What a flush has written since it was looked up, its engine's words may not know of; nor what
    # one writes while it claims.
    if load(table, EPOCH) != scratch[SEEN_EPOCH]:
        return NOT_CLAIMED
    try:
        claim_blocks(table, in_flight, scratch, scratch[IDS], scratch[MISSED])
    except Exception:
        return NO_MEMORY
    scratch[BEGUN_NS] = begun_ns
    if scratch[UNPLACED] or load(table, EPOCH) != scratch[SEEN_EPOCH]:
        abandon(in_flight, scratch)
        return NOT_CLAIMED
    ticket[CLAIMED] = 1
    ticket[BEGUN], ticket[LEFT] = 0, scratch[READS]
    return 0


@inlined
def _end_read(pending: np.ndarray, slot: int) -> int:
    """Give a read's slot back; return the ticket that it was of."""
    read = words_at(pending[_SLOTS] + 8 * READ_WORDS * slot, READ_WORDS)
    ticket_at = words_at(pending[_OWNERS], pending[_ROOM])[slot]
    ticket, scratch = words_at(ticket_at, TICKET), scratch_of(ticket_at)
    scratch[HEAD + ROWS_READ * scratch[IDS] + READ_WORDS * read[3] + FOUND] = read[FOUND]
    in_flight = words_at(words_at(ticket[TABLE], TABLE_WORDS)[FLIGHTS], FLIGHT_WORDS)
    if read[FOUND] != in_flight[BLOCK_BYTES]:
        ticket[FAILED] = 1
    ticket[LEFT] -= 1
    words_at(pending[_FREE], pending[_ROOM])[pending[_FREE_COUNT]] = slot
    pending[_FREE_COUNT] += 1
    return int(ticket_at)


@kernel
def _begin_reads(pending: np.ndarray, ticket_at: int) -> bool:
    """Begin as many of a request's reads as may be in flight; return whether those are all."""
    ticket, scratch = words_at(ticket_at, TICKET), scratch_of(ticket_at)
    queue_at, owners = pending[_QUEUE], words_at(pending[_OWNERS], pending[_ROOM])
    begin = words_at(queue_at, _QUEUE_WORDS)[0]
    reads = HEAD + ROWS_READ * scratch[IDS]
    while ticket[BEGUN] < scratch[READS]:
        if pending[_FREE_COUNT] == 0:
            return False
        pending[_FREE_COUNT] -= 1
        slot = words_at(pending[_FREE], pending[_ROOM])[pending[_FREE_COUNT]]
        read_at = pending[_SLOTS] + 8 * READ_WORDS * slot
        read = words_at(read_at, READ_WORDS)
        at = reads + READ_WORDS * ticket[BEGUN]
        read[KEY], read[ADDRESS], read[FOUND] = scratch[at + KEY], scratch[at + ADDRESS], 0
        read[3] = ticket[BEGUN]
        owners[slot] = ticket_at
        ticket[BEGUN] += 1
        if call_at(begin, queue_at, ticket[ENGINE], read_at) == 0:
            _end_read(pending, slot)
    return True


@kernel
def _answer(pending: np.ndarray, ticket_at: int) -> bool:
    """Go on with a request whose own reads have ended; return whether it need not wait."""
    ticket, scratch = words_at(ticket_at, TICKET), scratch_of(ticket_at)
    table = words_at(ticket[TABLE], TABLE_WORDS)
    in_flight = words_at(table[FLIGHTS], FLIGHT_WORDS)
    state = NOT_CLAIMED
    if ticket[FAILED] == 0:
        try:
            out = bytes_at(ticket[OUT], 0)
            state = answer_request(table, in_flight, scratch, scratch[IDS], out)
        except Exception:
            state = NO_MEMORY
        if state == WAIT:
            ticket[NEXT] = pending[_WAITING]
            pending[_WAITING] = ticket_at
            return False
        # Whoever else is watched for is looked at anew; this one's may be gone once it is handed
        # over.
        watch_entries(in_flight, -1)
        # What a flush has written since, its engine's words may not know of; others would join.
        current = load(table, EPOCH) == scratch[SEEN_EPOCH]
        if state == AGAIN and scratch[UNPLACED] == 0 and current:
            ticket[BEGUN], ticket[LEFT] = 0, scratch[READS]
            _prepend(pending, ticket_at)
            return True
    if state < 0:
        abandon(in_flight, scratch)
        if state != NO_MEMORY:
            state = NOT_CLAIMED
    pending[_ACTIVE] -= 1
    hand_over_as(ticket_at, state)
    return True


@kernel
def _begin_some(pending: np.ndarray) -> None:
    """Begin requests, in the order in which they came, as long as there is room."""
    while pending[_BACKLOG] and pending[_FREE_COUNT]:
        ticket_at = pending[_BACKLOG]
        ticket = words_at(ticket_at, TICKET)
        if ticket[CLAIMED] == 0:
            if pending[_ACTIVE] >= _ACTIVE_EACH * pending[_ROOM]:
                return
            state = _claim(ticket_at)
            if ticket[CLAIMED] == 0:
                _pop(pending)
                hand_over_as(ticket_at, state)
                continue
            pending[_ACTIVE] += 1
        if not _begin_reads(pending, ticket_at):
            return
        _pop(pending)
        if ticket[LEFT] == 0:
            _answer(pending, ticket_at)


@kernel
def _look_again(pending: np.ndarray, wake: int) -> bool:
    """Go on with requests whose blocks others have read; return whether there was one.

    If there was none, `wake` is written to when another block has come.
    """
    waiting, pending[_WAITING] = pending[_WAITING], 0
    went_on = False
    while waiting:
        ticket = words_at(waiting, TICKET)
        following = ticket[NEXT]
        table = words_at(ticket[TABLE], TABLE_WORDS)
        watch_entries(words_at(table[FLIGHTS], FLIGHT_WORDS), wake)
        went_on = _answer(pending, waiting) or went_on
        waiting = following
    return went_on


@inlined
def _unwatch(pending: np.ndarray) -> None:
    waiting = pending[_WAITING]
    while waiting:
        ticket = words_at(waiting, TICKET)
        table = words_at(ticket[TABLE], TABLE_WORDS)
        watch_entries(words_at(table[FLIGHTS], FLIGHT_WORDS), -1)
        waiting = ticket[NEXT]


@kernel
def read_pending(pending: np.ndarray) -> None:
    """Read for all requests that are put in: until told to stop, or the queue has failed.

    Of the latter, what is left is for :func:`hand_back`.
    """
    queue_at, ended_at, room = pending[_QUEUE], pending[_ENDED], pending[_ROOM]
    wait = words_at(queue_at, _QUEUE_WORDS)[1]
    ended = words_at(ended_at, room)
    while True:
        stopped = load(pending, _STOP)
        _append(pending, take(pending, _INBOX))
        _begin_some(pending)
        if stopped and pending[_BACKLOG] == 0 and pending[_ACTIVE] == 0:
            return
        least = 1
        if pending[_WAITING] and _look_again(pending, pending[_WAKE]):
            least = 0
        # In this order: whoever puts something in looks for a sleeper after that.
        add(pending, _SLEEPING, 1)
        if load(pending, _INBOX) or load(pending, _STOP) != stopped:
            least = 0
        count = call_at(wait, queue_at, ended_at, least)
        add(pending, _SLEEPING, -1)
        _unwatch(pending)
        if count < 0:
            return
        for i in range(count):
            slot = (ended[i] - pending[_SLOTS]) // (8 * READ_WORDS)
            ticket_at = _end_read(pending, slot)
            if words_at(ticket_at, TICKET)[LEFT] == 0:
                _answer(pending, ticket_at)


@kernel
def hand_back(pending: np.ndarray) -> None:
    """Hand all that is left over, unclaimed; nothing is in flight, nor put in any more."""
    _append(pending, take(pending, _INBOX))
    _append(pending, pending[_WAITING])
    pending[_WAITING] = 0
    while pending[_BACKLOG]:
        ticket_at = pending[_BACKLOG]
        _pop(pending)
        ticket, scratch = words_at(ticket_at, TICKET), scratch_of(ticket_at)
        if ticket[CLAIMED]:
            table = words_at(ticket[TABLE], TABLE_WORDS)
            abandon(words_at(table[FLIGHTS], FLIGHT_WORDS), scratch)
        hand_over_as(ticket_at, NOT_CLAIMED)


class PendingReads:
    """The words of the thread, and the arrays that they name.

    Parameters
    ----------
    queue_words
        Of :class:`bandana_kv.adapters.contract.Queue`, which is kept as long.

    Attributes
    ----------
    words : int64 array
        What kernels take.
    address : int
        Where they are.
    """

    def __init__(self, queue_words: NDArray[np.int64]) -> None:
        room = int(queue_words[3])
        self._arrays = (
            queue_words,
            np.zeros(READ_WORDS * room, np.int64),
            np.zeros(room, np.int64),
            np.arange(room, dtype=np.int64),
            np.zeros(room, np.int64),
        )
        queue, slots, owners, free, ended = (array.ctypes.data for array in self._arrays)
        self.words = np.zeros(_WORDS, np.int64)
        numbers = queue, int(queue_words[2]), room, slots, owners, free, room, ended
        self.words[_QUEUE : _ENDED + 1] = numbers
        self.address: int = self.words.ctypes.data
