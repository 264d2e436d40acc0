"""What simulation says is what serving does: the same counts, not about the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.heat import count_lookups, heat_of_counts
from bandana_kv.placement import Placement, place
from bandana_kv.plan import Admission
from bandana_kv.simulate import replay
from bandana_kv.simulate.sample import sample_blocks
from bandana_kv.simulate.tune import tune

ROWS, DIM = 900, 32
PER_BLOCK = (4096 - 32) // (4 * DIM)
TABLE = np.random.default_rng(0).random((ROWS, DIM), np.float32)
ADMISSIONS = [Admission("none"), Admission("all"), Admission("threshold", 2)]


def make_log(seed: int, requests: int = 250) -> bandana_kv.AccessLog:
    """Requests for clusters of rows, popular ones more often; some are empty."""
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


@pytest.fixture(scope="module", params=["identity", "shuffled", "popularity", "shp"])
def placed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Placement]:
    placement = place(TRAIN, ROWS, PER_BLOCK, request.param)
    directory = tmp_path_factory.mktemp(request.param)
    bandana_kv.load(
        directory,
        {"t": TABLE},
        {"t": TRAIN},
        adapter="memory",
        placement={"t": placement},
        admission="none",
    )
    return directory, placement


@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("admission", ADMISSIONS, ids=str)
@pytest.mark.parametrize("cache_bytes", [0, 6_000, 40_000, 1 << 20])
def test_simulated_counts_are_the_served_ones(
    placed: tuple[Path, Placement], admission: Admission, coalesce: bool, cache_bytes: int
) -> None:
    directory, placement = placed
    heat = np.empty(ROWS, np.uint8)
    heat[placement.position_of_id] = heat_of_counts(count_lookups(TRAIN.ids, ROWS))
    with bandana_kv.open(
        directory,
        cache_bytes,
        admission=admission.rule,
        threshold=admission.threshold,
        coalesce=coalesce,
    ) as store:
        for number in range(TEST.requests):
            ids = TEST.request(number)
            assert np.array_equal(store.multi_get("t", ids), TABLE[ids])
        counted = store.stats()["t"]
        capacity_rows = store.capacity_rows("t")
        store.check()
    simulated = replay(
        TEST,
        placement,
        capacity_rows,
        heat=heat,
        least_heat=admission.least_heat,
        coalesce=coalesce,
    )
    del counted["bytes_read"]
    assert vars(simulated) == counted


def test_memory_spared_for_large_tables_changes_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    placement = place(TRAIN, ROWS, PER_BLOCK, "shuffled")
    usual = replay(TEST, placement, 60, least_heat=0)
    monkeypatch.setitem(replay.__globals__, "_MOST_BUCKETS", 1)
    assert replay(TEST, placement, 60, least_heat=0) == usual


def test_warm_requests_fill_the_cache_and_are_not_counted() -> None:
    placement = place(None, ROWS, PER_BLOCK, "identity")
    whole = replay(TEST, placement, ROWS)
    warm = replay(TEST, placement, ROWS, warm_requests=TEST.requests)
    half = replay(TEST, placement, ROWS, warm_requests=TEST.requests // 2)
    assert whole.lookups == TEST.lookups
    assert warm.lookups == warm.block_reads == 0
    assert warm.hit_rate == warm.reads_per_lookup == 0.0
    assert half.hit_rate > whole.hit_rate


def test_a_sample_keeps_whole_blocks() -> None:
    placement = place(TRAIN, ROWS, PER_BLOCK, "shuffled")
    sample = sample_blocks(TEST, placement, 0.5, seed=3)
    assert sample.requests == TEST.requests
    blocks = placement.position_of_id // PER_BLOCK
    kept = set(blocks[sample.ids].tolist())
    assert 0 < len(kept) < placement.blocks
    expected = [number for number in TEST.ids.tolist() if blocks[number] in kept]
    assert sample.ids.tolist() == expected


def test_tuning_finds_neighbours_worth_having_only_where_they_are() -> None:
    learn, validate = TRAIN.split(train=0.7, ordered=True)
    clustered = tune(learn, validate, place(learn, ROWS, PER_BLOCK, "shp"))
    assert {point.admission.rule for point in clustered.points} != {"none"}
    for point in clustered.points:
        counted = point.reads_per_lookup
        assert counted is not None
        assert 0 <= counted <= 1
    too_short = TRAIN.split(train=0.95, ordered=True)[1]
    assert tune(learn, too_short, place(learn, ROWS, PER_BLOCK, "shp")).points == ()
