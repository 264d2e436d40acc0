"""Requests that several threads share: the same rows, the first error, and never without an end."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import IdError, InputError, ThreadError
from bandana_kv.serve import at_once as at_once_module
from bandana_kv.serve.at_once import at_once, shared_out

ROWS, DIM, TABLES = 500, 24, 5


def test_shares_are_even_and_complete() -> None:
    sizes = [70_000, 10_000, 40_000, 30_000, 0]
    shares = shared_out(sizes, 2)
    assert sorted(part for share in shares for part in share) == [0, 1, 2, 3, 4]
    rows = [sum(sizes[part] for part in share) for share in shares]
    assert max(rows) - min(rows) <= 10_000


def test_small_requests_are_not_shared() -> None:
    assert shared_out([100] * 26, 8) == [list(range(26))]
    assert len(shared_out([20_000] * 26, 1)) == 1
    assert len(shared_out([20_000] * 3, 8)) == 3
    assert shared_out([], 2) == [[]]


def test_the_first_error_is_raised_when_all_are_over() -> None:
    done = []

    def fails(number: int) -> None:
        done.append(number)
        raise ValueError(str(number))

    with pytest.raises(ValueError, match="1"):
        at_once([lambda: done.append(0), lambda: fails(1), lambda: fails(2)])
    assert sorted(done) == [0, 1, 2]


def test_what_no_thread_can_be_started_for_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> threading.Thread:
        raise ThreadError("none left")

    monkeypatch.setattr(at_once_module, "start", none)
    where: list[threading.Thread] = []
    at_once([lambda: where.append(threading.current_thread())] * 3)
    assert where == [threading.current_thread()] * 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("shared") / "store"
    tables = {f"t{k}": rng.standard_normal((ROWS, DIM), np.float32) for k in range(TABLES)}
    bandana_kv.load(path, tables, adapter="blockfile", placement="identity")
    return path


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("cache_rows", [0, 60, TABLES * ROWS])
def test_threads_change_nothing_of_an_answer(store: Path, mode: str, cache_rows: int) -> None:
    rng = np.random.default_rng(4)
    asked = {}
    for k in range(TABLES):
        lengths = rng.integers(0, 80, 400)
        ids = rng.integers(0, ROWS, lengths.sum())
        asked[f"t{k}"] = ids, np.concatenate([[0], np.cumsum(lengths)])
    assert sum(len(ids) for ids, _ in asked.values()) > 4 * 16384
    with bandana_kv.open(store, cache_bytes=cache_rows * DIM * 4) as opened:
        how = {"mode": mode, "include_last_offset": True}
        one, four = (opened.embedding_bag(asked, threads=n, **how) for n in (1, 4))  # type: ignore[call-overload]
        assert opened.stats()["t0"]["lookups"] > 0
    for name in asked:
        assert np.array_equal(one[name], four[name])


def test_a_wrong_id_of_one_thread_is_named(store: Path) -> None:
    ids = np.zeros((40, 1000), np.int64)
    wrong = ids.copy()
    wrong[-1, -1] = ROWS
    with bandana_kv.open(store, cache_bytes=0) as opened:
        asked = {"t0": (ids, None), "t1": (wrong, None)}
        with pytest.raises(IdError, match=r"'t1'.*500"):
            opened.embedding_bag(asked, mode="sum", threads=2)
        assert opened.embedding_bag({"t1": (ids, None)}, threads=2)["t1"].shape == (40, DIM)
        for threads in (0, 1.5, True):
            with pytest.raises(InputError, match="threads"):
                opened.embedding_bag(asked, threads=threads)  # type: ignore[call-overload]
