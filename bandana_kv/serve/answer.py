"""The second step of a request: verify the blocks that came, answer from them, admit rows.

Where compiled code can read the engine, claiming and reading are part of it: :func:`read_missed`.
"""

from __future__ import annotations

import numpy as np

from bandana_kv.cache.index import find
from bandana_kv.cache.request import BLOCK_READS, admit
from bandana_kv.cache.state import DIRECT
from bandana_kv.disk.blocks import HEADER_BYTES, reason_of
from bandana_kv.kernels.addresses import (
    add,
    bytes_at,
    call_at,
    enter_lock,
    leave_lock,
    load,
    lock_alone,
    now_ns,
    uint32s_at,
    uint64s_at,
    unlock_alone,
    words_at,
)
from bandana_kv.kernels.bitpack import bits_for, position_at
from bandana_kv.kernels.compile import brief, inlined, kernel, signed
from bandana_kv.kernels.layout import cover
from bandana_kv.kernels.reads import READ_WORDS
from bandana_kv.kernels.search import index_in
from bandana_kv.serve.inflight import (
    AHEAD,
    BAD,
    BLOCK_BYTES,
    READING,
    READY,
    claim_entry,
    entry_address,
    entry_state,
    finish_entry,
    forget_entry,
    leave_entry,
    lock_entries,
    mark_ahead,
    take_ahead,
    unlock_entries,
    wait_for_entry,
)
from bandana_kv.serve.lookup import claim_block, claim_blocks
from bandana_kv.serve.pooling import pool_bags, rows_of_bags
from bandana_kv.serve.words import (
    ADDRESSES,
    AGAIN,
    ALL_BLOCKS,
    ASKED,
    BAGS,
    BEGUN_NS,
    BLOCKS,
    BUCKETS,
    CLOCK,
    CLOCK_ROOM,
    COPIES,
    COUNTED,
    COUNTERS_KEPT,
    DATA,
    DISTINCT,
    ENTRIES,
    EPOCH,
    HEAD,
    HELD,
    IDS,
    INDEX,
    LATE,
    LOCK,
    LOST,
    MISSED,
    NOT_ALLOWED,
    ORDERED,
    OTHERS,
    PER_BLOCK,
    PLACES,
    READS,
    ROW_BYTES,
    ROWS,
    ROWS_READ,
    SEEN_EPOCH,
    SOUND,
    SPACE,
    STATUS,
    UNABLE,
    UNPLACED,
    UNREAD,
    UPDATED,
    UPDATED_ROWS,
    UPDATES,
    UPPER_NS,
    WAIT,
    WAITS,
    WANTED,
    WARMING,
    add_up,
    copy,
    flight_of,
    label_of,
    layout_of,
    state_of,
)

__all__ = [
    "abandon",
    "absent",
    "answer_many",
    "answer_request",
    "claim_ahead",
    "deliver_ahead",
    "give_up_waiting",
    "part_late",
    "read_and_answer",
    "read_missed",
    "take_payloads",
    "wait_for_others",
]


@inlined
def _deliver(table: np.ndarray, in_flight: np.ndarray, scratch: np.ndarray, ids: int) -> None:
    """Verify the blocks that this request has read, and let others have them."""
    counters = scratch[COUNTED : COUNTED + COUNTERS_KEPT]
    block_bytes = in_flight[BLOCK_BYTES]
    for r in range(scratch[READS]):
        read = HEAD + ROWS_READ * ids + READ_WORDS * r
        k = scratch[read + 3]
        status = HEAD + STATUS * ids + k
        counters[BLOCK_READS] += 1
        if scratch[read + 2] != block_bytes:
            if scratch[status] == 0:
                scratch[status] = UNREAD
                scratch[HEAD + ADDRESSES * ids + k] = scratch[read + 2]  # says why
        elif scratch[SOUND] == 0 and scratch[status] == 0:
            block = scratch[HEAD + BLOCKS * ids + k]
            scratch[status] = reason_of(
                bytes_at(scratch[read + 1], block_bytes),
                table[SPACE],
                label_of(table, block),
                table[ROWS],
                table[COPIES],
                table[PER_BLOCK],
                table[ROW_BYTES],
            )
        entry = scratch[HEAD + ENTRIES * ids + k]
        if entry >= 0:
            finish_entry(in_flight, entry, BAD if scratch[status] else READY)
    scratch[READS] = 0
    scratch[SOUND] = 0  # what is read next is verified again


