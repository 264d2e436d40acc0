"""Whatever the requests, they come back from every format."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bandana_kv.logs.access_log import AccessLog

IDS = st.integers(0, 2**31 - 1)
REQUESTS = st.lists(st.lists(IDS, max_size=5), max_size=8).filter(any)
KEYS = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1, max_size=4
).filter(lambda key: key.strip(" "))


def requests_of(log: AccessLog) -> list[list[int]]:
    return [log.request(number).tolist() for number in range(log.requests)]


@given(REQUESTS, st.sampled_from([".npz", ".parquet"]), st.sampled_from(["i4", "u4", "i8"]))
def test_written_and_read(requests: list[list[int]], suffix: str, dtype: str) -> None:
    log = AccessLog.from_requests(requests)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"log{suffix}"
        AccessLog(log.offsets, log.ids.astype(dtype)).write(path)
        assert requests_of(AccessLog.read(path)) == requests


@given(REQUESTS, st.sampled_from([" ", ",", "\t", " , "]), st.sampled_from(["\n", "\r\n"]))
def test_text(requests: list[list[int]], separator: str, end: str) -> None:
    text = end.join(separator.join(map(str, request)) for request in requests)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.txt"
        path.write_bytes(text.encode())
        assert requests_of(AccessLog.read(path)) == [request for request in requests if request]


@given(
    st.lists(st.tuples(KEYS, IDS, st.integers(-5, 5), KEYS), min_size=1, max_size=20),
    st.booleans(),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_csv_groups_as_a_dictionary_does(
    rows: list[tuple[str, int, int, str]], timed: bool, quoting: int
) -> None:
    # a quote inside a key is left doubled, which names the same requests
    text = io.StringIO()
    writer = csv.writer(text, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(["request", "id", "time" if timed else "other", "note"])
    writer.writerows(rows)
    expected: dict[str, list[int]] = {}
    for key, lookup, _, _ in sorted(rows, key=lambda row: row[2]) if timed else rows:
        expected.setdefault(key, []).append(lookup)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.csv"
        path.write_bytes(text.getvalue().encode())
        assert requests_of(AccessLog.read(path, missing=())) == list(expected.values())


@given(REQUESTS, st.floats(0, 1), st.integers(0, 5), st.booleans())
def test_split_keeps_every_request_once(
    requests: list[list[int]], train: float, seed: int, ordered: bool
) -> None:
    log = AccessLog.from_requests(requests)
    learn, rest = log.split(train, ordered=ordered, seed=seed)
    learn.validate()
    rest.validate()
    assert learn.requests == int(train * log.requests)
    both = requests_of(learn) + requests_of(rest)
    order = np.random.default_rng(seed).permutation(log.requests)
    assert both == ([*requests] if ordered else [requests[k] for k in order])
