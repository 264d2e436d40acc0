"""No cache reads less than the bound says: against every schedule there is, where that can be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bandana_kv import AccessLog
from bandana_kv.errors import InputError
from bandana_kv.placement import Placement, fanout
from bandana_kv.simulate import replay
from bandana_kv.simulate.bound import lower_bound

CASES = 400
Ids = NDArray[np.int64]


def optimum(
    requests: Sequence[Ids], placement: Placement, capacity: int, warm: int, ahead: bool
) -> int:
    """Return the fewest reads of all schedules; sets of rows are the bits of an integer.

    `ahead`: blocks may also be read that the request does not touch.
    """
    block_of = placement.position_of_id // placement.rows_per_block
    rows_in = [
        sum(1 << int(row) for row in np.flatnonzero(block_of == block))
        for block in range(placement.blocks)
    ]
    kept = [held for held in range(1 << placement.rows) if held.bit_count() <= capacity]
    least = {0: 0}
    for number, ids in enumerate(requests):
        asked = sum(1 << int(row) for row in set(ids.tolist()))
        useful = [rows for rows in rows_in if ahead or rows & asked]
        answered: dict[int, int] = {}
        for held, reads in least.items():
            for count in range(len(useful) + 1):
                for blocks in itertools.combinations(useful, count):
                    have = held
                    for rows in blocks:
                        have |= rows
                    total = reads + (count if number >= warm else 0)
                    if asked & ~have == 0:
                        answered[have] = min(total, answered.get(have, total))
        least = {
            held: min(reads for have, reads in answered.items() if held & ~have == 0)
            for held in kept
            if any(held & ~have == 0 for have in answered)
        }
    return min(least.values())


def tiny(rng: np.random.Generator) -> tuple[list[Ids], Placement]:
    """Return eight requests for up to six rows, repeats among them, and where the rows lie."""
    rows, per_block = [(6, 2), (6, 3), (5, 2), (6, 6)][rng.integers(4)]
    requests = [rng.integers(0, rows, rng.integers(0, 4)) for _ in range(8)]
    return requests, Placement(rng.permutation(rows).astype(np.uint32), per_block, "test")


def large(seed: int, requests: int = 400, rows: int = 300) -> tuple[AccessLog, Placement]:
    """Return skewed requests, some empty, and a placement whose last block is part full."""
    rng = np.random.default_rng(seed)
    drawn = [
        np.minimum(rng.geometric(0.03, rng.integers(0, 12)) - 1, rows - 1) for _ in range(requests)
    ]
    log = AccessLog.from_requests(drawn)
    return log, Placement(rng.permutation(rows).astype(np.uint32), 7, "test")


def touched(log: AccessLog, placement: Placement) -> set[int]:
    return set((placement.position_of_id[log.ids] // placement.rows_per_block).tolist())


def test_no_schedule_beats_it_and_many_times_one_equals_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    equal = near = 0
    for case in range(CASES):
        requests, placement = tiny(rng)
        capacity, warm = int(rng.integers(0, 4)), int(rng.choice([0, 0, 1, 2, 4]))
        bound = lower_bound(
            AccessLog.from_requests(requests), placement, capacity, warm_requests=warm
        )
        # To read ahead for nothing, while the cache warms, is what the bound does not cover.
        best = optimum(requests, placement, capacity, warm, ahead=warm == 0)
        assert 0 <= bound <= best, f"seed {seed}, case {case}"
        equal += bound == best
        near += bound >= best - 1
    print(f"seed {seed}: equal in {equal / CASES:.0%}, at most one below in {near / CASES:.0%}")
    assert equal >= 0.45 * CASES
    assert near >= 0.9 * CASES


@pytest.mark.parametrize("warm", [0, 1, 80, 400])
def test_without_a_cache_it_is_the_sum_of_the_fanouts(seed: int, warm: int) -> None:
    log, placement = large(seed)
    counted = log.select(np.arange(warm, log.requests))
    expected = round(fanout(counted, placement) * counted.requests)
    assert lower_bound(log, placement, 0, warm_requests=warm) == expected


@pytest.mark.parametrize("warm", [0, 1, 80, 400])
@pytest.mark.parametrize("capacity", [300, 10**9])
def test_with_room_for_all_it_is_the_first_touches(seed: int, warm: int, capacity: int) -> None:
    log, placement = large(seed)
    known = touched(log.select(np.arange(warm)), placement)
    expected = len(touched(log, placement) - known)
    assert lower_bound(log, placement, capacity, warm_requests=warm) == expected


@pytest.mark.parametrize("warm", [0, 80])
def test_lru_does_not_beat_it_and_more_rows_never_raise_it(seed: int, warm: int) -> None:
    log, placement = large(seed)
    before = None
    for capacity in [0, 1, 2, 5, 10, 20, 40, 80, 150, 299, 300]:
        bound = lower_bound(log, placement, capacity, warm_requests=warm)
        lru = replay(log, placement, capacity, warm_requests=warm)
        assert bound <= lru.block_reads
        assert before is None or bound <= before
        before = bound


def test_rows_held_exactly_as_long_as_needed() -> None:
    # Blocks {0, 1} and {2, 3}: one slot saves one read of two, two slots save both.
    log = AccessLog.from_requests([[0], [2], [1], [3]])
    placement = Placement(np.arange(4, dtype=np.uint32), 2, "test")
    assert [lower_bound(log, placement, rows) for rows in range(3)] == [4, 3, 2]


@pytest.mark.parametrize("warm", [0, 3])
def test_requests_for_nothing_cost_nothing(warm: int) -> None:
    placement = Placement(np.arange(4, dtype=np.uint32), 2, "test")
    empty = AccessLog(np.zeros(warm + 1, np.int64), np.zeros(0, np.int64))
    assert lower_bound(empty, placement, 1, warm_requests=warm) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"capacity_rows": -1}, "capacity_rows must not be negative"),
        ({"warm_requests": 3}, "the log has 2 requests"),
        ({"warm_requests": -1}, "the log has 2 requests"),
        ({"log": AccessLog.from_requests([[0], [4]])}, "looks up id 4"),
        (
            {
                "placement": Placement(
                    np.arange(4, dtype=np.uint32), 2, "test", replicas=np.zeros(2, np.uint32)
                )
            },
            "replicas",
        ),
    ],
)
def test_what_cannot_be_bounded_is_refused(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "log": AccessLog.from_requests([[0], [3]]),
        "placement": Placement(np.arange(4, dtype=np.uint32), 2, "test"),
        "capacity_rows": 1,
    }
    with pytest.raises(InputError, match=message):
        lower_bound(**(arguments | changed))