@inlined
def _others(table: np.ndarray, in_flight: np.ndarray, scratch: np.ndarray, ids: int) -> int:
    """Look at the blocks that others read: 0, all came; WAIT; or AGAIN, some are ours to read."""
    bad = 0
    for k in range(scratch[WANTED]):
        entry = scratch[HEAD + ENTRIES * ids + k]
        if entry < -1 and scratch[HEAD + STATUS * ids + k] == 0:
            state = entry_state(in_flight, -2 - entry) & ~AHEAD
            if state == READING:
                return WAIT
            bad += state == BAD
    if not bad:
        return 0
    # Whoever read them failed, perhaps for a reason of their own.
    lock_entries(in_flight)
    for k in range(scratch[WANTED]):
        entry = scratch[HEAD + ENTRIES * ids + k]
        if entry < -1 and entry_state(in_flight, -2 - entry) & ~AHEAD == BAD:
            forget_entry(in_flight, -2 - entry)
            leave_entry(in_flight, -2 - entry)
            scratch[OTHERS] -= 1
            claim_block(in_flight, table, scratch, ids, k)
    unlock_entries(in_flight)
    return AGAIN


@inlined
def _row_at(table: np.ndarray, scratch: np.ndarray, ids: int, place: int) -> int:
    """Return the address of the row at a place, or 0: no block brought it."""
    per_block = table[PER_BLOCK]
    block = place // per_block
    first = HEAD + BLOCKS * ids
    k = index_in(scratch[first : first + scratch[ALL_BLOCKS]], block)
    if scratch[HEAD + STATUS * ids + k]:
        return 0
    row = (place - block * per_block) * table[ROW_BYTES]
    return signed(scratch[HEAD + ADDRESSES * ids + k] + HEADER_BYTES + row)


@inlined
def _copy_out(table: np.ndarray, scratch: np.ndarray, ids: int, out: np.ndarray) -> int:
    """Answer missed rows from their blocks, or pool them; return how many are LOST."""
    row_bytes, bags = table[ROW_BYTES], rows_of_bags(scratch)
    rows_at = words_at(bags, ids if bags else 0)
    ordered = scratch[HEAD + ORDERED * ids : HEAD + ORDERED * ids + scratch[DISTINCT]]
    lost = 0
    for i in range(ids):
        if scratch[HEAD + ids + i] < 0:
            at = index_in(ordered, scratch[HEAD + i])
            row = _row_at(table, scratch, ids, scratch[HEAD + PLACES * ids + at])
            if row == 0:
                scratch[HEAD + ids + i] = LOST
                lost += 1
            elif bags:
                rows_at[i] = row
            else:
                copy(row, out.ctypes.data + i * row_bytes, row_bytes)
    if bags:
        pool_bags(scratch, out)
    return lost


@inlined
def _leave_out_lost(table: np.ndarray, scratch: np.ndarray, ids: int) -> None:
    """Keep only rows whose blocks came among those that are asked for."""
    kept = 0
    ordered = scratch[HEAD + ORDERED * ids : HEAD + ORDERED * ids + scratch[DISTINCT]]
    places = scratch[HEAD + PLACES * ids : HEAD + PLACES * ids + scratch[DISTINCT]]
    for i in range(scratch[DISTINCT]):
        if _row_at(table, scratch, ids, places[i]):
            ordered[kept], places[kept] = ordered[i], places[i]
            kept += 1
    scratch[DISTINCT] = kept
    ordered = ordered[:kept]
    asked = scratch[HEAD + ASKED * ids : HEAD + ASKED * ids + scratch[MISSED]]
    left = 0
    for i in range(scratch[MISSED]):
        at = index_in(ordered, asked[i])
        if at < kept and ordered[at] == asked[i]:
            asked[left] = asked[i]
            left += 1
    scratch[MISSED] = left


@inlined
def _fresh_blocks(in_flight: np.ndarray, scratch: np.ndarray, ids: int, fresh: np.ndarray) -> int:
    """Put the blocks whose rows nobody has considered for the cache yet; return how many."""
    count = 0
    lock_entries(in_flight)
    for k in range(scratch[WANTED]):
        entry = scratch[HEAD + ENTRIES * ids + k]
        ahead = entry < -1 and take_ahead(in_flight, -2 - entry)
        if ahead:
            leave_entry(in_flight, -2 - entry)
        if (entry >= -1 or ahead) and scratch[HEAD + STATUS * ids + k] == 0:
            fresh[count] = scratch[HEAD + BLOCKS * ids + k]
            count += 1
    unlock_entries(in_flight)
    return count


