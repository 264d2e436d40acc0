"""A sample of a log in files is a smaller table, as busy row by row, with requests as long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandana_kv import AccessLog
from bandana_kv.errors import InputError
from bandana_kv.placement import fanout, place
from bandana_kv.placement.distributed import InProcess, Sample, count_rows, open_log, sample, whole
from bandana_kv.placement.distributed.sample import _balanced_blocks

ROWS, LIST, PER_BLOCK, REQUESTS = 4000, 20, 10, 6000


def grouped(requests: int = REQUESTS) -> AccessLog:
    """Requests of short and long kinds, of rows from one list or several, some lists busier."""
    rng = np.random.default_rng(0)
    lists = rng.permutation(ROWS).reshape(-1, LIST)
    drawn = []
    for _ in range(requests):
        count = 1 if rng.random() < 0.5 else int(rng.integers(2, 6))
        which = np.minimum(rng.geometric(0.02, count), len(lists)) - 1
        size = int(rng.integers(1, LIST)) if count > 1 else 1
        drawn.append(np.concatenate([rng.permutation(lists[each])[:size] for each in which]))
    return AccessLog.from_requests(drawn)


LOG = grouped()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("files")
    edges = [0, 1000, 1001, 4000, REQUESTS]
    paths = [directory / f"{number}.npz" for number in range(len(edges) - 1)]
    for path, first, last in zip(paths, edges[:-1], edges[1:], strict=True):
        LOG.select(np.arange(first, last)).write(path)
    return paths


def drawn_from(files: list[Path], rate: float = 0.25, ordered: bool = False) -> Sample:
    runner = InProcess()
    with open_log(files, runner, ROWS, train=0.7) as log:
        return sample(runner, log, PER_BLOCK, rate, ordered=ordered)


def test_all_requests_are_read_in_their_order(files: list[Path]) -> None:
    with open_log(files, InProcess(), ROWS) as log:
        found = whole(log)
    np.testing.assert_array_equal(found.offsets, LOG.offsets)
    np.testing.assert_array_equal(found.ids, LOG.ids)


@pytest.mark.parametrize("ordered", [False, True])
def test_rows_of_a_sample_are_as_busy_and_its_requests_as_long(
    files: list[Path], ordered: bool
) -> None:
    found = drawn_from(files, ordered=ordered)
    assert found.rows == pytest.approx(ROWS / 4, rel=0.05)
    busy = np.bincount(LOG.ids, minlength=ROWS)
    counts = np.bincount(found.log.ids, minlength=found.rows)
    # rows keep their order and all of their lookups: a subsequence
    at = 0
    for count in counts.tolist():
        at += 1 + int(np.argmax(busy[at:] == count))
    assert at <= ROWS
    assert found.log.lookups == pytest.approx(LOG.lookups / 4, rel=0.01)
    # put together, parts are requests of the lengths that the log's have
    held_out = np.diff(found.log.offsets)[found.learned_parts :]
    lengths = np.bincount(found.request_of_part, held_out)
    lengths, were = lengths[lengths > 0], np.diff(LOG.offsets)
    for made in (lengths, found.lengths):
        for share in (25, 50, 75, 99):
            assert np.percentile(made, share) == pytest.approx(
                np.percentile(were, share), rel=0.2, abs=1
            )
    assert found.lengths.size == pytest.approx(LOG.requests / 4, rel=0.1)
    assert lengths.size == pytest.approx(0.3 * LOG.requests / 4, rel=0.15)
    assert found.learned_parts == pytest.approx(0.7 * found.log.requests, rel=0.05)
    assert found.left_share == found.log.requests / LOG.requests


def test_what_is_read_together_is_read_together_in_the_sample(files: list[Path]) -> None:
    found = drawn_from(files)
    of_all, of_sample = (
        fanout(log, place(log, rows, PER_BLOCK))
        / fanout(log, place(None, rows, PER_BLOCK, "shuffled"))
        for log, rows in ((LOG, ROWS), (found.log, found.rows))
    )
    assert of_sample == pytest.approx(of_all, rel=0.1)


def test_the_first_requests_learn_where_they_are_in_order_of_time(tmp_path: Path) -> None:
    first = np.random.default_rng(1).integers(0, ROWS // 2, (700, 8))
    later = np.random.default_rng(2).integers(ROWS // 2, ROWS, (300, 8))
    for number, part in enumerate((first, later)):
        AccessLog.from_requests(part).write(tmp_path / f"{number}.npz")
    runner = InProcess()
    with open_log([tmp_path], runner, ROWS, train=0.7) as log:
        found = sample(runner, log, PER_BLOCK, 0.5, ordered=True)
    cut = found.log.offsets[found.learned_parts]
    learned, judged = found.log.ids[:cut], found.log.ids[cut:]
    assert not np.isin(judged, learned).any()
    assert found.unseen_in_file_order_share == 1.0


def test_a_sample_is_the_same_again(files: list[Path]) -> None:
    one, again = drawn_from(files), drawn_from(files)
    np.testing.assert_array_equal(one.log.ids, again.log.ids)
    np.testing.assert_array_equal(one.log.offsets, again.log.offsets)
    np.testing.assert_array_equal(one.request_of_part, again.request_of_part)


def test_what_was_asked_of_the_log_before_changes_no_sample(files: list[Path]) -> None:
    runner = InProcess()
    with open_log(files, runner, ROWS, train=0.7) as log:
        count_rows(runner, log)  # keeps the requests to learn from, which are others
        found = sample(runner, log, PER_BLOCK, 0.25, ordered=True)
    expected = drawn_from(files, ordered=True)
    np.testing.assert_array_equal(found.log.ids, expected.log.ids)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, float("nan")])
def test_a_rate_out_of_range_is_refused(files: list[Path], rate: float) -> None:
    with pytest.raises(InputError, match=r"rate .* is not above 0 and below 1"):
        drawn_from(files, rate)


def test_a_sample_of_nothing_is_refused(tmp_path: Path) -> None:
    AccessLog.from_requests([[0], [1]]).write(tmp_path / "log.npz")
    runner = InProcess()
    with (
        open_log([tmp_path / "log.npz"], runner, ROWS, train=0.7) as log,
        pytest.raises(InputError, match="draw a larger one"),
    ):
        sample(runner, log, PER_BLOCK, 0.01)


@settings(max_examples=60)
@given(
    busy=st.lists(st.integers(0, 10_000), min_size=1, max_size=300),
    rate=st.floats(0.01, 0.99),
)
def test_the_blocks_drawn_have_their_share_of_the_lookups(busy: list[int], rate: float) -> None:
    lookups = np.array(busy, np.int64)
    found = _balanced_blocks(lookups, rate, 0)
    assert found.size == max(1, round(rate * lookups.size))
    assert np.unique(found).size == found.size
    # never further off than the busiest block there is
    assert abs(lookups[found].sum() - rate * lookups.sum()) <= lookups.max()
