"""Second copies: chosen where they help, counted, saved, and served bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.cache.state import cache_bytes_of
from bandana_kv.disk.placement import layout_of
from bandana_kv.errors import InputError
from bandana_kv.kernels.layout import cover
from bandana_kv.placement import Placement, place
from bandana_kv.placement.measure import blocks_per_request
from bandana_kv.placement.replication import replicate
from bandana_kv.simulate import replay

ROWS, PER_BLOCK = 640, 8


def crossing_log(rng: np.random.Generator, requests: int = 3000) -> AccessLog:
    """Each row belongs to two of many groups of eight: one placement serves half of them."""
    first, second = rng.permutation(ROWS), rng.permutation(ROWS)
    groups = np.concatenate([first.reshape(-1, 8), second.reshape(-1, 8)])
    return AccessLog.from_requests(
        rng.permutation(groups[rng.integers(len(groups))])[:6] for _ in range(requests)
    )


@pytest.fixture(scope="module")
def logs() -> tuple[AccessLog, AccessLog]:
    return crossing_log(np.random.default_rng(0)).split(train=0.7)


@pytest.fixture(scope="module")
def placement(logs: tuple[AccessLog, AccessLog]) -> Placement:
    return place(logs[0], ROWS, PER_BLOCK, seed=0)


def test_copies_lower_the_fanout(logs: tuple[AccessLog, AccessLog], placement: Placement) -> None:
    learn, test = logs
    plain = blocks_per_request(test, placement).mean()
    half = blocks_per_request(test, replicate(learn, placement, 0.5)).mean()
    whole = blocks_per_request(test, replicate(learn, placement, 1.0)).mean()
    assert half < 0.9 * plain
    assert whole < 0.6 * plain


def test_extra_blocks_stay_within_the_share(
    logs: tuple[AccessLog, AccessLog], placement: Placement
) -> None:
    for share in (0.1, 0.2, 0.4):
        copies = replicate(logs[0], placement, share).replicas
        assert copies is not None
        assert copies.size <= share * placement.blocks * PER_BLOCK
        assert np.unique(copies).size == copies.size


def test_nothing_is_copied_in_vain(placement: Placement) -> None:
    together = AccessLog.from_requests([[0, 1, 2]] * 50)
    placed = place(together, ROWS, PER_BLOCK, seed=0)
    assert replicate(together, placed, 0.5).replicas is None
    assert replicate(together, placed, 0.0).replicas is None


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(
    logs: tuple[AccessLog, AccessLog], placement: Placement, share: float
) -> None:
    with pytest.raises(InputError, match="share of extra blocks"):
        replicate(logs[0], placement, share)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_copies_lie_where_the_layout_says(rows: int, per_block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    log = AccessLog.from_requests(rng.integers(0, rows, 5) for _ in range(20))
    found = replicate(log, place(log, rows, per_block, seed=0), 1.0)
    layout = layout_of(found, np.zeros(rows, np.uint8))
    original_of = layout.original_of
    assert (found.replicas is None) == (original_of.size == 0)
    if found.replicas is not None:
        assert np.array_equal(found.position_of_id[found.replicas], original_of)
        assert np.all(np.diff(original_of[layout.by_position].astype(int)) > 0)
        plain = Placement(found.position_of_id, per_block, "shp")
        assert np.all(blocks_per_request(log, found) <= blocks_per_request(log, plain))


def test_a_request_takes_the_block_that_gives_most() -> None:
    """Rows 0, 4 and 8 lie apart; their copies lie together, behind a block without copies."""
    placed = Placement(np.arange(12, dtype=np.uint32), 4, "mine", np.array([8, 0, 4], np.uint32))
    layout = layout_of(placed, np.zeros(12, np.uint8))
    for asked, blocks, places in (
        ([0, 4, 8], [3], [13, 14, 12]),
        ([0, 1, 4, 8], [0, 3], [0, 1, 14, 12]),
        ([4], [1], [4]),
        ([1, 5, 9], [0, 1, 2], [1, 5, 9]),
    ):
        found = np.empty(len(asked), np.int64)
        assert cover(np.array(asked), layout, found).tolist() == blocks
        assert found.tolist() == places


def test_copies_survive_a_file(
    logs: tuple[AccessLog, AccessLog], placement: Placement, tmp_path: Path
) -> None:
    found = replicate(logs[0], placement, 0.3)
    found.save(tmp_path / "placement")
    again = Placement.load(tmp_path / "placement")
    assert np.array_equal(found.replicas, again.replicas)


@pytest.mark.parametrize("adapter", ["memory", "lmdb", "rocksdb"])
@pytest.mark.parametrize("policy", [Policy(), Policy("sieve", Admission("online"))], ids=str)
def test_served_rows_are_right_and_reads_as_simulated(
    logs: tuple[AccessLog, AccessLog], tmp_path: Path, adapter: str, policy: Policy
) -> None:
    learn, test = logs
    rows = np.random.default_rng(1).random((ROWS, 32), dtype=np.float32)
    bandana_kv.load(
        tmp_path,
        {"user": rows},
        {"user": learn},
        adapter=adapter,
        replicate=0.4,
        policy=policy,
    )
    placed = place(learn, ROWS, 31, seed=0)
    placed = replicate(learn, placed, 0.4, seed=0)
    heat = heat_by_position(learn.ids, placed.position_of_id)
    expected = replay(test, placed, 32, policy=policy, heat=heat)
    with bandana_kv.open(tmp_path, cache_bytes_of(policy, 32, 128, ROWS)) as store:
        assert store.policy("user") == policy
        for number in range(test.requests):
            ids = test.request(number)
            assert np.array_equal(store.multi_get("user", ids), rows[ids])
        store.check()
        counted = store.stats()["user"]
    assert counted["copies_read"] > 0
    assert {name: counted[name] for name in vars(expected)} == vars(expected)


def test_copies_outside_the_table_are_refused(placement: Placement, tmp_path: Path) -> None:
    rows = np.zeros((ROWS, 32), np.float32)
    for bad in ([ROWS], [3, 3]):
        wrong = Placement(
            place(None, ROWS, 31, "identity").position_of_id,
            31,
            "mine",
            replicas=np.array(bad, np.uint32),
        )
        with pytest.raises(InputError, match="copies that are not distinct ids"):
            bandana_kv.load(tmp_path / "store", {"user": rows}, placement={"user": wrong})
    assert not (tmp_path / "store").exists()
