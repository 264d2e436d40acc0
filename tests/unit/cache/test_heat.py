"""Heat keeps the order of counts, and thresholds mean what they say."""

import numpy as np
import pytest

from bandana_kv.cache.heat import (
    count_lookups,
    counts_of_heat,
    heat_by_position,
    heat_of_counts,
    least_heat,
)


def test_heat_never_falls_with_the_count() -> None:
    heat = heat_of_counts(np.arange(100_000)).astype(int)
    assert np.all(np.diff(heat) >= 0)
    assert heat[0] == 0
    assert heat[-1] == 255


@pytest.mark.parametrize("threshold", [0, 1, 7, 100, 127])
def test_a_threshold_is_exact_where_counts_are(threshold: int) -> None:
    counts = np.arange(1000)
    admitted = heat_of_counts(counts) >= least_heat(threshold)
    assert np.array_equal(admitted, counts > threshold)


@pytest.mark.parametrize("threshold", [128, 200, 1000, 20_000])
def test_a_large_threshold_is_off_by_one_level_at_most(threshold: int) -> None:
    counts = np.arange(100_000)
    admitted = counts[heat_of_counts(counts) >= least_heat(threshold)]
    assert threshold < admitted.min() <= threshold * 2 ** (1 / 16) + 1


def test_lookups_are_counted() -> None:
    assert count_lookups(np.array([3, 0, 3], np.int32), 5).tolist() == [1, 0, 0, 2, 0]


def test_heat_by_position_is_that_of_the_row_which_lies_there() -> None:
    position_of_id = np.array([2, 0, 1, 3], np.uint32)
    heat = heat_by_position(np.array([0, 0, 0, 2, 1, 2]), position_of_id)
    assert heat.tolist() == [1, 2, 3, 0]


def test_the_count_behind_a_heat_is_the_least_that_has_it() -> None:
    heat = np.arange(256, dtype=np.uint8)
    counts = counts_of_heat(heat)
    assert np.array_equal(counts[:129], np.arange(129))
    assert np.array_equal(heat_of_counts(np.ceil(counts).astype(np.int64)), heat)
    fewer = np.maximum(np.ceil(counts - 1), 0).astype(np.int64)
    assert np.all(heat_of_counts(fewer[1:]) < heat[1:])
