"""Switching a running store to another version: what goes over, what is warm, what fails."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.disk import manifest
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    BlockCorruptError,
    FormatError,
    InputError,
    TableNotFoundError,
)
from bandana_kv.serve import opener

ROWS = np.random.default_rng(0).random((3000, 32), np.float32)
EVERY = np.arange(3000)
PATIENCE_S = 20.0
LRU = Policy("lru", Admission("none"))


def load(path: Path, adapter: str | MemoryAdapter = "memory", **tables: np.ndarray) -> int:
    return bandana_kv.load(path, tables, adapter=adapter, placement="shuffled", policy=LRU)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    load(tmp_path / "s", user=ROWS, item=-ROWS)
    return tmp_path / "s"


def wait_for(condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < PATIENCE_S
        time.sleep(0.001)


def test_refresh_serves_the_current_version_and_says_which(path: Path) -> None:
    with bandana_kv.open(path) as store:
        assert store.refresh() == store.version == 1
        load(path, user=ROWS + 1)
        assert store.version == 1
        assert np.array_equal(store.multi_get("user", EVERY), ROWS)
        assert store.refresh() == store.version == 2
        assert np.array_equal(store.multi_get("user", EVERY), ROWS + 1)
        assert np.array_equal(store.multi_get("item", EVERY), -ROWS)
        store.check()
    with pytest.raises(InputError, match="closed"):
        store.refresh()


def test_tables_that_stay_keep_cache_counters_and_engine(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=200_000) as store:
        store.multi_get("item", EVERY[:100])
        store.multi_get("user", EVERY[:100])
        item, counts = store._tables["item"], store.stats()
        load(path, user=ROWS + 1)
        store.refresh()
        assert store._tables["item"] is item
        assert store.stats()["item"] == counts["item"]
        assert set(store.stats()["user"].values()) == {0}
        assert store.cache_bytes <= 200_000
        assert np.array_equal(store.multi_get("item", EVERY), -ROWS)
        store.check()


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb", "blockfile"])
def test_an_engine_closes_with_the_last_version_that_uses_it(adapter: str, tmp_path: Path) -> None:
    load(tmp_path / "s", adapter, user=ROWS, item=-ROWS)
    store = bandana_kv.open(tmp_path / "s", cache_bytes=100_000)
    first = store._tables["user"].stored.adapter
    load(tmp_path / "s", adapter, user=ROWS + 1)
    store.refresh()
    second = store._tables["user"].stored.adapter
    assert np.array_equal(store.multi_get("item", EVERY), -ROWS)
    load(tmp_path / "s", adapter, item=ROWS + 2)
    store.refresh()
    with pytest.raises(AdapterError, match="closed"):
        first.get(1)
    assert np.array_equal(store.multi_get("user", EVERY), ROWS + 1)
    store.close()
    with pytest.raises(AdapterError, match="closed"):
        second.get(1)


def test_tables_that_come_get_their_share_and_those_that_go_are_gone(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=300_000) as store:
        load(path, other=ROWS * 2)
        store.refresh()
        assert store.tables == ("user", "item", "other")
        assert min(map(store.capacity_rows, store.tables)) > 500
        assert store.cache_bytes <= 300_000
        assert np.array_equal(store.multi_get("other", EVERY), ROWS * 2)
        bandana_kv.rollback(path)
        assert store.refresh() == 1
        assert store.tables == ("user", "item")
        with pytest.raises(TableNotFoundError):
            store.get("other", 1)


class Slow(MemoryAdapter):
    """Holds reads until its gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = 0

    def _read(self, keys: np.ndarray, out: np.ndarray) -> None:
        self.waiting += 1
        assert self.gate.wait(PATIENCE_S)
        super()._read(keys, out)


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    adapter = Slow()
    load(tmp_path / "held", adapter, user=ROWS, item=ROWS)
    return adapter


