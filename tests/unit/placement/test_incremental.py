"""Re-placement within a budget: what it leaves alone, and what it recovers of a planted drift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandana_kv import AccessLog
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Policy
from bandana_kv.errors import InputError
from bandana_kv.logs.requests import validated_log
from bandana_kv.placement import Placement, fanout, place
from bandana_kv.placement.incremental import blocks_changed, place_incrementally
from bandana_kv.placement.rewrites import blocks_worth_writing

ROWS, ROWS_PER_BLOCK = 640, 8


def visits(groups: list[list[int]], requests: int, rng: np.random.Generator) -> AccessLog:
    """Each request looks up most of one group."""
    drawn = rng.integers(0, len(groups), requests)
    return AccessLog.from_requests(
        [rng.permutation(groups[group])[: max(2, len(groups[group]) - 2)] for group in drawn]
    )


@pytest.fixture(scope="module")
def drifted() -> tuple[Placement, AccessLog, AccessLog, int]:
    """A table in groups of a block; six of 80 groups exchanged their rows, and are asked most."""
    rng = np.random.default_rng(5)
    ids = rng.permutation(ROWS)
    groups = ids.reshape(-1, ROWS_PER_BLOCK).tolist()
    position_of_id = np.empty(ROWS, np.uint32)
    position_of_id[ids] = np.arange(ROWS, dtype=np.uint32)
    serving = Placement(position_of_id, ROWS_PER_BLOCK, "planted")
    mixed = rng.permutation(np.concatenate(groups[:6])).reshape(6, -1).tolist()
    now = mixed * 20 + groups[6:]
    return serving, visits(now, 1500, rng), visits(now, 500, rng), 6


def test_it_finds_the_few_blocks_that_drifted(
    drifted: tuple[Placement, AccessLog, AccessLog, int],
) -> None:
    serving, recent, later, moved = drifted
    anew = place_incrementally(recent, serving, moved, seed=1)
    assert blocks_changed(serving, anew) == moved
    full = place(recent, ROWS, ROWS_PER_BLOCK, seed=1)
    stale, best = fanout(later, serving), min(fanout(later, full), 1.0)
    assert fanout(later, anew) < stale - 0.95 * (stale - best)
    # More room than is needed does no harm.
    assert fanout(later, place_incrementally(recent, serving, 2 * moved, seed=1)) < 1.1


def test_rows_that_dram_holds_are_not_learnt_from() -> None:
    """Half of each request is a row that is cached anyway: it must not pull the others apart."""
    rng = np.random.default_rng(6)
    hot = np.arange(8)
    cold = rng.permutation(np.arange(8, ROWS)).reshape(-1, 2)
    pairs = cold[rng.integers(0, 40, 3000)]
    log = AccessLog.from_requests([[*hot, *pair] for pair in pairs.tolist()])
    serving = place(None, ROWS, ROWS_PER_BLOCK, "identity")
    heat = heat_by_position(log.ids, serving.position_of_id)
    cached = place_incrementally(
        log, serving, 30, capacity_rows=8, policy=Policy("tinylfu"), heat=heat
    )
    assert np.array_equal(cached.position_of_id[hot], serving.position_of_id[hot])
    blocks = cached.position_of_id // ROWS_PER_BLOCK
    together = blocks[pairs[:, 0]] == blocks[pairs[:, 1]]
    assert together.mean() > 0.5


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 90),
    rows_per_block=st.integers(1, 9),
    max_blocks=st.integers(0, 30),
    capacity_rows=st.integers(0, 10),
)
def test_only_so_many_blocks_change(
    seed: int, rows: int, rows_per_block: int, max_blocks: int, capacity_rows: int
) -> None:
    rng = np.random.default_rng(seed)
    requests = [rng.integers(0, rows, rng.integers(0, 7)) for _ in range(60)]
    log = AccessLog.from_requests(requests)
    serving = place(None, rows, rows_per_block, "shuffled", seed=seed)
    anew, again = (
        place_incrementally(
            log, serving, max_blocks, capacity_rows=capacity_rows, seed=seed, threads=threads
        )
        for threads in (1, 2)
    )
    assert np.array_equal(anew.position_of_id, again.position_of_id)
    assert np.array_equal(np.sort(anew.position_of_id), np.arange(rows))
    moved = anew.position_of_id != serving.position_of_id
    touched = np.union1d(
        anew.position_of_id[moved] // rows_per_block,
        serving.position_of_id[moved] // rows_per_block,
    )
    assert touched.size <= max_blocks
    assert blocks_changed(serving, anew) <= touched.size
    if max_blocks == 0:
        assert anew is serving


def test_blocks_that_help_no_other_are_left_out_first() -> None:
    """Three blocks that requests read together, two that are as good as they can be."""
    block_of_id = np.repeat(np.arange(6, dtype=np.int32), 2)
    target_of_id = np.array([0, 1, 0, 1, 0, 1, 3, 3, 4, 4, 5, 5], np.int32)
    reads = AccessLog.from_requests([[0, 2, 4], [1, 3, 5], [6, 7], [6, 7], [8, 9], [6, 7]])
    offsets, ids = validated_log(reads, 12)
    for most, expected in ((9, [0, 1, 2, 3, 4]), (3, [0, 1, 2]), (0, [])):
        chosen = blocks_worth_writing(offsets, ids, block_of_id, target_of_id, most)
        assert chosen.tolist() == expected


def test_blocks_changed_knows_renumbered_blocks() -> None:
    before = place(None, 10, 4, "identity")
    swapped = np.array([4, 5, 6, 7, 3, 2, 1, 0, 8, 9], np.uint32)
    assert blocks_changed(before, Placement(swapped, 4, "x")) == 0
    moved = np.array([8, 1, 2, 3, 4, 5, 6, 7, 0, 9], np.uint32)
    assert blocks_changed(before, Placement(moved, 4, "x")) == 2
    with pytest.raises(InputError, match="cannot be compared"):
        blocks_changed(before, place(None, 10, 5, "identity"))


@pytest.mark.parametrize(
    ("max_blocks", "capacity_rows", "says"), [(-1, 0, "max_blocks"), (1, -1, "capacity_rows")]
)
def test_numbers_out_of_range(max_blocks: int, capacity_rows: int, says: str) -> None:
    serving = place(None, 10, 4, "identity")
    with pytest.raises(InputError, match=says):
        place_incrementally(
            AccessLog.from_requests([[1, 2]]), serving, max_blocks, capacity_rows=capacity_rows
        )
