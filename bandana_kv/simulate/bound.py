"""The block reads that no cache can save, whatever it knows of the future."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import ceil
from typing import NamedTuple

import numpy as np

from bandana_kv.disk.placement import Placement
from bandana_kv.errors import InputError
from bandana_kv.kernels.compile import kernel
from bandana_kv.logs.requests import RequestLog
from bandana_kv.simulate.uses import NEVER, Uses, even_parts, uses_of

__all__ = ["lower_bound"]

# Prices are whole numbers of this fraction of a read: sums are exact, and so is the bound.
_READ = 1 << 32
_PARTS_PER_THREAD = 8


class _Tangent(NamedTuple):
    """The bound as a line through one price: no price is worth more than a line says."""

    price: int
    value: int
    slope: int


@kernel
def _insert(row: int, due: np.ndarray, after: np.ndarray) -> None:
    """Put a row into the ring of those still to be used, which is in order of next use."""
    before = after.size - 1
    while due[after[before]] < due[row]:
        before = after[before]
    after[row] = after[before]
    after[before] = row


@kernel
def _queue(start: np.ndarray, row: np.ndarray, due: np.ndarray, after: np.ndarray) -> None:
    """Begin a block's ring: the last entry is its head, and never due."""
    due[:] = NEVER
    after[-1] = after.size - 1
    for access in range(start.size - 2, -1, -1):
        for use in range(start[access], start[access + 1]):
            due[row[use]] = access
    for each in range(after.size - 1):
        if due[each] != NEVER:
            _insert(each, due, after)


@kernel
def _advance(
    begin: int,
    end: int,
    step: int,
    row: np.ndarray,
    next_due: np.ndarray,
    last: np.ndarray,
    due: np.ndarray,
    after: np.ndarray,
) -> None:
    """Let an access use its rows, which are the first ones of the ring."""
    for _ in range(begin, end):
        after[-1] = after[after[-1]]
    for use in range(begin, end):
        last[row[use]] = step
        due[row[use]] = next_due[use]
        if next_due[use] != NEVER:
            _insert(row[use], due, after)


@kernel
def _held(last: np.ndarray, since: int) -> int:
    """Return the slots times steps that rows read at `since` take until their last use."""
    held = np.int64(0)
    for row in range(last.size):
        held += max(last[row] - since, 0)
    return held  # type: ignore[return-value]


@kernel
def _takeover(
    lead: int,
    price: int,
    new: int,
    old: int,
    last: np.ndarray,
    due: np.ndarray,
    after: np.ndarray,
) -> int:
    """Return the access from which on step `new` is a better last read than `old`, or never.

    `lead` is what `old` costs more if the next access reads, before anything else is held.
    A row's first use after `new` adds what the earlier read held it longer, later ones
    nothing: so at most every row is looked at once.
    """
    row = after[-1]
    while lead < 0 and due[row] != NEVER:
        lead += price * (new - max(last[row], old))
        if lead >= 0:
            return due[row] + 1  # type: ignore[no-any-return]
        row = after[row]
    return -1 if lead >= 0 else NEVER


@kernel
def _cheapest(
    step: np.ndarray,
    start: np.ndarray,
    row: np.ndarray,
    next_due: np.ndarray,
    price: int,
    free: bool,
    by_access: np.ndarray,
    by_row: np.ndarray,
) -> tuple[int, int]:
    """Return the least cost of one block's accesses, and the slots times steps held for it.

    ``cost[j]`` is the least that answers all accesses before j and reads at j; it adds a
    read to the best last read before j. Which one that is only moves on with j, because
    of two reads the later one has the smaller price for whatever is still to be held. So
    reads wait in a queue, each with the access from which it is better than the one before.
    """
    cost, total, waiting, since = by_access[0], by_access[1], by_access[2], by_access[3]
    last, due, after = by_row[0][:-1], by_row[1], by_row[2]
    accesses = step.size
    # Whatever takes more slots costs more than to read always; products stay in 64 bits.
    most = _READ * (accesses + 1) // max(price, 1) + 1
    last[:] = -1
    _queue(start, row, due, after)
    cost[0] = 0 if free and step[0] == 0 else _READ
    total[0] = 0
    front, size = 0, 0
    for i in range(accesses):
        _advance(start[i], start[i + 1], step[i], row, next_due, last, due, after)
        better = 0
        while size > front:
            old = waiting[size - 1]
            lead = cost[old] - cost[i] + price * min(_held(last, step[old]), most)
            better = _takeover(lead, price, step[i], step[old], last, due, after)
            if size - 1 == front or better > since[size - 1]:
                break
            size -= 1
        waiting[size], since[size] = i, better
        size += 1
        while front + 1 < size and since[front + 1] <= i + 1:
            front += 1
        best = waiting[front]
        held = _held(last, step[best])
        cost[i + 1] = cost[best] + price * held + _READ
        total[i + 1] = total[best] + held
    return cost[accesses] - _READ, total[accesses]  # nothing is read behind the last access


@kernel
def _cheapest_of(
    begin: int, end: int, rows_per_block: int, uses: Uses, price: int, free: bool
) -> tuple[int, int]:
    """Sum :func:`_cheapest` over the blocks from `begin` to `end`."""
    first, step, start, row, due = uses
    longest = 0
    for block in range(begin, end):
        longest = max(longest, first[block + 1] - first[block])
    by_access = np.empty((4, longest + 1), np.int64)
    by_row = np.empty((3, rows_per_block + 1), np.int64)
    cost = held = np.int64(0)
    for block in range(begin, end):
        low, high = first[block], first[block + 1]
        if low < high:
            one = _cheapest(
                step[low:high], start[low : high + 1], row, due, price, free, by_access, by_row
            )
            cost += one[0]
            held += one[1]
    return cost, held  # type: ignore[return-value]