@kernel
def _admit(table: np.ndarray, scratch: np.ndarray, fresh: np.ndarray, fills: np.ndarray) -> None:
    """Let rows of the blocks that came into the cache, as they are by now; it is locked."""
    ids, row_bytes = scratch[IDS], table[ROW_BYTES]
    distinct, missed = scratch[DISTINCT], scratch[MISSED]
    # Else, since these were read, updated rows have gone into their blocks.
    if table[EPOCH] == scratch[SEEN_EPOCH]:
        filled = admit(
            state_of(table),
            layout_of(table),
            scratch[HEAD + ASKED * ids : HEAD + ASKED * ids + missed],
            scratch[HEAD + ORDERED * ids : HEAD + ORDERED * ids + distinct],
            scratch[HEAD + PLACES * ids : HEAD + PLACES * ids + distinct],
            fresh,
            fills,
            scratch[COUNTED : COUNTED + COUNTERS_KEPT],
        )
        held = uint32s_at(table[HELD], table[HELD + 1])
        updates = uint64s_at(table[UPDATES], table[UPDATES + 1])
        for i in range(filled):
            slot = fills[i, 0]
            row = _row_at(table, scratch, ids, fills[i, 1])
            if table[UPDATED]:
                updated = find(updates, 0, signed(held[slot]))
                if updated >= 0:
                    row = table[UPDATED_ROWS] + updated * row_bytes
            copy(row, table[DATA] + slot * row_bytes, row_bytes)


@inlined
def _note_wait(table: np.ndarray, wait_ns: int) -> None:
    """Count a request that had to wait for blocks, in the bucket of how long it did."""
    upper = words_at(table[UPPER_NS], table[UPPER_NS + 1])
    waits = words_at(table[WAITS], table[WAITS + 1])
    bucket = 0
    while bucket < upper.size and upper[bucket] < wait_ns:
        bucket += 1
    add(waits, bucket, 1)
    add(waits, upper.size + 1, wait_ns)


@kernel
def answer_request(
    table: np.ndarray,
    in_flight: np.ndarray,
    scratch: np.ndarray,
    ids: int,
    out: np.ndarray,
) -> int:
    """Do :func:`answer_many`."""
    _deliver(table, in_flight, scratch, ids)
    if scratch[OTHERS]:
        state = _others(table, in_flight, scratch, ids)
        if state < 0:
            return state
    lost = _copy_out(table, scratch, ids, out)
    fresh = np.empty(scratch[WANTED], np.int64)
    fills = np.empty((fresh.size * table[PER_BLOCK] + scratch[MISSED], 2), np.int64)
    lock_alone(table, LOCK)
    if lost:
        _leave_out_lost(table, scratch, ids)
    count = _fresh_blocks(in_flight, scratch, ids, fresh)
    if scratch[WARMING]:
        count = 0
    if scratch[MISSED]:
        _admit(table, scratch, fresh[:count], fills)
    unlock_alone(table, LOCK)
    if scratch[WARMING] == 0:
        _note_wait(table, now_ns(scratch[CLOCK_ROOM : CLOCK_ROOM + 2]) - scratch[BEGUN_NS])
    add_up(table, scratch)
    # After admission: whoever misses these rows from now on finds them either in the cache or
    # in nobody's hands, never read twice at once.
    _leave_all(in_flight, scratch, ids)
    return lost


@inlined
def _leave_all(in_flight: np.ndarray, scratch: np.ndarray, ids: int) -> None:
    lock_entries(in_flight)
    for k in range(scratch[WANTED]):
        entry = scratch[HEAD + ENTRIES * ids + k]
        if entry >= 0:
            leave_entry(in_flight, entry)
        elif entry < -1:
            leave_entry(in_flight, -2 - entry)
    unlock_entries(in_flight)
    scratch[WANTED] = 0


@inlined
def _read_by(engine: np.ndarray, scratch: np.ndarray, ids: int) -> bool:
    """Have an engine do the reads of a request; False: it cannot just now, and did nothing."""
    if scratch[READS] == 0:
        return True
    reads = scratch.ctypes.data + 8 * (HEAD + ROWS_READ * ids)
    done: bool = call_at(engine[0], engine.ctypes.data, reads, scratch[READS]) == 0
    return done


