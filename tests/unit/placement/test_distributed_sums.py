"""The sums that workers make of their requests: right, and the same however requests are dealt."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bandana_kv.placement.distributed.cut import KEEPS, gain_type, swap_sides
from bandana_kv.placement.distributed.kernels import (
    add_gains,
    clean,
    count_blocks,
    drawn,
    gather_runs,
    picked,
    runs_of,
    split,
)

ROWS = 20

requests = st.lists(st.lists(st.integers(0, ROWS - 1), max_size=9), min_size=1, max_size=12)
sides = st.lists(st.integers(0, 1), min_size=ROWS, max_size=ROWS)


def arrays(asked: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    ends = np.cumsum([0, *map(len, asked)]).astype(np.int64)
    return ends, np.array([row for request in asked for row in request], np.int32)


def lists(ends: NDArray[np.int64], ids: NDArray[np.int32]) -> list[list[int]]:
    return [ids[begin:end].tolist() for begin, end in pairwise(ends.tolist())]


def distinct(asked: list[list[int]]) -> list[list[int]]:
    once = [list(dict.fromkeys(request)) for request in asked]
    return [request for request in once if len(request) >= 2]


def packed(of_row: list[int]) -> NDArray[np.uint8]:
    return np.packbits(np.array(of_row, np.uint8), bitorder="little")


def gains_of(asked: list[list[int]], of_row: list[int]) -> NDArray[np.int32]:
    gains = np.zeros(ROWS, np.int32)
    add_gains(*arrays(asked), packed(of_row), KEEPS, gains)
    return gains


def cost(asked: list[list[int]], of_row: list[int]) -> int:
    """Return the p-fanout of both sides, in units: what the first of c rows keeps, and so on."""
    total = 0
    for request in asked:
        right = sum(of_row[row] for row in request)
        for count in (len(request) - right, right):
            total += int(KEEPS[:count].sum())
    return total


@given(requests)
def test_cleaned_requests_have_two_rows_or_more_each_once(asked: list[list[int]]) -> None:
    ends, ids = arrays(asked)
    kept = np.ones(len(asked), np.bool_)
    assert lists(*clean(ends, ids, kept, ROWS)) == distinct(asked)
    kept[::2] = False
    assert lists(*clean(ends, ids, kept, ROWS)) == distinct(asked[1::2])


@given(requests, sides)
def test_a_gain_is_what_the_log_saves_when_one_row_changes_sides(
    asked: list[list[int]], of_row: list[int]
) -> None:
    asked = distinct(asked)
    gains = gains_of(asked, of_row)
    for row in range(ROWS):
        moved = [*of_row]
        moved[row] = 1 - moved[row]
        assert gains[row] == cost(asked, of_row) - cost(asked, moved)


@given(requests, sides, st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_how_requests_are_dealt(
    asked: list[list[int]], of_row: list[int], random: object
) -> None:
    asked = distinct(asked)
    dealt: list[list[list[int]]] = [[], [], []]
    for request in asked:
        dealt[random.randrange(3)].append(request)  # type: ignore[attr-defined]
    random.shuffle(dealt)  # type: ignore[attr-defined]
    whole = gains_of(asked, of_row)
    assert np.array_equal(whole, sum(gains_of(some, of_row) for some in dealt))


def test_many_rows_on_a_side_keep_nothing_more() -> None:
    asked = [list(range(ROWS)) * 3]  # longer than the table of what is kept
    gains = gains_of(asked, [0] * ROWS)
    assert gains.tolist() == [-3 * int(KEEPS[0])] * ROWS


@given(requests, sides)
def test_a_split_is_each_requests_rows_by_side(asked: list[list[int]], of_row: list[int]) -> None:
    asked = distinct(asked)
    halves = [
        half
        for request in asked
        for side in (0, 1)
        if len(half := [row for row in request if of_row[row] == side]) >= 2
    ]
    assert lists(*split(*arrays(asked), packed(of_row))) == halves


@given(requests, st.lists(st.integers(-1, 3), min_size=ROWS, max_size=ROWS))
def test_a_shuffle_has_each_requests_rows_by_place(
    asked: list[list[int]], place_of_row: list[int]
) -> None:
    asked = distinct(asked)
    place = np.array(place_of_row, np.int32)
    bundle_of_place = np.array([0, 0, 1, 1], np.int32)
    run_ends, ids, places = runs_of(*arrays(asked), place)
    runs_end, lengths, rows_end, rows = gather_runs(run_ends, ids, bundle_of_place[places], 2)
    found = []
    for bundle in range(2):
        ends = np.cumsum([0, *lengths[runs_end[bundle] : runs_end[bundle + 1]]])
        inside = rows[rows_end[bundle] : rows_end[bundle + 1]]
        assert ends[-1] == inside.size
        found += [(bundle, run) for run in lists(ends, inside)]
    wanted = []
    for request in asked:
        for number in range(4):
            run = sorted(row for row in request if place_of_row[row] == number)
            if len(run) >= 2:
                wanted.append((int(bundle_of_place[number]), run))
    assert sorted(found) == sorted(wanted)


def test_long_requests_are_shuffled_alike() -> None:
    rng = np.random.default_rng(0)
    rows = rng.permutation(1000).astype(np.int32)
    place = rng.integers(5, size=1000).astype(np.int32)
    run_ends, ids, places = runs_of(np.array([0, 1000]), rows, place)
    for run, number in enumerate(places.tolist()):
        inside = ids[run_ends[run] : run_ends[run + 1]]
        assert inside.tolist() == np.flatnonzero(place == number).tolist()


@settings(max_examples=200)
@given(
    st.lists(st.integers(-6, 6), min_size=ROWS, max_size=ROWS),
    sides,
    st.integers(0, 2**64 - 1),
    st.sampled_from([np.int32, np.int64]),
)
def test_a_swap_keeps_both_sides_full_and_ends_when_no_pair_gains(
    gains: list[int], of_row: list[int], salt: int, dtype: type
) -> None:
    rows = np.random.default_rng(0).permutation(ROWS).astype(np.int32)
    after = np.array(of_row, np.uint8)
    pairs = swap_sides(rows, after, np.array(gains, dtype), np.uint64(salt))
    left = sorted((gains[row] for row in range(ROWS) if not of_row[row]), reverse=True)
    right = sorted((gains[row] for row in range(ROWS) if of_row[row]), reverse=True)
    assert pairs == sum(a + b > 0 for a, b in zip(left, right, strict=False))
    assert int(after.sum()) == sum(of_row)
    moved = np.flatnonzero(after != np.array(of_row, np.uint8))
    assert moved.size <= 2 * pairs
    assert not moved.size or sum(gains[row] for row in moved) > 0


def test_equal_gains_swap_in_the_order_of_the_rows() -> None:
    rows = np.array([5, 3, 1, 4, 2, 0], np.int32)
    after = np.array([1, 0, 1, 0, 1, 0], np.uint8)  # 5, 3, 1 on the left
    found = [after.copy() for _ in range(2)]
    for each, dtype in zip(found, (np.int32, np.int64), strict=True):
        swap_sides(rows, each, np.ones(6, dtype), np.uint64(1))
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    ("longest", "dtype"), [(1000, np.int32), (65535, np.int32), (1 << 16, np.int64)]
)
def test_sums_of_busy_rows_get_wider_numbers(longest: int, dtype: type) -> None:
    assert gain_type(longest) == dtype
    assert longest * int(KEEPS[0]) < np.iinfo(gain_type(longest)).max


def test_a_lot_does_not_depend_on_where_counting_begins() -> None:
    whole = drawn(0, 1000, np.uint64(7), 2**31)
    assert 400 < whole.sum() < 600
    assert np.array_equal(whole[300:], drawn(300, 700, np.uint64(7), 2**31))
    assert drawn(0, 1000, np.uint64(7), 2**32).all()
    assert not drawn(0, 1000, np.uint64(7), 0).any()


@given(requests, st.lists(st.booleans(), min_size=12, max_size=12))
def test_picked_requests(asked: list[list[int]], chosen: list[bool]) -> None:
    chosen = chosen[: len(asked)]
    wanted = [request for request, kept in zip(asked, chosen, strict=True) if kept]
    assert lists(*picked(*arrays(asked), np.array(chosen, np.bool_))) == wanted


@given(requests)
def test_blocks_of_both_halves_are_those_of_the_whole(asked: list[list[int]]) -> None:
    positions = np.random.default_rng(0).permutation(ROWS).astype(np.uint32)
    held_out = np.arange(len(asked)) % 3 == 0
    found = count_blocks(*arrays(asked), held_out, positions, 4)
    for which in (0, 1):
        own = [request for at, request in enumerate(asked) if held_out[at] == bool(which)]
        blocks = sum(len({int(positions[row]) // 4 for row in request}) for request in own)
        assert found[which].tolist() == [len(own), blocks]
