"""What simulation says is what serving does: the same counts, not about the same."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import bandana_kv
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import WHOLE, Admission, Eviction, Policy, Rule
from bandana_kv.cache.request import COUNTERS
from bandana_kv.cache.state import cache_bytes_of
from bandana_kv.disk.placement import layout_of
from bandana_kv.errors import InputError
from bandana_kv.placement import Placement, place
from bandana_kv.placement.replication import replicate
from bandana_kv.simulate import per_request, replay
from bandana_kv.simulate.replay import Replayed, run, run_parts, stream_of

ROWS, DIM = 900, 32
PER_BLOCK = (4096 - 32) // (4 * DIM)
TABLE = np.random.default_rng(0).random((ROWS, DIM), np.float32)
# Nothing, about 30 rows, about 250, and everything.
CACHE_BYTES = [0, 6_000, 40_000, 1 << 20]
# Live heat halves every few requests, so that ageing matters in a log as short as this.
POLICIES = [
    Policy(eviction, Admission(rule, 2 if rule == "threshold" else None), half_life=2.0)
    for eviction in get_args(Eviction)
    for rule in get_args(Rule)
]
OTHERS = [
    Policy("tinylfu", Admission("online"), half_life=0.01, seed_weight=0.0),
    Policy("tinylfu", Admission("online"), half_life=1e6, seed_weight=3.0),
    Policy("lru", Admission("threshold", 0)),
    Policy("lru", Admission("threshold", 200)),
]


def make_log(seed: int, requests: int = 200) -> bandana_kv.AccessLog:
    """Requests for clusters of rows, popular ones more often; some are empty, some repeat ids."""
    rng = np.random.default_rng(seed)
    shuffled = np.random.default_rng(7).permutation(ROWS)
    cluster = np.minimum(rng.geometric(0.08, requests) - 1, ROWS // 30 - 1)
    sizes = rng.integers(0, 25, requests)
    return bandana_kv.AccessLog.from_requests(
        [
            shuffled[first * 30 + rng.integers(0, 30, size)]
            for first, size in zip(cluster, sizes, strict=True)
        ]
    )


TRAIN, TEST = make_log(1), make_log(2)


def placed_by(method: str) -> Placement:
    if method == "shp with copies":
        return replicate(TRAIN, place(TRAIN, ROWS, PER_BLOCK, "shp"), 0.4)
    return place(TRAIN, ROWS, PER_BLOCK, method)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Placement]]:
    """Stores of one table, by placement."""
    stores = {}
    for method in ("identity", "shuffled", "popularity", "shp", "shp with copies"):
        placement = placed_by(method)
        directory = tmp_path_factory.mktemp("store")
        bandana_kv.load(
            directory,
            {"t": TABLE},
            {"t": TRAIN},
            adapter="memory",
            placement={"t": placement},
            admission="none",
        )
        stores[method] = directory, placement
    return stores


def served(directory: Path, policy: Policy, cache_bytes: int, coalesce: bool) -> tuple[int, dict]:
    """Return the rows that DRAM held, and what was counted."""
    with bandana_kv.open(
        directory, cache_bytes, policy=policy, readers=1, coalesce=coalesce
    ) as store:
        assert store.policy("t") == policy
        for number in range(TEST.requests):
            ids = TEST.request(number)
            assert np.array_equal(store.multi_get("t", ids), TABLE[ids])
        store.check()
        counted = store.stats()["t"]
        return store.capacity_rows("t"), {name: counted[name] for name in COUNTERS}


def simulated(placement: Placement, policy: Policy, capacity: int, coalesce: bool) -> Replayed:
    heat = heat_by_position(TRAIN.ids, placement.position_of_id)
    return replay(TEST, placement, capacity, policy=policy, heat=heat, coalesce=coalesce)


@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("cache_bytes", CACHE_BYTES)
@pytest.mark.parametrize("policy", [*POLICIES, *OTHERS], ids=str)
def test_simulated_counts_are_the_served_ones(
    loaded: dict[str, tuple[Path, Placement]], policy: Policy, cache_bytes: int, coalesce: bool
) -> None:
    directory, placement = loaded["shp with copies"]
    capacity, counted = served(directory, policy, cache_bytes, coalesce)
    assert (capacity == 0, capacity == ROWS) == (cache_bytes == 0, cache_bytes == 1 << 20)
    assert vars(simulated(placement, policy, capacity, coalesce)) == counted
    assert counted["lookups"] == TEST.lookups
    assert (counted["hits"] == 0) == (capacity == 0)


@pytest.mark.parametrize("method", ["identity", "shuffled", "popularity", "shp"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_so_they_are_for_every_placement(
    loaded: dict[str, tuple[Path, Placement]], policy: Policy, method: str
) -> None:
    directory, placement = loaded[method]
    capacity, counted = served(directory, policy, 20_000, True)
    assert vars(simulated(placement, policy, capacity, True)) == counted


def test_the_policies_are_not_all_the_same() -> None:
    """Else equality would say little: each eviction and each rule leaves its own counts."""
    placement = placed_by("shp")
    counts = {
        policy: tuple(vars(simulated(placement, policy, 60, True)).values()) for policy in POLICIES
    }
    assert len(set(counts.values())) == len(POLICIES)


def test_tables_of_one_store_count_each_for_itself(tmp_path: Path) -> None:
    tables = {"a": TABLE, "b": TABLE[::-1].copy()}
    placement = placed_by("shp")
    bandana_kv.load(
        tmp_path,
        tables,
        dict.fromkeys(tables, TRAIN),
        adapter="memory",
        placement=dict.fromkeys(tables, placement),
        admission="none",
    )
    policy = Policy("s3-fifo", Admission("online"), half_life=2.0)
    with bandana_kv.open(tmp_path, {"a": 8_000, "b": 30_000}, policy=policy, readers=1) as store:
        for number in range(TEST.requests):
            ids = TEST.request(number)
            rows = store.multi_get(dict.fromkeys(tables, ids))
            assert all(np.array_equal(rows[name], tables[name][ids]) for name in tables)
        store.check()
        for name, counted in store.stats().items():
            expected = vars(simulated(placement, policy, store.capacity_rows(name), True))
            assert {each: counted[each] for each in expected} == expected


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_memory_spared_for_large_tables_changes_no_count(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = placed_by("shuffled")
    usual = replay(TEST, placement, 60, policy=policy)
    monkeypatch.setitem(run_parts.__globals__, "_MOST_BUCKETS", 1)
    assert replay(TEST, placement, 60, policy=policy) == usual


def test_what_was_planned_is_what_is_served(tmp_path: Path) -> None:
    """Without an override the store obeys its plan; the plan fits the log it was made from."""
    bandana_kv.load(tmp_path, {"t": TABLE}, {"t": TRAIN}, adapter="memory")
    plan = bandana_kv.disk.manifest.read_current(tmp_path).tables["t"].plan
    assert len(plan.points) > 3
    assert plan.lookups == TRAIN.lookups
    reads = [point.reads_per_lookup for point in plan.points]
    assert all(0 <= count <= 1 for count in reads)
    assert reads[-1] < 0.5 * reads[0]
    for point in plan.points:
        cache_bytes = cache_bytes_of(Policy(), point.capacity_rows, 4 * DIM, ROWS)
        with bandana_kv.open(tmp_path, cache_bytes, readers=1) as store:
            policy = WHOLE if point.capacity_rows == ROWS else point.policy
            assert store.policy("t") == policy
            capacity = store.capacity_rows("t")
            for number in range(TEST.requests):
                store.multi_get("t", TEST.request(number))
            counted = store.stats()["t"]
        expected = vars(simulated(placed_by("shp"), policy, capacity, True))
        assert {each: counted[each] for each in expected} == expected


def test_by_default_lru_lets_no_neighbour_in() -> None:
    placement = placed_by("shp")
    counted = replay(TEST, placement, 60)
    assert counted == replay(TEST, placement, 60, policy=Policy("lru", Admission("none")))
    assert counted.neighbours_admitted == 0
    assert 0 < counted.hit_rate < 1


def test_warm_requests_fill_the_cache_and_are_not_counted() -> None:
    placement = place(None, ROWS, PER_BLOCK, "identity")
    whole = replay(TEST, placement, ROWS)
    warm = replay(TEST, placement, ROWS, warm_requests=TEST.requests)
    half = replay(TEST, placement, ROWS, warm_requests=TEST.requests // 2)
    assert whole.lookups == TEST.lookups
    assert warm.lookups == warm.block_reads == 0
    assert warm.hit_rate == warm.reads_per_lookup == 0.0
    assert half.hit_rate > whole.hit_rate


def test_parts_add_up_to_the_whole() -> None:
    placement = placed_by("shp")
    stream = stream_of(TEST, placement, 30)
    layout = layout_of(placement, np.zeros(ROWS, np.uint8))
    policy = Policy("tinylfu", Admission("online"), half_life=2.0)
    counts = [vars(part) for part in run_parts(stream, layout, policy, 60, 4)]
    assert len(counts) == 4
    assert all(count["lookups"] for count in counts)
    summed = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert summed == vars(run(stream, layout, policy, 60))


def test_what_cannot_be_replayed_is_said() -> None:
    placement = place(None, ROWS, PER_BLOCK, "identity")
    with pytest.raises(InputError, match="capacity_rows -1 is negative"):
        replay(TEST, placement, -1)
    for warm in (-1, TEST.requests + 1):
        with pytest.raises(InputError, match=f"warm_requests {warm} is not between 0 and"):
            replay(TEST, placement, 1, warm_requests=warm)
    small = place(None, 10, PER_BLOCK, "identity")
    with pytest.raises(InputError, match="the placement has 10 rows"):
        replay(TEST, small, 1)
    empty = bandana_kv.AccessLog.from_requests([])
    assert replay(empty, small, 1).reads_per_lookup == 0.0


def test_single_requests_add_up_to_the_whole() -> None:
    placement = placed_by("shp with copies")
    stream = stream_of(TEST, placement, 30)
    layout = layout_of(placement, heat_by_position(TRAIN.ids, placement.position_of_id))
    for policy in POLICIES[::5]:
        each = per_request(stream, layout, policy, 60)
        whole = run(stream, layout, policy, 60)
        assert np.array_equal(each.lookups, np.diff(TEST.offsets)[30:])
        assert each.lookups.sum() - each.missed.sum() == whole.hits
        assert each.block_reads.sum() == whole.block_reads
        assert ((each.missed > 0) == (each.block_reads > 0)).all()
        assert (each.block_reads <= each.missed).all()


def test_a_single_request_counts_as_it_would_behind_the_others() -> None:
    placement = placed_by("shp")
    layout = layout_of(placement, np.zeros(ROWS, np.uint8))
    stream = stream_of(TEST, placement)
    each = per_request(stream, layout, Policy(), 60)
    for number in (0, 100, TEST.requests - 1):
        upto = stream._replace(offsets=stream.offsets[: number + 2], warm_requests=number)
        alone = run(upto, layout, Policy(), 60)
        assert alone.block_reads == each.block_reads[number]
        assert alone.lookups - alone.hits == each.missed[number]


def test_callers_read_a_block_once_for_all_who_miss_it_at_the_same_time() -> None:
    """By hand: two callers, blocks of one row and no cache."""
    placement = place(None, 8, 1, "identity")
    layout = layout_of(placement, np.zeros(8, np.uint8))

    def reads(requests: list[list[int]], callers: int) -> list[int]:
        log = bandana_kv.AccessLog.from_requests([np.array(ids) for ids in requests])
        counted = per_request(stream_of(log, placement), layout, Policy(), 0, callers=callers)
        return counted.block_reads.tolist()

    same = [[0], [0], [0], [0]]
    assert reads(same, 1) == [1, 1, 1, 1]
    assert sum(reads(same, 2)) == 2
    assert reads(same, 4) == [1, 0, 0, 0]
    # The second asks for one block that the first is reading, and one that it is not.
    assert reads([[0, 1], [1, 2]], 2) == [2, 1]
    assert reads([[0, 1], [1, 2]], 1) == [2, 2]
    assert reads([[0], [1], [2], [3]], 4) == [1, 1, 1, 1]


def test_with_more_callers_less_is_read_and_no_row_twice() -> None:
    placement = placed_by("shp with copies")
    stream = stream_of(TEST, placement, 30)
    layout = layout_of(placement, np.zeros(ROWS, np.uint8))
    counted = [per_request(stream, layout, Policy(), 60, callers=n) for n in (1, 2, 4, 8)]
    reads = [int(each.block_reads.sum()) for each in counted]
    assert reads == sorted(reads, reverse=True)
    assert len(set(reads)) == 4
    for each in counted:
        assert np.array_equal(each.missed, counted[0].missed)
        assert np.array_equal(each.block_reads + each.joined, counted[0].block_reads)
    with pytest.raises(InputError, match="callers 0: at least one must ask"):
        per_request(stream, layout, Policy(), 60, callers=0)