def _highest(tangent: Callable[[int], _Tangent], low: _Tangent, high: _Tangent) -> int:
    """Return the greatest bound of any price, rounded up to whole reads.

    `low` rises and `high` does not, so the best price is between them, and worth no more
    than where they cross: that is the next price to try.
    """
    while True:
        best = ceil(Fraction(max(low.value, high.value), _READ))
        if low.slope <= 0 or high.price - low.price <= 1:
            return best
        rise = high.value - low.value - high.slope * (high.price - low.price)
        crossing = Fraction(rise, low.slope - high.slope)
        if ceil((low.value + low.slope * crossing) / _READ) <= best:
            return best
        middle = tangent(min(max(low.price + int(crossing), low.price + 1), high.price - 1))
        low, high = (middle, high) if middle.slope > 0 else (low, middle)


def lower_bound(
    log: RequestLog, placement: Placement, capacity_rows: int, *, warm_requests: int = 0
) -> int:
    """Return a number of block reads that no cache of `capacity_rows` rows gets below.

    It holds for every admission and eviction, even for one that knows the whole log:
    each row that a request looks up has been held since the request before, or its block is
    read, once for the request; from what was held and what was read any rows may be kept,
    at most `capacity_rows`. At the beginning none is held.

    Parameters
    ----------
    log
        Requests, in the order in which they arrive, one after the other.
    placement
        Where each id lies. A bound for one placement says nothing of others.
    capacity_rows
        Rows that DRAM holds between requests.
    warm_requests
        Requests at the start whose reads are not counted, as in
        :func:`bandana_kv.simulate.replay`.

    Returns
    -------
    int
        Block reads of the counted requests. No larger for a larger cache; with none it is
        the sum of the requests' fanouts, with room for all rows the blocks touched for the
        first time.

    Raises
    ------
    InputError
        A negative capacity, more warm requests than the log has, ids that the placement
        does not have, or rows in two blocks (``placement.replicas``).

    Notes
    -----
    *Why it holds.* Let a row that is held from one request to the next pay a price, and
    give back the price of `capacity_rows` rows for each of these steps: a schedule that
    never holds more costs no more than its reads. So the least of reads plus price, over
    schedules without any limit, minus what is given back, is a bound, for every price that
    is not negative (Lagrangian relaxation). Without a limit blocks have nothing to do with
    each other. Of one block, let the reads be given: a row that is used between two of them
    must be held from the first until its last use before the second, and nothing else need
    be held; reads that no access of the block needs may wait until one does. So the least
    is one over sets of accesses that read, which dynamic programming finds exactly. Price
    and sums are integers: no rounding can lift the bound.

    *Warming.* All warm requests are taken as one that reads for nothing. Whatever a cache
    holds after them is of blocks that they touched, provided it reads, as the store does,
    only blocks of which the request looks up a row; and it is at most `capacity_rows`.

    *How tight.* There is one price for all steps; it is the best one, as the bound is
    concave in it. On logs of eight requests for six rows the bound is the optimum in half
    of the cases. On two real logs schedules made in hindsight, warmed for nothing in the
    same way, came within 8 % of it, on a third within 53 %. Caches in use do not: hindsight
    keeps only those rows of a block that are used next, and reads a fraction of what they do.

    *Replicas.* With rows in two blocks these are no longer independent of each other, and
    the argument fails.

    Source: the model is granularity-change caching (arXiv 2205.14543), whose optimum is
    NP-complete to find. Cost: some ten passes of about 0.1 microseconds a use on
    one core, and on all of them, without the GIL; 24 bytes a distinct lookup of a request.
    """
    requests = log.offsets.size - 1
    if capacity_rows < 0:
        raise InputError(f"capacity_rows must not be negative, and is {capacity_rows}")
    if not 0 <= warm_requests <= requests:
        raise InputError(
            f"warm_requests is {warm_requests}, but the log has {requests} requests (0 to "
            f"{requests} may warm the cache)"
        )
    if placement.replicas is not None:
        raise InputError(
            "there is no lower bound for a placement with replicas: place without them"
        )
    uses = uses_of(log, placement, warm_requests)
    free = warm_requests > 0
    room = int(capacity_rows) * max(requests - max(warm_requests - 1, 0) - 1, 0)
    threads = len(os.sched_getaffinity(0))
    parts = even_parts(uses, threads * _PARTS_PER_THREAD)

    with ThreadPoolExecutor(threads) as pool:

        def tangent(price: int) -> _Tangent:
            def part(begin: int, end: int) -> tuple[int, int]:
                return _cheapest_of(begin, end, placement.rows_per_block, uses, price, free)

            sums = list(pool.map(part, parts[:-1], parts[1:]))
            held = sum(held for _, held in sums)
            return _Tangent(price, sum(cost for cost, _ in sums) - price * room, held - room)

        # At the price of a read for each step nothing is worth holding.
        fanouts = uses.step.size - (int(np.count_nonzero(uses.step == 0)) if free else 0)
        return _highest(tangent, tangent(0), _Tangent(_READ, _READ * (fanouts - room), -room))
