"""The knee of a curve, the number of jobs, and the block size, of numbers that are given."""

from __future__ import annotations

import numpy as np
import pytest

from bandana_kv import AccessLog
from bandana_kv.device import Cell, choose
from bandana_kv.errors import InputError
from bandana_kv.placement import fanout, place
from bandana_kv.progress import Progress


def cells(
    rates: list[float], p99s: list[float] | None = None, block_bytes: int = 4096, jobs: int = 1
) -> tuple[Cell, ...]:
    return tuple(
        Cell(block_bytes, 1 << step, jobs, rate, 10.0, 10.0, p99)
        for step, (rate, p99) in enumerate(zip(rates, p99s or [10.0] * len(rates), strict=True))
    )


@pytest.mark.parametrize(
    ("rates", "p99s", "expected"),
    [
        # 96 is within 5 % of 100, 94 is not
        ([50, 94, 96, 100], [10, 20, 40, 80], (4, True)),
        # what breaks the budget neither wins nor says what is best
        ([50, 80, 81, 200], [10, 20, 40, 101], (2, True)),
        ([50, 80, 120, 200], [10, 20, 100, 101], (4, True)),
        # p99 need not grow with depth
        ([50, 80, 120, 200], [10, 200, 20, 300], (4, True)),
        ([50, 80, 120, 200], [130, 120, 140, 150], (2, False)),
    ],
)
def test_the_knee(rates: list[float], p99s: list[float], expected: tuple[int, bool]) -> None:
    cell, met = choose.knee(cells(rates, p99s), p99_budget_us=100.0)
    assert (cell.depth, met) == expected


@pytest.mark.parametrize(("two", "expected"), [(104.0, 1), (106.0, 2), (50.0, 1)])
def test_a_second_job_must_gain_more_than_5_percent(two: float, expected: int) -> None:
    measured = cells([90, 100]) + cells([80, two], jobs=2) + cells([1, 1000], block_bytes=512)
    assert choose.best_jobs(measured, 4096) == expected


@pytest.mark.parametrize(
    ("small", "expected"),
    [({512: 120, 1024: 96}, 512), ({512: 94, 1024: 96}, 1024), ({512: 90, 1024: 90}, 4096)],
)
def test_without_a_log_the_smallest_size_as_fast_as_4_kib(
    small: dict[int, float], expected: int
) -> None:
    # 8 KiB is faster by mistake, and does not matter
    rates = small | {4096: 100, 8192: 300}
    # at depth 1 all are slow, so that 4 KiB is compared at its knee, depth 2
    measured = tuple(c for size, rate in rates.items() for c in cells([10, rate], None, size))
    sizes = choose.at_knees(measured, list(rates), 1, 1000.0, {})
    assert choose.best_size(measured, sizes, 1).block_bytes == expected
    assert choose.contenders(measured, list(rates), 1, 1000.0, {}) == [512, 1024, 4096]


def test_sizes_are_compared_at_the_depth_of_4_kib_and_not_at_their_own() -> None:
    # 512 alone would stop at depth 1, where its 96 of 100 would still be within 5 % of 98
    measured = cells([96, 90, 100], [10, 10, 2000], 512) + cells([60, 98, 98], None, 4096)
    sizes = choose.at_knees(measured, [512, 4096], 1, 1000.0, {})
    assert [size.depth for size in sizes] == [1, 2]
    assert choose.best_size(measured, sizes, 1).block_bytes == 4096


@pytest.mark.parametrize(
    ("useful", "expected"),
    [
        ((10, 20, 100, 200), 8192),
        ((10, 20, 100, 112), 8192),
        ((10, 20, 100, 110), 4096),
        ((10, 110, 100, 50), 4096),  # a page is preferred even to what is smaller
        ((10, 112, 100, 50), 2048),
        ((91, 100, 50, 50), 1024),  # the smallest, where a page is no match
    ],
)
def test_with_a_log_the_most_useful_bytes_win(useful: tuple[float, ...], expected: int) -> None:
    with_log = [1024, 2048, 4096, 8192]
    fits = {size: choose.Fit(9, 5.0, u) for size, u in zip(with_log, useful, strict=True)}
    measured = tuple(c for size in [512, *with_log] for c in cells([10], None, size))
    sizes = choose.at_knees(measured, [512, *with_log], 1, 1000.0, fits)
    best = choose.best_size(measured, sizes, 1)
    assert best.block_bytes == expected
    assert best.useful_bytes_per_second == 10 * fits[expected].useful_bytes_per_block
    assert sizes[0].useful_bytes_per_second is None


def test_only_sizes_that_may_win_are_measured_again() -> None:
    measured = cells([10], None, 512) + cells([10]) + cells([10], None, 8192)
    fits = {4096: choose.Fit(31, 5.0, 75.0), 8192: choose.Fit(63, 4.0, 100.0)}
    assert choose.contenders(measured, [512, 4096, 8192], 1, 1000.0, fits) == [8192]


@pytest.mark.parametrize(
    ("block_bytes", "row_bytes", "rows"),
    [
        (4096, 128, 31),
        (512, 128, 3),
        (512, 240, 2),
        (512, 241, 0),  # a single row in less than a page
        (4096, 4064, 1),
        (4096, 4065, 0),
        (131072, 1, 32767),
    ],
)
def test_rows_that_fit(block_bytes: int, row_bytes: int, rows: int) -> None:
    assert choose.rows_that_fit(block_bytes, row_bytes) == rows


@pytest.fixture
def log(rng: np.random.Generator) -> AccessLog:
    groups = rng.permutation(640).reshape(-1, 10)
    requests = [rng.permutation(groups[rng.integers(64)])[:6] for _ in range(400)]
    # the repeats are one row each, wanted once
    return AccessLog.from_requests([np.concatenate([ids, ids[:2]]) for ids in requests])


def test_a_log_is_learnt_on_one_part_and_measured_on_the_other(log: AccessLog) -> None:
    fits = choose.fits_of_log(
        log, 128, [512, 2048, 4096], ordered=False, max_pins=10_000, progress=Progress()
    )
    learn, test = log.split(train=0.7, seed=0)
    assert list(fits) == [512, 2048, 4096]
    for size, rows in ((512, 3), (2048, 15), (4096, 31)):
        blocks = fanout(test, place(learn, log.rows, rows, "shp", quality="fast"))
        assert fits[size] == choose.Fit(rows, blocks, 6 * 128 / blocks)


def test_an_ordered_log_is_learnt_from_its_start(log: AccessLog) -> None:
    (fit,) = choose.fits_of_log(
        log, 128, [4096], ordered=True, max_pins=10_000, progress=Progress()
    ).values()
    learn, test = log.split(train=0.7, ordered=True)
    placed = place(learn, log.rows, 31, "shp", quality="fast")
    assert fit.blocks_per_request == fanout(test, placed)


@pytest.mark.parametrize(
    ("requests", "row_bytes", "said"),
    [
        ([[1, 2]], 128, "too few requests"),
        ([[1, 2], [3, 4], [5, 6], [7, 8]], 5000, "no block size holds a row of 5000 bytes"),
    ],
)
def test_logs_that_say_nothing(requests: list[list[int]], row_bytes: int, said: str) -> None:
    log = AccessLog.from_requests(requests)
    with pytest.raises(InputError, match=said):
        choose.fits_of_log(
            log, row_bytes, [512, 4096], ordered=False, max_pins=99, progress=Progress()
        )