@kernel
def read_missed(
    table: np.ndarray,
    in_flight: np.ndarray,
    scratch: np.ndarray,
    out: np.ndarray,
    engine: np.ndarray,
    allowed: int,
) -> int:
    """Do all for the missed rows of a request in one call: claim, read, verify, answer, admit.

    `engine` is what :meth:`bandana_kv.adapters.contract.Adapter.reading` gives; `allowed` as
    :func:`bandana_kv.serve.lookup.claim` says.

    Returns
    -------
    int
        As :func:`answer_many`. UNABLE: the engine cannot be read so just now, or there is no
        memory for some block; the blocks are claimed, and no more was done.

    Notes
    -----
    Where blocks lie, `engine` has said before they were claimed. If a flush has written some since,
    whoever joins this request's reads would get them as they were: they are looked for anew.
    """
    ids = scratch[IDS]
    claim_blocks(table, in_flight, scratch, ids, allowed)
    if scratch[UNPLACED] or load(table, EPOCH) != scratch[SEEN_EPOCH]:
        return UNABLE
    if not _read_by(engine, scratch, ids):
        return UNABLE
    return answer_request(table, in_flight, scratch, ids, out)


@kernel
def read_and_answer(
    table: np.ndarray,
    in_flight: np.ndarray,
    scratch: np.ndarray,
    out: np.ndarray,
    engine: np.ndarray,
) -> int:
    """Do the same for a request whose blocks are claimed, and have memory."""
    ids = scratch[IDS]
    if not _read_by(engine, scratch, ids):
        return UNABLE
    return answer_request(table, in_flight, scratch, ids, out)


@kernel
def answer_many(
    table: np.ndarray, in_flight: np.ndarray, scratch: np.ndarray, out: np.ndarray
) -> int:
    """Answer the missed rows of a request, once its own reads are done, and let rows in.

    Returns
    -------
    int
        How many rows are LOST, because of blocks whose STATUS is not 0. WAIT: others still read
        some of its blocks, see :func:`wait_for_others`. AGAIN: those failed, and there are reads
        to do. After either, this is to be called again.
    """
    return answer_request(table, in_flight, scratch, scratch[IDS], out)


@kernel
def wait_for_others(in_flight: np.ndarray, scratch: np.ndarray, timeout_ns: int) -> bool:
    """Sleep until no block of the request is being read by others; False: not in that time.

    `timeout_ns` -1: for ever. It counts from each time that something else has changed.
    """
    ids = scratch[IDS]
    timeout = np.empty(2, np.int64)
    timeout[0], timeout[1] = timeout_ns // 1_000_000_000, timeout_ns % 1_000_000_000
    for k in range(scratch[WANTED]):
        entry = scratch[HEAD + ENTRIES * ids + k]
        while entry < -1 and scratch[HEAD + STATUS * ids + k] == 0:
            address = 0 if timeout_ns < 0 else timeout.ctypes.data
            if wait_for_entry(in_flight, -2 - entry, address) & ~AHEAD != READING:
                break
            if timeout_ns >= 0:
                return False
    return True


@brief
def abandon(in_flight: np.ndarray, scratch: np.ndarray) -> None:
    """Leave a request's blocks without an answer: others who wait read them on their own."""
    ids = scratch[IDS]
    for r in range(scratch[READS]):
        k = scratch[HEAD + ROWS_READ * ids + READ_WORDS * r + 3]
        entry = scratch[HEAD + ENTRIES * ids + k]
        if entry >= 0:
            finish_entry(in_flight, entry, BAD)
    scratch[READS] = 0
    _leave_all(in_flight, scratch, ids)


@kernel
def take_payloads(scratch: np.ndarray, payloads: np.ndarray, first: int) -> None:
    """Put payloads (n, block_bytes), read and verified elsewhere, where reads from `first` go."""
    ids, block_bytes = scratch[IDS], payloads.shape[1]
    for i in range(payloads.shape[0]):
        read = HEAD + ROWS_READ * ids + READ_WORDS * (first + i)
        copy(payloads.ctypes.data + i * block_bytes, scratch[read + 1], block_bytes)
        scratch[read + 2] = block_bytes
    scratch[SOUND] = 1


