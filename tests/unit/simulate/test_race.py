"""The race finds a policy as good as the best, and prefers a plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from bandana_kv.cache.heat import heat_of_counts
from bandana_kv.cache.policy import Admission, Eviction, Policy, Rule
from bandana_kv.kernels.layout import Layout
from bandana_kv.simulate.race import candidates, race
from bandana_kv.simulate.replay import Stream, run

PER_BLOCK = 16
NOTHING = np.zeros(0, np.uint32)


def stream_from(positions: NDArray[np.int64], warm: int) -> Stream:
    return Stream(np.arange(positions.size + 1), positions.astype(np.uint32), warm)


def layout_from(positions: NDArray[np.int64], rows: int) -> Layout:
    counts = np.bincount(positions, minlength=rows)
    return Layout(PER_BLOCK, heat_of_counts(counts), NOTHING, NOTHING)


def skewed(seed: int, rows: int, lookups: int) -> NDArray[np.int64]:
    rows_by_rank = np.random.default_rng(7).permutation(rows)
    return rows_by_rank[np.minimum(np.random.default_rng(seed).zipf(1.1, lookups), rows) - 1]


def by_block(seed: int, rows: int, lookups: int) -> NDArray[np.int64]:
    """Neighbours are asked for next: who lets them in, saves most reads."""
    rng = np.random.default_rng(seed)
    block = np.repeat(rng.integers(0, rows // PER_BLOCK, lookups // PER_BLOCK), PER_BLOCK)
    return (
        block * PER_BLOCK
        + rng.permuted(np.tile(np.arange(PER_BLOCK), (lookups // PER_BLOCK, 1)), axis=1).ravel()
    )


def all_reads(
    stream: Stream, layout: Layout, policies: tuple[Policy, ...], capacity: int
) -> dict[Policy, float]:
    return {p: run(stream, layout, p, capacity).reads_per_lookup for p in policies}


# (rows, lookups, rows in DRAM): one that is replayed whole, one that is sampled.
@pytest.mark.parametrize(
    ("rows", "lookups", "capacity"), [(800, 8_000, 60), (16_000, 60_000, 1600)]
)
@pytest.mark.parametrize("traffic", [skewed, by_block])
def test_the_winner_is_as_good_as_the_best(
    traffic: Callable[[int, int, int], NDArray[np.int64]], rows: int, lookups: int, capacity: int
) -> None:
    policies = candidates()
    positions = traffic(2, rows, lookups)
    layout = layout_from(traffic(1, rows, lookups), rows)
    stream = stream_from(positions, lookups // 2)
    ranked = race(stream, layout, policies, dict.fromkeys(policies, capacity), seed=0)
    reads = all_reads(stream, layout, policies, capacity)
    print(ranked[0], min(reads, key=lambda p: reads[p]), min(reads.values()))
    assert reads[ranked[0].policy] <= 1.03 * min(reads.values())
    assert reads[ranked[0].policy] < 0.97 * reads[Policy()]
    assert ranked[0].reads_per_lookup == pytest.approx(reads[ranked[0].policy], rel=0.15)
    others = [each.reads_per_lookup for each in ranked[1:]]
    assert others == sorted(others)


def test_small_caches_are_replayed_whole() -> None:
    policies = candidates()
    positions = skewed(2, 800, 4000)
    layout, stream = layout_from(skewed(1, 800, 4000), 800), stream_from(positions, 0)
    ranked = race(stream, layout, policies, dict.fromkeys(policies, 40), seed=0)
    reads = all_reads(stream, layout, policies, 40)
    assert {each.policy: each.reads_per_lookup for each in ranked} == reads
    assert {each.rate for each in ranked} == {1.0}


def test_each_policy_has_its_own_capacity() -> None:
    policies = (Policy("lru"), Policy("clock"))
    positions = skewed(0, 800, 4000)
    layout, stream = layout_from(positions, 800), stream_from(positions, 0)
    ranked = race(stream, layout, policies, {policies[0]: 20, policies[1]: 700}, seed=0)
    assert ranked[0].policy == policies[1]
    for each in ranked:
        capacity = 20 if each.policy == policies[0] else 700
        assert each.reads_per_lookup == run(stream, layout, each.policy, capacity).reads_per_lookup


@pytest.mark.parametrize("plainest", ["lru", "clock", "sieve"])
def test_of_equals_the_plainest_wins(plainest: Eviction) -> None:
    """With DRAM for every row nothing is evicted, and all read the same."""
    others = [e for e in get_args(Eviction) if e not in (plainest, "tinylfu")]
    policies = tuple(Policy(each) for each in (plainest, *others))
    positions = skewed(0, 800, 4000)
    layout, stream = layout_from(positions, 800), stream_from(positions, 0)
    ranked = race(stream, layout, policies, dict.fromkeys(policies, 800), seed=0)
    assert ranked[0].policy == policies[0]
    assert len({each.reads_per_lookup for each in ranked}) == 1


def test_a_gain_not_worth_mentioning_does_not_win() -> None:
    """A row that is never evicted differs in one of a thousand lookups."""
    plain, better = Policy("lru"), Policy("lru", Admission("all"))
    apart = np.arange(0, 1000 * PER_BLOCK, PER_BLOCK)
    for extra, winner in ((1, plain), (100, better)):
        positions = np.concatenate([apart, apart[-extra:] + 1])
        layout, stream = layout_from(positions, 1000 * PER_BLOCK), stream_from(positions, 0)
        capacity = {plain: 1000 * PER_BLOCK, better: 1000 * PER_BLOCK}
        ranked = race(stream, layout, (plain, better), capacity, seed=0)
        reads = all_reads(stream, layout, (plain, better), 1000 * PER_BLOCK)
        assert reads[better] < reads[plain]
        assert ranked[0].policy == winner


def test_candidates_are_distinct_valid_and_cover_what_there_is() -> None:
    tried = candidates()
    assert len(set(tried)) == len(tried)
    assert tried[0] == Policy()
    assert {each.eviction for each in tried} == set(get_args(Eviction))
    assert {each.admission.rule for each in tried} == set(get_args(Rule))