def test_a_call_inside_finishes_on_its_version_whatever_it_asks_next(
    slow: Slow, tmp_path: Path
) -> None:
    path = tmp_path / "held"
    with bandana_kv.open(path, adapter=slow) as store, ThreadPoolExecutor(1) as pool:
        load(path, slow, user=ROWS + 1, item=ROWS + 1)
        old, slow.waiting = store._current.serving, 0
        slow.gate.clear()
        asked = pool.submit(store.multi_get, {"user": [1, 2], "item": [3, 4]})
        wait_for(lambda: slow.waiting > 0)
        assert store.refresh(warm_seconds=0) == 2
        assert not old.closed.is_set()
        slow.gate.set()
        rows = asked.result(PATIENCE_S)
        assert np.array_equal(rows["user"], ROWS[[1, 2]])
        assert np.array_equal(rows["item"], ROWS[[3, 4]])
        assert old.closed.is_set()
        assert np.array_equal(store.multi_get("item", [3, 4]), ROWS[[3, 4]] + 1)


def test_closing_waits_for_calls_inside_and_for_reads_ahead(slow: Slow, tmp_path: Path) -> None:
    store = bandana_kv.open(tmp_path / "held", adapter=slow)
    with ThreadPoolExecutor(2) as pool:
        slow.waiting = 0
        slow.gate.clear()
        store.prefetch("user", [2000])
        asked = pool.submit(store.multi_get, "item", [1])
        wait_for(lambda: slow.waiting == 2)
        closing = pool.submit(store.close)
        wait_for(store._closing.is_set)
        with pytest.raises(InputError, match="closed"):
            store.get("user", 1)
        assert not closing.done()
        slow.gate.set()
        assert np.array_equal(asked.result(PATIENCE_S), ROWS[[1]])
        closing.result(PATIENCE_S)
    assert store._current.serving.closed.is_set()


def test_a_read_ahead_outlives_the_switch_and_lets_the_version_go(
    slow: Slow, tmp_path: Path
) -> None:
    with bandana_kv.open(tmp_path / "held", adapter=slow) as store:
        old, slow.waiting = store._current.serving, 0
        slow.gate.clear()
        store.prefetch("user", [5])
        wait_for(lambda: slow.waiting > 0)
        load(tmp_path / "held", slow, user=ROWS + 1)
        store.refresh(warm_seconds=0)
        assert not old.closed.is_set()
        slow.gate.set()
        wait_for(old.closed.is_set)
        store.prefetch("user", [5])  # nothing may stay inside when there is nothing to read
        store.multi_get("user", [5])
        store.prefetch("user", [5])
        with pytest.raises(BandanaError):
            store.prefetch("user", [9999])
        # The read may end after its block is there.
        wait_for(lambda: not store._current.serving.inside)


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb", "blockfile"])
def test_a_refresh_that_fails_leaves_the_old_version_serving(adapter: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    load(path, adapter, user=ROWS, item=-ROWS)
    with bandana_kv.open(path, cache_bytes=300_000) as store:
        store.multi_get("user", EVERY)
        load(path, adapter, user=ROWS + 1)
        positions = next((path / "segments" / "000002").glob("positions-*"))
        whole = positions.read_bytes()
        positions.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        for _ in range(2):
            with pytest.raises(FormatError, match="checksum"):
                store.refresh()
            assert store.version == 1
            assert np.array_equal(store.multi_get("user", EVERY), ROWS)
        positions.write_bytes(whole)
        assert store.refresh() == 2
        assert np.array_equal(store.multi_get("user", EVERY), ROWS + 1)


def test_a_refresh_without_a_free_descriptor_can_be_repeated(path: Path) -> None:
    with bandana_kv.open(path) as store:
        load(path, user=ROWS + 1)
        with pytest.MonkeyPatch.context() as patch:

            def too_many(*_: object) -> None:
                raise OSError(errno.EMFILE, "Too many open files")

            patch.setattr(opener, "map_array", too_many)
            with pytest.raises(AdapterError, match="Too many open files"):
                store.refresh()
        assert store.version == 1
        assert store.refresh() == 2


def test_a_version_whose_hot_rows_cannot_be_read_is_not_switched_to(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=300_000) as store:
        store.multi_get("user", EVERY[:500])
        load(path, user=ROWS + 1)
        with pytest.MonkeyPatch.context() as patch:

            def torn(*_: object, **__: object) -> None:
                raise BlockCorruptError("space 3, block 1: torn")

            patch.setattr(MemoryAdapter, "_read", torn)
            with pytest.raises(BlockCorruptError, match="'user'"):
                store.refresh()
        assert store.version == 1
        assert np.array_equal(store.multi_get("user", EVERY), ROWS)


def test_refreshes_are_one_after_the_other(path: Path) -> None:
    with bandana_kv.open(path) as store, ThreadPoolExecutor(8) as pool:
        load(path, user=ROWS + 1)
        opened = []
        original = bandana_kv.serve.current.open_current
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                bandana_kv.serve.current,
                "open_current",
                lambda *given: (opened.append(1), original(*given))[1],
            )
            assert list(pool.map(lambda _: store.refresh(), range(8))) == [2] * 8
        assert len(opened) == 1


