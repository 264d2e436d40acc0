"""What workers do to their requests, compiled: clean, split, gains, and the runs of a shuffle.

Sums are of integers, so that they are the same whoever adds them up in whichever order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import inlined, kernel
from bandana_kv.placement.randomness import scramble

__all__ = [
    "add_degrees",
    "add_gains",
    "clean",
    "count_blocks",
    "drawn",
    "gather_runs",
    "picked",
    "rows_by_part",
    "runs_of",
    "side_of",
    "split",
    "taking_part",
]

_SORTED_BY_INSERTION = 40


@inlined
def side_of(sides: NDArray[np.uint8], row: int) -> int:
    """Return the bit of a row: 0 left, 1 right."""
    return (np.int64(sides[row >> 3]) >> (row & 7)) & 1  # type: ignore[return-value]


@kernel
def drawn(first: int, count: int, salt: np.uint64, below: int) -> NDArray[np.bool_]:
    """Return which of requests `first` .. `first` + `count` - 1 a lot of `below` in 2**32 draws."""
    found = np.empty(count, np.bool_)
    for i in range(count):
        word = scramble(salt + scramble(np.uint64(first + i))) >> np.uint64(32)
        found[i] = np.int64(word) < below
    return found


@kernel
def clean(
    offsets: NDArray[np.int64], ids: NDArray[np.int32], kept: NDArray[np.bool_], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the kept requests that look up two rows or more, each row once."""
    last_request = np.full(rows, -1, np.int32)
    ends = np.zeros(offsets.size, np.int64)
    out = np.empty(ids.size, np.int32)
    filled = 0
    requests = 0
    for request in range(offsets.size - 1):
        if not kept[request]:
            continue
        begun = filled
        for at in range(offsets[request], offsets[request + 1]):
            row = ids[at]
            if last_request[row] != request:
                last_request[row] = request
                out[filled] = row
                filled += 1
        if filled - begun < 2:
            filled = begun
        else:
            requests += 1
            ends[requests] = filled
    return ends[: requests + 1].copy(), out[:filled].copy()


