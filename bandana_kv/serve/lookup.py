"""The first step of a request: answer what DRAM holds. Claiming the blocks of the rest.

A request that DRAM answers takes this one call. Several threads may look up at once; admission
and updates have the table alone, for a few microseconds, under a lock that compiled code takes.
"""

from __future__ import annotations

import numpy as np

from bandana_kv.cache.index import expect, find
from bandana_kv.cache.request import HITS, look_up, look_up_together, missing
from bandana_kv.cache.state import DIRECT, EVICTION
from bandana_kv.kernels.addresses import (
    bytes_at,
    leave_lock,
    now_ns,
    prefetch,
    uint64s_at,
    unlock_alone,
    words_at,
)
from bandana_kv.kernels.bitpack import bits_for, position_at
from bandana_kv.kernels.compile import brief, inlined, kernel, signed
from bandana_kv.kernels.layout import cover
from bandana_kv.kernels.reads import READ_WORDS
from bandana_kv.serve.inflight import claim_entry, entry_address, lock_entries, unlock_entries
from bandana_kv.serve.pooling import pool_bags, rows_of_bags
from bandana_kv.serve.words import (
    ADDRESSES,
    ALL_BLOCKS,
    ASKED,
    BEGUN_NS,
    BLOCKS,
    BUCKETS,
    BUSY,
    CLOCK,
    CLOCK_ROOM,
    COALESCE,
    COUNTED,
    COUNTERS_KEPT,
    DATA,
    DISTINCT,
    ENTRIES,
    EPOCH,
    HEAD,
    IDS,
    INDEX,
    LIVE,
    LOCK,
    MARKS,
    MISSED,
    NOT_ALLOWED,
    ORDERED,
    OTHERS,
    PER_BLOCK,
    PLACES,
    READS,
    RELINKS,
    REQUESTS,
    ROW_BYTES,
    ROWS,
    ROWS_READ,
    RULES,
    SEEN_EPOCH,
    SOUND,
    STATUS,
    UNPLACED,
    UPDATED,
    UPDATED_ROWS,
    UPDATES,
    WANTED,
    add_up,
    copy,
    enter_table,
    flight_of,
    key_of,
    layout_of,
    state_of,
)

__all__ = [
    "claim",
    "claim_block",
    "claim_blocks",
    "look_up_request",
    "place_reads",
]


# How many rows before one is copied the processor is told of it.
_AHEAD = 32


@inlined
def _answer_updated(
    table: np.ndarray,
    positions: np.ndarray,
    slots: np.ndarray,
    out: np.ndarray,
    rows_at: np.ndarray,
) -> int:
    """Answer missed rows that were updated and are not in their blocks yet; return how many."""
    buckets = uint64s_at(table[UPDATES], table[UPDATES + 1])
    row_bytes = table[ROW_BYTES]
    found = 0
    for i in range(positions.size):
        if slots[i] < 0:
            slot = find(buckets, 0, positions[i])
            if slot >= 0:
                slots[i] = 0
                row = table[UPDATED_ROWS] + slot * row_bytes
                if rows_at.size:
                    rows_at[i] = row
                else:
                    copy(row, out.ctypes.data + i * row_bytes, row_bytes)
                found += 1
    return found


@inlined
def _copy_hits(table: np.ndarray, slots: np.ndarray, out: np.ndarray) -> None:
    data, target, row_bytes = table[DATA], out.ctypes.data, table[ROW_BYTES]
    for i in range(slots.size):
        ahead = i + _AHEAD
        if ahead < slots.size and slots[ahead] >= 0:
            row = data + slots[ahead] * row_bytes
            prefetch(row)
            prefetch(row + row_bytes - 1)
        if slots[i] >= 0:
            copy(data + slots[i] * row_bytes, target + i * row_bytes, row_bytes)


