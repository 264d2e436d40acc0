"""Sharing DRAM: the least sum of reads there is on convex curves, and never beyond the budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandana_kv.cache.allocation import Point, hull
from bandana_kv.plan import allocate

numbers = st.integers(0, 40)
points = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8)


@st.composite
def convex(draw: st.DrawFn) -> list[Point]:
    """Draw a curve from no bytes on that falls, by less and less a byte."""
    falls = sorted(draw(st.lists(st.integers(0, 9), max_size=4)), reverse=True)
    widths = [draw(st.integers(1, 5)) for _ in falls]
    at, reads = 0, 200
    curve: list[Point] = [(0, 200)]
    for fall, width in zip(falls, widths, strict=True):
        at, reads = at + width, reads - fall * width
        curve.append((at, reads))
    return curve


def reads_at(curve: list[Point], share: float) -> float:
    return float(np.interp(share, *zip(*curve, strict=True)))


@given(st.lists(convex(), min_size=1, max_size=3), st.integers(0, 25))
def test_on_convex_curves_no_other_split_reads_less(curves: list[list[Point]], budget: int) -> None:
    shares = allocate(dict(zip("abc", curves, strict=False)), budget)
    splits = itertools.product(range(budget + 1), repeat=len(curves))
    least = min(
        sum(reads_at(curve, share) for curve, share in zip(curves, split, strict=True))
        for split in splits
        if sum(split) <= budget
    )
    total = sum(
        reads_at(curve, share) for curve, share in zip(curves, shares.values(), strict=True)
    )
    assert total == pytest.approx(least, abs=1e-6)


@given(st.dictionaries(st.sampled_from("abcde"), points), st.integers(0, 100))
def test_any_curves_stay_within_the_budget(curves: dict[str, list[Point]], budget: int) -> None:
    shares = allocate(curves, budget)
    assert shares.keys() == curves.keys()
    assert all(share >= 0 for share in shares.values())
    assert sum(shares.values()) <= budget


@given(points)
def test_a_hull_is_convex_falling_and_below_all_points(given_points: list[Point]) -> None:
    corners = hull(given_points)
    assert set(corners) <= set(given_points)
    assert corners[0][0] == min(point[0] for point in given_points)
    assert corners[-1][1] == min(point[1] for point in given_points)
    steps = np.diff(np.array(corners, float), axis=0)
    assert (steps[:, 0] > 0).all()
    slopes = steps[:, 1] / steps[:, 0]
    assert (slopes < 0).all()
    assert (np.diff(slopes) > 0).all()
    for share, reads in given_points:
        assert reads_at(corners, share) <= reads + 1e-9


def test_a_cliff_behind_a_plateau_is_worth_its_mean_slope() -> None:
    # LRU under a scan: nothing is saved until all fits. The hull buys it whole or in part.
    curves = {"scan": [(0, 100), (50, 100), (100, 0)], "steep": [(0, 100), (20, 50), (40, 40)]}
    assert allocate(curves, 120) == {"scan": 100, "steep": 20}


def test_what_saves_nothing_gets_nothing() -> None:
    curves = {"used": [(0, 10), (10, 1)], "unused": [(0, 0), (10, 0)], "flat": [(0, 5), (10, 5)]}
    assert allocate(curves, 1000) == {"used": 10, "unused": 0, "flat": 0}
    assert allocate({}, 10) == {}
