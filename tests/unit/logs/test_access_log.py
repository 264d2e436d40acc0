"""AccessLog in memory: construction, views, split, select, validate."""

from __future__ import annotations

import numpy as np
import pytest

from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog

REQUESTS = [[3, 1, 4], [], [1, 5], [9, 2, 6, 5, 3]]


@pytest.fixture
def log() -> AccessLog:
    return AccessLog.from_requests(REQUESTS)


def requests_of(log: AccessLog) -> list[list[int]]:
    return [log.request(number).tolist() for number in range(log.requests)]


def test_from_requests(log: AccessLog) -> None:
    assert requests_of(log) == REQUESTS
    assert (log.requests, len(log), log.lookups, log.rows) == (4, 4, 10, 10)
    assert log.offsets.dtype == np.int64
    assert log.ids.dtype == np.int32
    assert repr(log) == "<AccessLog of 4 requests, 10 lookups>"


def test_from_no_requests() -> None:
    log = AccessLog.from_requests([])
    log.validate()
    assert (log.requests, log.lookups, log.rows) == (0, 0, 0)


def test_from_requests_takes_an_iterator_of_arrays() -> None:
    log = AccessLog.from_requests(np.arange(n, dtype=np.uint16) for n in range(4))
    assert requests_of(log) == [[], [0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([[1], [2, -3]], "request 1 looks up id -3"),
        ([[1], [2**31]], "request 1 looks up id 2147483648"),
        ([[1], [2**64]], "request 1 is not a sequence of ids"),
        ([[1.5]], "request 0 is not a sequence of ids"),
        ([["a"]], "request 0 is not a sequence of ids"),
        ([7], "request 0 is not a sequence of ids"),
        ([[True]], "request 0 is not a sequence of ids"),
    ],
)
def test_from_requests_refuses(requests: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AccessLog.from_requests(requests)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("int8", "int32"),
        ("uint16", "int32"),
        ("int32", "int32"),
        (">i4", "int32"),
        ("uint32", "uint32"),
        ("int64", "int64"),
        (">i8", "int64"),
        ("uint64", "int64"),
    ],
)
def test_dtypes(given: str, kept: str) -> None:
    log = AccessLog(np.array([0, 2, 3]), np.array([5, 0, 7], given))
    assert log.ids.dtype == np.dtype(kept)
    log.validate(rows=8)
    assert requests_of(log.select([1, 0])) == [[7], [5, 0]]


def test_arrays_are_shared_and_read_only() -> None:
    offsets, ids = np.array([0, 2]), np.array([5, 0], np.int32)
    log = AccessLog(offsets, ids)
    assert np.shares_memory(log.offsets, offsets)
    assert np.shares_memory(log.ids, ids)
    assert ids.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        log.ids[0] = 1


@pytest.mark.parametrize(
    ("offsets", "ids", "message"),
    [
        ([0, 1], [0.5], "ids must be integers, not float64"),
        ([0, 1], [None], "ids must be integers, not object"),
        ([0, 1], [[1]], "ids must have one dimension, it has 2"),
        ([0.0, 1.0], [1], "offsets must be integers, not float64"),
        (np.array([], np.int64), [], "offsets is empty"),
        ([0, 1], np.array([2**63], np.uint64), "id 9223372036854775808 is too large"),
    ],
)
def test_refuses_other_than_integers(offsets: object, ids: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AccessLog(offsets, ids)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offsets", "ids", "rows", "message"),
    [
        ([1, 2], [1, 2], None, "offsets must begin with 0, they begin with 1"),
        ([0, 2, 1, 3], [1, 2, 3], None, "request 1: offsets decrease, from 2 to 1"),
        ([0, 2], [1, 2, 3], None, "the last offset is 2, but there are 3 ids"),
        ([0, 1, 3], [1, 2, -3], None, "request 1 looks up id -3; ids are row numbers"),
        ([0, 0, 0, 1], [2**31], None, "request 2 looks up id 2147483648; 2147483647 is the larg"),
        ([0, 1, 3], [1, 2, 3], 3, "request 1 looks up id 3, but the table has 3 rows"),
        ([0, 1, 3], [1, 2, 2**40], 3, "request 1 looks up id 1099511627776; 2147483647 is the"),
    ],
)
def test_validate_names_what_is_wrong(
    offsets: list[int], ids: list[int], rows: int | None, message: str
) -> None:
    log = AccessLog(np.array(offsets), np.array(ids), source="somewhere")
    with pytest.raises(InputError, match=f"somewhere: {message}"):
        log.validate(rows)


def test_validate_accepts(log: AccessLog) -> None:
    log.validate()
    log.validate(rows=10)
    AccessLog(np.array([0, 1]), np.array([2**31 - 1])).validate()


@pytest.mark.parametrize("number", [-1, 4])
def test_no_such_request(log: AccessLog, number: int) -> None:
    with pytest.raises(InputError, match=f"no request {number}; there are 4"):
        log.request(number)
    with pytest.raises(InputError, match=f"no request {number}; there are 4"):
        log.select([0, number])


def test_select(log: AccessLog) -> None:
    assert requests_of(log.select([3, 0, 3, 1])) == [REQUESTS[k] for k in (3, 0, 3, 1)]
    assert log.select([]).requests == 0
    assert log.select(np.array([2], np.uint8)).ids.dtype == log.ids.dtype
    with pytest.raises(InputError, match="whole numbers"):
        log.select([0.5])  # type: ignore[list-item]


def test_shuffled_split_is_the_seeded_permutation(rng: np.random.Generator) -> None:
    log = AccessLog.from_requests(rng.integers(0, 50, rng.integers(0, 5)) for _ in range(101))
    order = np.random.default_rng(7).permutation(101)
    train, test = log.split(0.7, seed=7)
    assert requests_of(train) == [log.request(number).tolist() for number in order[:70]]
    assert requests_of(test) == [log.request(number).tolist() for number in order[70:]]


def test_ordered_split_shares_the_ids(log: AccessLog) -> None:
    train, test = log.split(0.5, ordered=True)
    assert requests_of(train) == REQUESTS[:2]
    assert requests_of(test) == REQUESTS[2:]
    assert np.shares_memory(train.ids, log.ids)
    assert np.shares_memory(test.ids, log.ids)
    test.validate()


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(("train", "requests"), [(0.0, 0), (1.0, 4)])
def test_split_may_leave_one_part_empty(
    log: AccessLog, train: float, requests: int, ordered: bool
) -> None:
    learn, rest = log.split(train, ordered=ordered)
    assert (learn.requests, rest.requests) == (requests, 4 - requests)
    learn.validate()
    rest.validate()


@pytest.mark.parametrize("train", [-0.1, 1.1, float("nan")])
def test_split_share(log: AccessLog, train: float) -> None:
    with pytest.raises(InputError, match="share of the requests"):
        log.split(train)