@kernel
def look_up_request(
    table: np.ndarray, scratch: np.ndarray, ids: np.ndarray, out: np.ndarray, patient: bool
) -> int:
    """Answer what DRAM holds; return how many missed, or -1 - i where the i-th id is wrong.

    Of a request that is pooled, bags that miss nothing are pooled, and `out` gets rows of others.
    BUSY: others change the table just now, and the caller is not `patient`.
    """
    count, rows = ids.size, table[ROWS]
    positions = scratch[HEAD : HEAD + count]
    slots = scratch[HEAD + count : HEAD + 2 * count]
    index, bits = uint64s_at(table[INDEX], table[INDEX + 1]), bits_for(rows)
    buckets = uint64s_at(table[BUCKETS], table[BUCKETS + 1])
    direct = words_at(table[CLOCK], table[CLOCK + 1])[DIRECT]
    for i in range(count):
        if ids[i] < 0 or ids[i] >= rows:
            return -1 - i
        positions[i] = position_at(index, bits, signed(ids[i]))
        expect(buckets, direct, positions[i])
    counters = scratch[COUNTED : COUNTED + COUNTERS_KEPT]
    if not enter_table(table, table[RELINKS] != 0, patient):
        return BUSY
    # Before any read: what a flush writes meanwhile must not enter the cache as it was.
    scratch[SEEN_EPOCH] = table[EPOCH]
    if table[RELINKS]:
        missed = look_up(state_of(table), positions, slots, counters)
    else:
        missed = look_up_together(
            words_at(table[RULES], 4)[EVICTION],
            uint64s_at(table[BUCKETS], table[BUCKETS + 1]),
            bytes_at(table[MARKS], table[MARKS + 1]),
            bytes_at(table[LIVE], table[LIVE + 1]),
            words_at(table[CLOCK], table[CLOCK + 1]),
            positions,
            slots,
            counters,
        )
    bags = rows_of_bags(scratch)
    rows_at = words_at(bags, count if bags else 0)
    if bags:
        for i in range(count):
            rows_at[i] = table[DATA] + slots[i] * table[ROW_BYTES] if slots[i] >= 0 else 0
    else:
        _copy_hits(table, slots, out)
    if missed and table[UPDATED]:
        found = _answer_updated(table, positions, slots, out, rows_at)
        counters[HITS] += found
        missed -= found
    if bags:
        pool_bags(scratch, out)
    if table[RELINKS]:
        unlock_alone(table, LOCK)
    else:
        leave_lock(table, LOCK)
    counters[REQUESTS] = 1
    scratch[IDS] = count
    scratch[MISSED] = missed
    add_up(table, scratch)
    return missed


# -- claiming -------------------------------------------------------------------------------


@inlined
def _note_read(
    in_flight: np.ndarray, table: np.ndarray, scratch: np.ndarray, ids: int, k: int
) -> None:
    """Put block `k` among those that this request must read."""
    entry = scratch[HEAD + ENTRIES * ids + k]
    address = 0  # no entry is free: memory of its own
    if entry >= 0:
        address = entry_address(in_flight, entry)
    else:
        scratch[UNPLACED] += 1
    scratch[HEAD + ADDRESSES * ids + k] = address
    read = HEAD + ROWS_READ * ids + READ_WORDS * scratch[READS]
    scratch[read] = key_of(table, scratch[HEAD + BLOCKS * ids + k])
    scratch[read + 1] = address
    scratch[read + 2] = 0
    scratch[read + 3] = k
    scratch[READS] += 1


@inlined
def claim_block(
    in_flight: np.ndarray, table: np.ndarray, scratch: np.ndarray, ids: int, k: int
) -> None:
    """Claim block `k`: to read it, or to wait for who does. The entries are locked."""
    entry = claim_entry(in_flight, flight_of(table, scratch[HEAD + BLOCKS * ids + k]))
    scratch[HEAD + ENTRIES * ids + k] = entry
    scratch[HEAD + STATUS * ids + k] = 0
    if entry < -1:
        scratch[OTHERS] += 1
        scratch[HEAD + ADDRESSES * ids + k] = entry_address(in_flight, -2 - entry)
    else:
        _note_read(in_flight, table, scratch, ids, k)


