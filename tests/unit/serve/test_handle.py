"""Ids of any shape, a store as a container of tables, and stores that go to another process."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import bandana_kv
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.cache.policy import Policy
from bandana_kv.errors import InputError, TableNotFoundError

ROWS = np.random.default_rng(0).random((500, 8), np.float32)
ITEMS = np.arange(300, dtype=np.int16).reshape(100, 3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("handle") / "store"
    bandana_kv.load(made, {"user": ROWS, "item": ITEMS})
    return made


@pytest.fixture
def store(path: Path) -> Iterator[bandana_kv.EmbeddingStore]:
    with bandana_kv.open(path, 10_000) as opened:
        yield opened


@settings(max_examples=60, deadline=None)
@given(shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5), data=st.data())
def test_ids_of_any_shape_give_rows_of_that_shape(
    path: Path, shape: tuple[int, ...], data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from([np.int64, np.int32, np.uint8, ">i4"]))
    ids = data.draw(arrays.arrays(dtype, shape, elements=st.integers(0, 99)))
    with bandana_kv.open(path, 10_000) as store:
        assert np.array_equal(store.multi_get("user", ids), ROWS[ids])
        assert store.multi_get("user", ids).shape == (*shape, 8)
        both = store.multi_get({"user": ids, "item": ids})
        assert np.array_equal(both["user"], ROWS[ids])
        assert np.array_equal(both["item"], ITEMS[ids])
        out = np.zeros((*shape, 8), np.float32)
        assert store.multi_get("user", ids, out=out) is out
        assert np.array_equal(out, ROWS[ids])
        later = asyncio.run(store.multi_get_async("user", ids, out=np.empty_like(out)))
        assert np.array_equal(later, ROWS[ids])
        store.prefetch("user", ids)


def test_out_is_of_the_shape_of_the_ids(store: bandana_kv.EmbeddingStore) -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3, 8\)"):
        store.multi_get("user", np.zeros((2, 3), int), out=np.empty((6, 8), np.float32))
    with pytest.raises(InputError, match="one id"):
        store.get("user", [1, 2])  # type: ignore[arg-type]


def test_a_store_is_a_container_of_tables(store: bandana_kv.EmbeddingStore, path: Path) -> None:
    assert "user" in store
    assert "usr" not in store
    assert list(store) == ["user", "item"]
    assert len(store) == 2
    item = store["item"]
    assert (item.shape, item.dtype, len(item)) == ((100, 3), np.int16, 100)
    assert np.array_equal(item.multi_get([[1, 2]]), ITEMS[[[1, 2]]])
    assert np.array_equal(item.get(7), ITEMS[7])
    assert repr(item) == "<table 'item': 100 rows of 3 int16>"
    with pytest.raises(TableNotFoundError, match=r"'usr'.*'user', 'item'"):
        store["usr"]
    said = repr(store)
    for each in (str(path), "version 1", "user 500 x 8 float32", "item 100 x 3 int16", "cache"):
        assert each in said
    store.close()
    assert "(closed)" in repr(store)


def _look_up(store: bandana_kv.EmbeddingStore, ids: list[int]) -> tuple[bytes, str, int]:
    with store:
        rows = store.multi_get("user", ids)
        return rows.tobytes(), store.policy("user").eviction, store.capacity_rows("user")


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_store_goes_to_another_process(path: Path, method: str) -> None:
    with bandana_kv.open(path, 20_000, policy=Policy("sieve"), deadline_ms=5000) as store:
        with multiprocessing.get_context(method).Pool(1) as pool:
            rows, eviction, capacity = pool.apply(_look_up, (store, [3, 499]))
        assert rows == ROWS[[3, 499]].tobytes()
        assert (eviction, capacity) == ("sieve", store.capacity_rows("user"))


def test_a_store_that_is_unpickled_is_one_of_its_own(path: Path) -> None:
    with bandana_kv.open(path) as store:
        sent = pickle.dumps(store)
    with pickle.loads(sent) as again:  # also where that it came from is closed
        assert np.array_equal(again.multi_get("user", [1]), ROWS[[1]])


def test_what_cannot_be_pickled_says_so(tmp_path: Path) -> None:
    engine = MemoryAdapter()
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter=engine)
    with (
        bandana_kv.open(tmp_path, adapter=engine) as store,
        pytest.raises(InputError, match="handles of this process"),
    ):
        pickle.dumps(store)
