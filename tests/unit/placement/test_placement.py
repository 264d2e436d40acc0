"""Placement: what each method promises, and the errors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bandana_kv.errors import BandanaError, InputError
from bandana_kv.placement import Placement, fanout, methods, place


def log_of(*requests: list[int]) -> SimpleNamespace:
    """Return requests given as lists as a log."""
    offsets = np.cumsum([0] + [len(request) for request in requests]).astype(np.int64)
    ids = np.array([row for request in requests for row in request], np.int32)
    return SimpleNamespace(offsets=offsets, ids=ids)


def community_log(seed: int, communities: int = 64, rows_each: int = 32) -> SimpleNamespace:
    """Return requests that each look up eight rows of one community; ids are shuffled."""
    rng = np.random.default_rng(seed)
    id_of_row = rng.permutation(communities * rows_each)
    home = rng.integers(communities, size=4000)
    picks = rng.integers(rows_each, size=(4000, 8))
    ids = id_of_row[home[:, None] * rows_each + picks].astype(np.int32)
    return SimpleNamespace(offsets=np.arange(0, 32001, 8, dtype=np.int64), ids=ids.ravel())


def test_methods_are_listed() -> None:
    assert {"identity", "popularity", "shp", "shuffled"} <= set(methods())


def test_identity_needs_no_log() -> None:
    placement = place(None, 5, 2, "identity")
    assert placement.position_of_id.tolist() == [0, 1, 2, 3, 4]
    assert placement.position_of_id.dtype == np.uint32
    assert (placement.rows, placement.blocks, placement.rows_per_block) == (5, 3, 2)
    assert placement.method == "identity"
    assert placement.replicas is None


def test_shuffled_follows_the_seed() -> None:
    first = place(None, 100, 8, "shuffled", seed=1).position_of_id
    assert np.array_equal(first, place(None, 100, 8, "shuffled", seed=1).position_of_id)
    assert not np.array_equal(first, place(None, 100, 8, "shuffled", seed=2).position_of_id)


def test_popularity_puts_the_most_looked_up_first_and_ties_by_id() -> None:
    placement = place(log_of([3, 1], [3], [2, 1, 3]), 5, 2, "popularity")
    assert placement.id_of_position().tolist() == [3, 1, 2, 0, 4]


def test_fanout_counts_distinct_blocks() -> None:
    placement = place(None, 6, 2, "identity")
    assert fanout(log_of([0, 1], [0, 2, 4], [5, 5, 4], []), placement) == (1 + 3 + 1 + 0) / 4
    assert fanout(log_of(), placement) == 0.0


def test_shp_finds_planted_communities() -> None:
    log = community_log(seed=0)
    placement = place(log, 2048, 32, "shp", seed=0)
    assert fanout(log, place(None, 2048, 32, "shuffled")) > 6.5
    assert fanout(log, placement) < 1.35


def test_shp_puts_rows_never_seen_last_by_id() -> None:
    placement = place(log_of([5, 9], [9, 5, 7], [3]), 12, 4, "shp")
    order = placement.id_of_position().tolist()
    assert set(order[:3]) == {5, 7, 9}
    assert order[3:] == [3, 0, 1, 2, 4, 6, 8, 10, 11]


def test_shp_is_told_from_the_log_alone() -> None:
    """The type of the ids and where the log lies in memory must not matter."""
    log = community_log(seed=1)
    wide = SimpleNamespace(offsets=log.offsets, ids=log.ids.astype(np.int64))
    first = place(log, 2048, 32, "shp").position_of_id
    assert np.array_equal(first, place(wide, 2048, 32, "shp").position_of_id)


def test_unknown_method_names_the_choices() -> None:
    with pytest.raises(InputError, match=r"unknown placement method 'shpp'.*popularity.*shp"):
        place(None, 4, 2, "shpp")


@pytest.mark.parametrize("method", ["popularity", "shp"])
def test_methods_that_learn_say_they_need_a_log(method: str) -> None:
    with pytest.raises(InputError, match=f"{method}.*log"):
        place(None, 4, 2, method)


@pytest.mark.parametrize("method", ["identity", "shp"])
def test_id_beyond_the_table_is_named(method: str) -> None:
    with pytest.raises(InputError, match=r"id 7.*4 rows"):
        place(log_of([0, 7]), 4, 2, method)
    with pytest.raises(InputError, match=r"id -1"):
        place(log_of([0, -1]), 4, 2, method)


def test_fanout_refuses_ids_that_are_not_placed() -> None:
    with pytest.raises(InputError, match=r"id 6.*6 rows"):
        fanout(log_of([6]), Placement(np.arange(6, dtype=np.uint32), 2, "identity"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": -1}, "rows must be"),
        ({"rows_per_block": 0}, "rows_per_block must be"),
        ({"quality": "great"}, "unknown quality 'great'.*fast.*balanced.*best"),
        ({"threads": 0}, "threads must be"),
    ],
)
def test_sizes_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BandanaError, match=message):
        place(**({"log": log_of([0, 1]), "rows": 4} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "broken",
    [
        SimpleNamespace(offsets=np.array([0, 2, 1, 3]), ids=np.arange(3)),
        SimpleNamespace(offsets=np.array([0, 2]), ids=np.arange(3)),
        SimpleNamespace(offsets=np.array([0, 3]), ids=np.arange(3.0)),
    ],
)
def test_malformed_log(broken: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="the log's"):
        place(broken, 4, 2, "shp")