@kernel
def claim_blocks(
    table: np.ndarray, in_flight: np.ndarray, scratch: np.ndarray, ids: int, allowed: int
) -> int:
    """Choose the blocks of the missed rows and claim them; return how many are to be read."""
    scratch[BEGUN_NS] = now_ns(scratch[CLOCK_ROOM : CLOCK_ROOM + 2])
    positions = scratch[HEAD : HEAD + ids]
    slots = scratch[HEAD + ids : HEAD + 2 * ids]
    asked, ordered = missing(positions, slots, scratch[MISSED])
    places = scratch[HEAD + PLACES * ids : HEAD + PLACES * ids + ordered.size]
    blocks = cover(ordered, layout_of(table), places)
    scratch[HEAD + ASKED * ids : HEAD + ASKED * ids + asked.size] = asked
    scratch[HEAD + ORDERED * ids : HEAD + ORDERED * ids + ordered.size] = ordered
    scratch[HEAD + BLOCKS * ids : HEAD + BLOCKS * ids + blocks.size] = blocks
    scratch[DISTINCT] = ordered.size
    scratch[ALL_BLOCKS] = blocks.size
    scratch[WANTED] = min(allowed, blocks.size)
    scratch[READS] = 0
    scratch[OTHERS] = 0
    scratch[UNPLACED] = 0
    scratch[SOUND] = 0
    for k in range(scratch[WANTED], blocks.size):
        scratch[HEAD + STATUS * ids + k] = NOT_ALLOWED
    lock_entries(in_flight)
    for k in range(scratch[WANTED]):
        claim_block(in_flight, table, scratch, ids, k)
    unlock_entries(in_flight)
    if table[COALESCE] == 0:
        _read_each(table, scratch, ids)
    return signed(scratch[READS])


@inlined
def _read_each(table: np.ndarray, scratch: np.ndarray, ids: int) -> None:
    """Read a block once more for each further missed row in it: what no blocks would cost."""
    for claimed in range(scratch[READS]):
        read = HEAD + ROWS_READ * ids + READ_WORDS * claimed
        block = scratch[HEAD + BLOCKS * ids + scratch[read + 3]]
        first = True
        for i in range(scratch[DISTINCT]):
            if scratch[HEAD + PLACES * ids + i] // table[PER_BLOCK] != block:
                continue
            if not first:
                again = HEAD + ROWS_READ * ids + READ_WORDS * scratch[READS]
                for word in range(READ_WORDS):
                    scratch[again + word] = scratch[read + word]
                scratch[READS] += 1
            first = False


@kernel
def claim(table: np.ndarray, in_flight: np.ndarray, scratch: np.ndarray, allowed: int) -> int:
    """Choose the blocks of missed rows and claim them; return how many reads are to be done.

    Parameters
    ----------
    table, scratch
        As :func:`look_up_request` left them.
    in_flight
        Words of :class:`bandana_kv.serve.inflight.InFlight`.
    allowed
        Blocks that may be read, at most; rows of the others are LOST.

    Notes
    -----
    The reads stand in the scratch from ``HEAD + ROWS_READ * ids`` on, READ_WORDS words each.
    Where no memory was free for some, UNPLACED says how many: :func:`place_reads`.
    """
    return claim_blocks(table, in_flight, scratch, scratch[IDS], allowed)


@brief
def place_reads(scratch: np.ndarray, address: int, block_bytes: int) -> None:
    """Give memory from `address` on to those reads for which no entry was free."""
    ids = scratch[IDS]
    for r in range(scratch[READS]):
        read = HEAD + ROWS_READ * ids + READ_WORDS * r
        at = HEAD + ADDRESSES * ids + scratch[read + 3]
        if scratch[at] == 0:
            scratch[at] = address
            address += block_bytes
        scratch[read + 1] = scratch[at]
    scratch[UNPLACED] = 0