@kernel
def split(
    ends: NDArray[np.int64], ids: NDArray[np.int32], sides: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Cut each request into its left and its right rows, without those that are alone there."""
    most = min(2 * (ends.size - 1), ids.size // 2)
    new_ends = np.zeros(most + 1, np.int64)
    out = np.empty(ids.size + 1, np.int32)  # one more is written, and not kept
    filled = 0
    requests = 0
    for request in range(ends.size - 1):
        for side in range(2):
            begun = filled
            for at in range(ends[request], ends[request + 1]):
                row = ids[at]
                out[filled] = row
                filled += side_of(sides, row) == side
            if filled - begun < 2:
                filled = begun
            else:
                requests += 1
                new_ends[requests] = filled
    return new_ends[: requests + 1].copy(), out[:filled].copy()


@kernel
def add_gains(
    ends: NDArray[np.int64],
    ids: NDArray[np.int32],
    sides: NDArray[np.uint8],
    kept: NDArray[np.int64],
    gains: NDArray[np.int64],
) -> None:
    """Add to each row's gain what its requests save if it changes sides.

    `kept` is what a request keeps, by the number of its rows on a side; beyond its end, nothing.
    """
    most = kept.size - 1
    for request in range(ends.size - 1):
        begin, end = ends[request], ends[request + 1]
        right = 0
        for at in range(begin, end):
            right += side_of(sides, ids[at])
        left = end - begin - right
        off_left = kept[min(max(left - 1, 0), most)] - kept[min(right, most)]
        off_right = kept[min(max(right - 1, 0), most)] - kept[min(left, most)]
        if off_left == 0 and off_right == 0:
            continue
        # without a branch, which would be guessed wrong every other time
        more = off_right - off_left
        for at in range(begin, end):
            row = ids[at]
            gains[row] += off_left + more * side_of(sides, row)


@kernel
def _sort(keys: NDArray[np.int64]) -> None:
    if keys.size > _SORTED_BY_INSERTION:
        keys.sort()
        return
    for i in range(1, keys.size):
        key = keys[i]
        j = i - 1
        while j >= 0 and keys[j] > key:
            keys[j + 1] = keys[j]
            j -= 1
        keys[j + 1] = key


@kernel
def runs_of(
    ends: NDArray[np.int64], ids: NDArray[np.int32], place_of_row: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Cut each request by the places of its rows, without rows that are alone there.

    A row of place -1 is nowhere. Returns the runs' ends, their rows, and the place of each run.
    """
    most = ids.size // 2
    run_ends = np.zeros(most + 1, np.int64)
    places = np.empty(most, np.int32)
    out = np.empty(ids.size, np.int32)
    longest = 0
    for request in range(ends.size - 1):
        longest = max(longest, ends[request + 1] - ends[request])
    keys = np.empty(longest, np.int64)
    filled = 0
    runs = 0
    for request in range(ends.size - 1):
        count = 0
        for at in range(ends[request], ends[request + 1]):
            place = place_of_row[ids[at]]
            if place >= 0:
                keys[count] = (np.int64(place) << np.int64(32)) + np.int64(ids[at])
                count += 1
        _sort(keys[:count])
        at = 0
        while at < count:
            place = keys[at] >> np.int64(32)
            begun = filled
            while at < count and keys[at] >> np.int64(32) == place:
                out[filled] = keys[at] & np.int64(0x7FFFFFFF)
                filled += 1
                at += 1
            if filled - begun < 2:
                filled = begun
            else:
                places[runs] = place
                runs += 1
                run_ends[runs] = filled
    return run_ends[: runs + 1].copy(), out[:filled].copy(), places[:runs].copy()


@kernel
def gather_runs(
    run_ends: NDArray[np.int64],
    ids: NDArray[np.int32],
    bundle_of_run: NDArray[np.int32],
    bundles: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
    """Put runs of the same bundle behind one another.

    Returns the bundles' ends among the runs, the runs' lengths, the bundles' ends among the rows,
    and the rows.
    """
    runs_end = np.zeros(bundles + 1, np.int64)
    rows_end = np.zeros(bundles + 1, np.int64)
    for run in range(bundle_of_run.size):
        bundle = bundle_of_run[run]
        runs_end[bundle + 1] += 1
        rows_end[bundle + 1] += run_ends[run + 1] - run_ends[run]
    for bundle in range(bundles):
        runs_end[bundle + 1] += runs_end[bundle]
        rows_end[bundle + 1] += rows_end[bundle]
    at_run = runs_end[:-1].copy()
    at_row = rows_end[:-1].copy()
    lengths = np.empty(bundle_of_run.size, np.int32)
    out = np.empty(ids.size, np.int32)
    for run in range(bundle_of_run.size):
        bundle = bundle_of_run[run]
        lengths[at_run[bundle]] = run_ends[run + 1] - run_ends[run]
        at_run[bundle] += 1
        cursor = at_row[bundle]
        for at in range(run_ends[run], run_ends[run + 1]):
            out[cursor] = ids[at]
            cursor += 1
        at_row[bundle] = cursor
    return runs_end, lengths, rows_end, out


@kernel
def rows_by_part(
    ids: NDArray[np.int32], part_of_row: NDArray[np.int16], parts: int
) -> NDArray[np.int64]:
    """Count the rows of all requests by the part that each is in; -1 is none."""
    count = np.zeros(parts, np.int64)
    for row in ids:
        part = part_of_row[row]
        if part >= 0:
            count[part] += 1
    return count


@kernel
def picked(
    ends: NDArray[np.int64], ids: NDArray[np.int32], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return some of the requests."""
    new_ends = np.zeros(ends.size, np.int64)
    out = np.empty(ids.size, np.int32)
    filled = 0
    requests = 0
    for request in range(ends.size - 1):
        if chosen[request]:
            for at in range(ends[request], ends[request + 1]):
                out[filled] = ids[at]
                filled += 1
            requests += 1
            new_ends[requests] = filled
    return new_ends[: requests + 1].copy(), out[:filled].copy()


@kernel
def add_degrees(
    logged: NDArray[np.int32],
    cleaned: NDArray[np.int32],
    lookups: NDArray[np.int64],
    degree: NDArray[np.int32],
) -> None:
    """Count how often each row is looked up, and in how many cleaned requests."""
    for row in logged:
        lookups[row] += 1
    for row in cleaned:
        degree[row] += 1


@kernel
def count_blocks(
    offsets: NDArray[np.int64],
    ids: NDArray[np.int32],
    held_out: NDArray[np.bool_],
    position_of_id: NDArray[np.uint32],
    rows_per_block: int,
) -> NDArray[np.int64]:
    """Count requests, and the blocks that they touch: of those learned from, of those held out."""
    found = np.zeros((2, 2), np.int64)
    last_request = np.full(position_of_id.size // rows_per_block + 1, -1, np.int32)
    for request in range(offsets.size - 1):
        which = np.int64(held_out[request])
        found[which, 0] += 1
        for at in range(offsets[request], offsets[request + 1]):
            block = np.int64(position_of_id[ids[at]]) // rows_per_block
            if last_request[block] != request:
                last_request[block] = request
                found[which, 1] += 1
    return found


@kernel
def taking_part(rows: NDArray[np.int32], salt: np.uint64, keep: np.uint64) -> NDArray[np.int32]:
    """Leave rows out at random now and then, which ends what would swap back and forth.

    `keep` is 2**32 times the chance that a row stays.
    """
    kept = np.empty(rows.size, np.int32)
    count = 0
    for row in rows:
        if scramble(salt + np.uint64(row)) >> np.uint64(32) < keep:
            kept[count] = row
            count += 1
    return kept[:count].copy()