@kernel
def give_up_waiting(in_flight: np.ndarray, scratch: np.ndarray) -> int:
    """Take blocks that others still read for LATE; return how many those are."""
    ids = scratch[IDS]
    late = 0
    lock_entries(in_flight)
    for k in range(scratch[WANTED]):
        entry = scratch[HEAD + ENTRIES * ids + k]
        if entry < -1 and entry_state(in_flight, -2 - entry) & ~AHEAD == READING:
            leave_entry(in_flight, -2 - entry)
            scratch[HEAD + ENTRIES * ids + k] = -1
            scratch[HEAD + STATUS * ids + k] = LATE
            scratch[OTHERS] -= 1
            late += 1
    unlock_entries(in_flight)
    return late


@kernel
def part_late(scratch: np.ndarray, rest: np.ndarray, arrived: np.ndarray) -> None:
    """Part a request from its reads that have not `arrived`, which then are those of `rest`.

    `rest` is a copy of the scratch. What is late here is all that is wanted there.
    """
    ids = scratch[IDS]
    kept, left = 0, 0
    for k in range(scratch[ALL_BLOCKS]):
        rest[HEAD + STATUS * ids + k] = NOT_ALLOWED
        rest[HEAD + ENTRIES * ids + k] = -1
    for r in range(scratch[READS]):
        read = HEAD + ROWS_READ * ids + READ_WORDS * r
        k = scratch[read + 3]
        if arrived[r]:
            to, kept = HEAD + ROWS_READ * ids + READ_WORDS * kept, kept + 1
            for word in range(READ_WORDS):
                scratch[to + word] = scratch[read + word]
            continue
        to, left = HEAD + ROWS_READ * ids + READ_WORDS * left, left + 1
        for word in range(READ_WORDS):
            rest[to + word] = rest[read + word]
        rest[HEAD + STATUS * ids + k] = 0
        rest[HEAD + ENTRIES * ids + k] = scratch[HEAD + ENTRIES * ids + k]
        scratch[HEAD + STATUS * ids + k] = LATE
        scratch[HEAD + ENTRIES * ids + k] = -1
    scratch[READS], rest[READS] = kept, left
    rest[OTHERS] = 0
    rest[BAGS] = 0  # whoever asked has gone


# -- reading ahead --------------------------------------------------------------------------


@kernel
def absent(table: np.ndarray, ids: np.ndarray, positions: np.ndarray) -> int:
    """Put the positions that DRAM does not hold first, and return how many; or -1 - i."""
    rows = table[ROWS]
    index, bits = uint64s_at(table[INDEX], table[INDEX + 1]), bits_for(rows)
    buckets = uint64s_at(table[BUCKETS], table[BUCKETS + 1])
    direct = words_at(table[CLOCK], table[CLOCK + 1])[DIRECT]
    count, wrong = 0, -1
    enter_lock(table, LOCK)
    for i in range(ids.size):
        if ids[i] < 0 or ids[i] >= rows:
            wrong = i
            break
        position = position_at(index, bits, signed(ids[i]))
        if find(buckets, direct, position) < 0:
            positions[count] = position
            count += 1
    leave_lock(table, LOCK)
    return count if wrong < 0 else -1 - wrong


@kernel
def claim_ahead(
    table: np.ndarray,
    in_flight: np.ndarray,
    positions: np.ndarray,
    blocks: np.ndarray,
    entries: np.ndarray,
    most: int,
) -> int:
    """Claim blocks of `positions` that nobody reads, `most` at most; return how many.

    `blocks` and `entries`, (most,) each, get which they are and where they go.
    """
    ordered = np.unique(positions)
    chosen = cover(ordered, layout_of(table), np.empty(ordered.size, np.int64))
    count = 0
    lock_entries(in_flight)
    for block in chosen:
        if count == most:
            break
        entry = claim_entry(in_flight, flight_of(table, block))
        if entry < -1:
            leave_entry(in_flight, -2 - entry)
        elif entry >= 0:
            mark_ahead(in_flight, entry)
            blocks[count], entries[count] = block, entry
            count += 1
    unlock_entries(in_flight)
    return count


@kernel
def deliver_ahead(in_flight: np.ndarray, entries: np.ndarray, payloads: np.ndarray) -> None:
    """Let whoever asks have blocks that were read ahead, (n, block_bytes); none: they failed."""
    for i in range(entries.size):
        if i < payloads.shape[0]:
            address = entry_address(in_flight, entries[i])
            copy(payloads.ctypes.data + i * payloads.shape[1], address, payloads.shape[1])
            finish_entry(in_flight, entries[i], READY)
        else:
            finish_entry(in_flight, entries[i], BAD)
    lock_entries(in_flight)
    for entry in entries:
        leave_entry(in_flight, entry)
    unlock_entries(in_flight)
