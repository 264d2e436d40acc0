"""Miniature caches: which blocks they keep, what they count, and how near that is to the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.disk.placement import layout_of
from bandana_kv.errors import InputError
from bandana_kv.kernels.layout import Layout
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement import Placement
from bandana_kv.simulate import curve, estimate, replay
from bandana_kv.simulate.miniature import Miniature, miniature, rate_for, whole
from bandana_kv.simulate.replay import Replayed, Stream, run, stream_of

PER_BLOCK, BLOCKS = 7, 250
ROWS = PER_BLOCK * BLOCKS - 3
NOTHING = np.zeros(0, np.uint32)
# A row's heat is the number of its block, so that a sample says which blocks it holds.
LAYOUT = Layout(PER_BLOCK, (np.arange(ROWS) // PER_BLOCK).astype(np.uint8), NOTHING, NOTHING)


def small_stream(warm: int = 0) -> Stream:
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 4, 400)
    positions = np.minimum(rng.geometric(0.003, sizes.sum()), ROWS) - 1
    return Stream(np.append(0, np.cumsum(sizes)), positions.astype(np.uint32), warm)


def requests_of(stream: Stream) -> list[list[int]]:
    return [part.tolist() for part in np.split(stream.positions, stream.offsets[1:-1])]


def skewed_log(rows: int, per_block: int, requests: int) -> tuple[AccessLog, Placement]:
    """A few blocks get most requests, and a few rows of each block most of its lookups."""
    rng = np.random.default_rng(1)
    blocks = rng.permutation(rows // per_block)
    block = blocks[np.minimum(rng.zipf(1.15, requests) - 1, blocks.size - 1)]
    sizes = rng.integers(1, 6, requests)
    row = np.minimum(rng.geometric(0.2, sizes.sum()) - 1, per_block - 1)
    ids = np.repeat(block, sizes) * per_block + row
    placement = Placement(np.arange(rows, dtype=np.uint32), per_block, "identity")
    return AccessLog(np.append(0, np.cumsum(sizes)), ids), placement


@pytest.mark.parametrize("warm", [0, 150, 400])
@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9, 1.0])
def test_a_sample_keeps_all_lookups_of_whole_blocks_and_no_others(rate: float, warm: int) -> None:
    stream = small_stream(warm)
    of_short_block = 0
    for seed in range(8):
        small = miniature(stream, LAYOUT, rate, seed)
        kept = small.layout.heat[::PER_BLOCK].tolist()
        assert kept == sorted(set(kept))
        assert 0.8 * rate * BLOCKS <= len(kept) <= rate * BLOCKS
        assert len(kept) == BLOCKS or rate < 1.0
        of_short_block += BLOCKS - 1 in kept
        first_of = {block: PER_BLOCK * number for number, block in enumerate(kept)}
        expected = [
            [
                first_of[p // PER_BLOCK] + p % PER_BLOCK
                for p in request
                if p // PER_BLOCK in first_of
            ]
            for request in requests_of(stream)
        ]
        counted = sum(map(len, expected[warm:]))
        alive = [request for request in expected if request]
        assert requests_of(small.stream) == (alive or [[]])
        assert small.stream.warm_requests == sum(map(bool, expected[:warm]))
        rows = [p for block in kept for p in range(ROWS) if p // PER_BLOCK == block]
        assert np.array_equal(small.layout.heat, LAYOUT.heat[rows])
        assert small.layout.rows_per_block == PER_BLOCK
        assert small.rate == len(rows) / ROWS
        lookups = int(stream.offsets[-1] - stream.offsets[warm])
        assert small.lookups_rate == (counted / lookups if lookups else 0.0)
    assert of_short_block > 0 or rate < 0.3
    assert of_short_block < 8 or rate > 0.3


def test_equally_busy_blocks_are_sampled_alike() -> None:
    """The busiest block has a third of the lookups: no sample of half lacks all busy ones."""
    stream = small_stream()
    shares = [miniature(stream, LAYOUT, 0.5, seed).lookups_rate for seed in range(20)]
    assert 0.4 < min(shares) <= max(shares) < 0.6
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert len(set(shares)) > 1  # by seed


def test_a_sample_of_one_block_is_a_block() -> None:
    small = miniature(small_stream(), LAYOUT, 1e-9, 0)
    assert 0 < small.layout.heat.size <= PER_BLOCK


def test_second_copies_are_left_out() -> None:
    copied = np.arange(9, dtype=np.uint32)
    small = miniature(small_stream(), Layout(PER_BLOCK, LAYOUT.heat, copied, copied), 0.5, 0)
    assert small.layout.original_of.size == small.layout.by_position.size == 0
    everything = whole(small_stream(), Layout(PER_BLOCK, LAYOUT.heat, copied, copied))
    assert everything.layout.original_of.size == 9


def test_dram_is_to_scale() -> None:
    small = miniature(small_stream(), LAYOUT, 0.1, 0)
    assert small.capacity(0) == 0
    assert small.capacity(1000) == round(1000 * small.rate)
    assert rate_for([3000, 0, 600], 300) == 0.5
    assert rate_for([100], 300) == 1.0
    assert rate_for([0]) == rate_for([]) == 1.0


def test_reads_are_scaled_by_blocks_and_lookups_by_lookups() -> None:
    stream = small_stream()
    small = Miniature(stream, LAYOUT, rate=0.1, lookups_rate=0.2)
    counted = Replayed(200, 100, 50, 0, 0, 0)
    # 500 reads of the whole, and 1000 lookups
    assert small.reads_per_lookup(counted) == pytest.approx(0.5)
    assert small.reads_per_lookup(Replayed(0, 0, 0, 0, 0, 0)) == 0.0
    plain = run(stream, LAYOUT, Policy(), 50)
    assert whole(stream, LAYOUT).reads_per_lookup(plain) == plain.reads_per_lookup


POLICIES = [
    Policy(),
    Policy("lru", Admission("all")),
    Policy("s3-fifo", Admission("online"), half_life=20.0),
    Policy("tinylfu", Admission("threshold", 5), half_life=20.0),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_curve_from_samples_is_near_the_whole(policy: Policy) -> None:
    log, placement = skewed_log(40_000, 20, 40_000)
    heat = heat_by_position(log.ids, placement.position_of_id)
    capacities = [0, 1000, 3000, 10_000]
    found = curve(
        log, placement, capacities, policy=policy, heat=heat, rate=0.2, warm_requests=20_000
    )
    exact = [
        replay(log, placement, rows, policy=policy, heat=heat, warm_requests=20_000)
        for rows in capacities
    ]
    reads = np.array([each.reads_per_lookup for each in exact])
    misses = np.array([1.0 - each.hit_rate for each in exact])
    print(found.reads_per_lookup / reads, found.miss_ratio / misses)
    assert np.abs(found.reads_per_lookup / reads - 1.0).max() < 0.1
    # Not scaled by blocks, as reads are: a busy block more or less in a sample shows.
    assert np.abs(found.miss_ratio / misses - 1.0).max() < 0.3
    assert np.all(found.low <= found.reads_per_lookup)
    assert np.all(found.reads_per_lookup <= found.high)
    assert np.all(found.low < found.high)
    assert found.capacity_rows.tolist() == capacities
    assert found.rate == 0.2


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_curve_at_rate_one_is_the_whole(policy: Policy) -> None:
    log, placement = skewed_log(2000, 20, 3000)
    heat = heat_by_position(log.ids, placement.position_of_id)
    capacities = [0, 50, 400]
    found = curve(log, placement, capacities, policy=policy, heat=heat, rate=1.0)
    exact = [replay(log, placement, rows, policy=policy, heat=heat) for rows in capacities]
    assert found.reads_per_lookup.tolist() == [each.reads_per_lookup for each in exact]
    assert found.miss_ratio.tolist() == [1.0 - each.hit_rate for each in exact]
    assert np.array_equal(found.low, found.high)


def test_by_default_the_smallest_cache_is_left_a_few_hundred_rows() -> None:
    log, placement = skewed_log(20_000, 20, 3000)
    assert curve(log, placement, [100]).rate == 1.0
    assert curve(log, placement, [0, 1200, 5000]).rate == 0.25


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 0.0}, r"rate 0.0 is not above 0 and up to 1"),
        ({"rate": 1.1}, r"rate 1.1 is not above 0"),
        ({"rate": float("nan")}, r"rate nan is not above 0"),
        ({"capacities_rows": [5, -1]}, r"capacities_rows \[5, -1\] has a negative number"),
        ({"seeds": ()}, "seeds is empty"),
        ({"warm_requests": 31}, "warm_requests 31 is not between 0 and 30"),
    ],
)
def test_what_makes_no_curve_is_said(options: dict[str, object], said: str) -> None:
    log, placement = skewed_log(200, 20, 30)
    with pytest.raises(InputError, match=said):
        curve(log, placement, **{"capacities_rows": [5], **options})


def test_a_log_of_another_table_makes_no_curve() -> None:
    log, _ = skewed_log(200, 20, 30)
    _, small = skewed_log(20, 20, 30)
    with pytest.raises(InputError, match="the placement has 20 rows"):
        curve(log, small, [5])


def test_a_stream_is_the_log_by_position() -> None:
    log, _ = skewed_log(200, 20, 30)
    reverse = Placement(np.arange(200, dtype=np.uint32)[::-1].copy(), 20, "reverse")
    stream = stream_of(log, reverse, 3)
    assert np.array_equal(stream.positions, 199 - log.ids)
    assert np.array_equal(stream.offsets, log.offsets)
    assert stream.warm_requests == 3


@pytest.mark.parametrize("rule", ["none", "all", "online"])
def test_an_estimate_is_as_near_as_was_asked_for(rule: Any) -> None:
    log, placement = skewed_log(40_000, 16, 20_000)
    heat = heat_by_position(log.ids, placement.position_of_id)
    stream, layout = stream_of(log, placement, 4000), layout_of(placement, heat)
    policy = Policy("tinylfu", Admission(rule))
    whole_reads = run(stream, layout, policy, 2000).block_reads
    rates = []
    for error in (0.05, 0.02, 0.01):
        found = estimate(stream, layout, policy, 2000, error=error)
        assert found.standard_error <= error * found.block_reads
        assert found.block_reads == pytest.approx(whole_reads, rel=4 * error)
        rates.append(found.rate)
    assert rates == sorted(rates)
    assert rates[0] < 0.3
    assert estimate(stream, layout, policy, 2000, seed=8) != estimate(stream, layout, policy, 2000)


def test_what_is_too_small_for_samples_is_replayed_whole() -> None:
    log, placement = skewed_log(40_000, 16, 2000)
    stream = stream_of(log, placement)
    layout = layout_of(placement, np.zeros(placement.rows, np.uint8))
    for capacity_rows, error in ((0, 0.01), (150, 0.01), (2000, 1e-9)):
        found = estimate(stream, layout, Policy(), capacity_rows, error=error)
        reads = run(stream, layout, Policy(), capacity_rows).block_reads
        assert found == (reads, 0.0, 1.0)