# -- warming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [LRU, Policy("tinylfu", Admission("online"), half_life=20.0)])
def test_rows_that_were_cached_are_cached_after_the_switch(path: Path, policy: Policy) -> None:
    rng = np.random.default_rng(0)
    hot = rng.permutation(3000)[:300]
    with bandana_kv.open(path, cache_bytes=150_000, policy=policy) as store:
        for _ in range(5):
            store.multi_get("user", hot)
        bandana_kv.load(path, {"user": ROWS + 1}, adapter="memory", placement="identity")
        store.refresh()
        assert set(store.stats()["user"].values()) == {0}
        assert np.array_equal(store.multi_get("user", hot), ROWS[hot] + 1)
        counts = store.stats()["user"]
        assert counts["hits"] >= 0.95 * counts["lookups"]
        store.check()
        bandana_kv.load(path, {"user": ROWS + 2}, adapter="memory", placement="identity")
        store.refresh(warm_seconds=0)
        store.multi_get("user", hot)
        assert store.stats()["user"]["hits"] == 0


def test_what_to_warm_can_be_said_and_must_be_there(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=300_000) as store:
        store.multi_get("user", [1, 2, 3])
        load(path, user=ROWS + 1)
        with pytest.raises(TableNotFoundError):
            store.refresh(warm={"no": [1]})
        for wrong in ([-1], [3000], [0.5]):
            with pytest.raises(BandanaError):
                store.refresh(warm={"user": wrong})
        for seconds in (-1, "1", float("nan")):
            with pytest.raises(InputError, match="warm_seconds"):
                store.refresh(warm_seconds=seconds)
        assert store.version == 1
        assert store.refresh(warm={"user": range(700, 720)}) == 2
        store.multi_get("user", np.arange(700, 720))
        store.multi_get("user", [1, 2, 3])
        assert store.stats()["user"]["hits"] == 20


def test_warming_ends_when_the_new_table_is_smaller_or_time_is_over(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=300_000) as store:
        store.multi_get("user", EVERY[:400])
        load(path, user=ROWS[:100] + 1)
        store.refresh()
        store.multi_get("user", EVERY[:100])
        assert store.stats()["user"]["hits"] == 100
        load(path, user=ROWS)
        store.refresh(warm={"user": EVERY}, warm_seconds=1e-9)
        store.multi_get("user", EVERY)
        assert store.stats()["user"]["hits"] <= 256


# -- watching --------------------------------------------------------------------------------


def test_a_watcher_follows_and_ends_with_its_store(path: Path) -> None:
    with bandana_kv.open(path, watch_seconds=0.01) as store:
        for add in (1, 2):
            load(path, user=ROWS + add)
            wait_for(lambda: store.version == manifest.current_number(path))
            assert np.array_equal(store.multi_get("user", EVERY), ROWS + add)
        bandana_kv.rollback(path)
        wait_for(lambda: store.version == 2)
        watching = store._watcher._thread
    assert not watching.is_alive()
    for wrong in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="watch_seconds"):
            bandana_kv.open(path, watch_seconds=wrong)


def test_a_watcher_survives_what_cannot_be_served_and_says_so_seldom(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with bandana_kv.open(path, watch_seconds=0.01) as store:
        with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(bandana_kv.serve.current, "open_current", lambda *_: 1 / 0)
            load(path, user=ROWS + 1)
            wait_for(lambda: len(caplog.records) >= 3)
            time.sleep(0.1)
        assert len(caplog.records) <= 7
        assert "version 1 goes on being served" in caplog.text
        assert np.array_equal(store.multi_get("user", EVERY), ROWS)
        wait_for(lambda: store.version == 2)
        assert manifest.current_number(path) == 2
