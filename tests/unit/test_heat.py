"""Heat keeps the order of counts, and thresholds mean what they say."""

import numpy as np
import pytest

from bandana_kv.heat import count_lookups, heat_of_counts, least_heat


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
