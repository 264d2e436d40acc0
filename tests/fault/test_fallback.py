"""Blocks that are torn, missing, unreadable or late: rows from the fallback, never a wrong one."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters import block_keys
from bandana_kv.adapters.blockfile import BlockfileAdapter
from bandana_kv.adapters.contract import Keys, Payloads
from bandana_kv.adapters.lmdb import LmdbAdapter
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.adapters.residency import MappedPages
from bandana_kv.errors import (
    AdapterError,
    BlockCorruptError,
    BlockMissingError,
    DeadlineError,
    FallbackError,
    InputError,
    RowMissingError,
)
from bandana_kv.serve.words import LOCK

PER_BLOCK = 31
BLOCKS = 40
ROWS = np.random.default_rng(0).random((PER_BLOCK * BLOCKS, 32), np.float32)
PATIENCE_S = 30.0


class Sick(MemoryAdapter):
    """Fails and hangs as it is told, by block."""

    engine_errors = (OSError,)

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: set[int] = set()
        self.stuck: set[int] = set()
        self.let_go = threading.Event()
        self.reads = 0
        self.ended = 0

    def _read(self, keys: Keys, out: Payloads) -> None:
        blocks = set((keys & np.uint64((1 << 40) - 1)).tolist())
        self.reads += len(blocks)
        if blocks & self.stuck:
            assert self.let_go.wait(PATIENCE_S)
        if blocks & self.unreadable:
            raise OSError(5, "Input/output error")
        super()._read(keys, out)
        self.ended += len(blocks)


class Asked:
    """A fallback that notes what it is asked for."""

    def __init__(self, rows: np.ndarray = ROWS) -> None:
        self.of = rows
        self.ids: list[int] = []

    def __call__(self, table: str, ids: np.ndarray) -> np.ndarray:
        assert table == "user"
        self.ids += ids.tolist()
        return self.of[ids]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Sick]:
    sick = Sick()
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter=sick, placement="identity")
    yield sick
    sick.let_go.set()


@pytest.fixture
def opened(engine: Sick, tmp_path: Path) -> Iterator[Callable[..., bandana_kv.EmbeddingStore]]:
    stores: list[bandana_kv.EmbeddingStore] = []

    def open_store(**options: Any) -> bandana_kv.EmbeddingStore:
        options = {"admission": "all", "cache_bytes": 1 << 20, "readers": 4} | options
        stores.append(bandana_kv.open(tmp_path, adapter=engine, **options))
        return stores[-1]

    yield open_store
    engine.let_go.set()
    for store in stores:
        store.close()


def space(store: bandana_kv.EmbeddingStore) -> int:
    return store._tables["user"].stored.space


def tear(engine: Sick, store: bandana_kv.EmbeddingStore, block: int) -> None:
    key = block_keys(space(store), [block])
    payload = engine.multi_get(key)
    payload[0, 2000] ^= 1
    engine.put_many(key, payload)


def lose(engine: Sick, store: bandana_kv.EmbeddingStore, block: int) -> None:
    del engine._blocks.of_key[int(block_keys(space(store), block))]


def break_block(engine: Sick, _store: bandana_kv.EmbeddingStore, block: int) -> None:
    engine.unreadable.add(block)


def wait_for(condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < PATIENCE_S
        time.sleep(0.001)


def late(engine: Sick, ask: Callable[[], np.ndarray]) -> np.ndarray:
    """Ask until the engine has begun to read when the deadline comes; it has read nothing yet."""
    while True:
        answer = ask()
        if engine.reads:  # else, on a busy machine, the deadline came first
            return answer


DAMAGES = {tear: BlockCorruptError, lose: BlockMissingError, break_block: AdapterError}


@pytest.mark.parametrize("options", [{}, {"deadline_ms": 20_000}, {"coalesce": False}], ids=str)
@pytest.mark.parametrize("damage", DAMAGES)
def test_only_the_rows_of_bad_blocks_come_from_the_fallback(
    engine: Sick, opened: Any, damage: Any, options: dict[str, Any]
) -> None:
    fallback = Asked()
    store = opened(fallback=fallback, **options)
    for block in (3, 20, 39):
        damage(engine, store, block)
    ids = np.random.default_rng(1).permutation(np.repeat(np.arange(len(ROWS)), 2))
    for _ in range(2):
        assert np.array_equal(store.multi_get("user", ids), ROWS[ids])
    bad = [row for block in (3, 20, 39) for row in range(block * 31, block * 31 + 31)]
    assert sorted(set(fallback.ids)) == bad
    assert len(fallback.ids) == 2 * len(bad)  # each row once a call, and none is cached
    counts = store.stats()["user"]
    assert (counts["bad_blocks"], counts["late_blocks"]) == (6, 0)
    assert counts["fallback_rows"] == 4 * len(bad)
    assert not store._tables["user"]._in_flight.count
    engine.unreadable.clear()
    if damage is break_block:
        store.check()


@pytest.mark.parametrize("deadline_ms", [None, 20_000])
@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_fallback_the_error_names_table_and_block(
    engine: Sick, opened: Any, damage: Any, deadline_ms: float | None
) -> None:
    store = opened(deadline_ms=deadline_ms)
    damage(engine, store, 7)
    for _ in range(2):
        with pytest.raises(DAMAGES[damage], match=r"table 'user', block 7\b"):
            store.multi_get("user", np.arange(len(ROWS)))
    others = np.setdiff1d(np.arange(len(ROWS)), np.arange(7 * 31, 8 * 31))
    before = engine.reads
    assert np.array_equal(store.multi_get("user", others), ROWS[others])
    assert engine.reads == before  # the good blocks had entered the cache all the same
    counts = store.stats()["user"]
    assert (counts["fallback_rows"], counts["breaker_openings"]) == (0, 0)


def test_rows_of_a_late_block_come_from_the_fallback_in_time(engine: Sick, opened: Any) -> None:
    store = opened(fallback=Asked(), deadline_ms=1000, readers=64)
    engine.stuck = {5}
    store._reader._block_us = 1e6  # a slice a block
    ids = np.arange(len(ROWS))
    begun = time.monotonic()
    assert np.array_equal(store.multi_get("user", ids), ROWS[ids])
    assert time.monotonic() - begun < PATIENCE_S / 2
    counts = store.stats()["user"]
    assert counts["late_blocks"] >= 1
    assert counts["bad_blocks"] == 0
    assert store._tables["user"]._in_flight.count > 0  # it goes on
    engine.let_go.set()
    wait_for(lambda: not store._tables["user"]._in_flight.count)
    before = store.stats()["user"]["fallback_rows"]
    assert np.array_equal(store.multi_get("user", ids), ROWS[ids])
    assert store.stats()["user"]["fallback_rows"] == before
    store.check()


def test_a_late_block_enters_the_cache_when_it_comes(engine: Sick, opened: Any) -> None:
    store = opened(fallback=Asked(), deadline_ms=20)
    engine.stuck = {5}
    assert np.array_equal(late(engine, lambda: store.get("user", 5 * 31)), ROWS[5 * 31])
    engine.let_go.set()
    wait_for(lambda: not store._tables["user"]._in_flight.count)
    before = engine.reads
    assert np.array_equal(store.get("user", 5 * 31), ROWS[5 * 31])
    assert engine.reads == before
    store.check()


def test_memory_that_the_caller_got_is_never_written_again(engine: Sick, opened: Any) -> None:
    store = opened(fallback=Asked(np.zeros_like(ROWS)), deadline_ms=20)
    engine.stuck = {5}
    out = np.ones((40, 32), np.float32)
    ids = np.arange(5 * 31 - 4, 5 * 31 + 36)
    store.multi_get("user", ids, out=out)
    answered = out.copy()
    out.fill(7)
    engine.let_go.set()
    wait_for(lambda: not store._tables["user"]._in_flight.count)
    assert (out == 7).all()
    assert not answered[4:35].any()  # the fallback's zeros: the late block's bytes are nowhere


def test_a_deadline_without_a_fallback_is_an_error_that_says_how_much(
    engine: Sick, opened: Any
) -> None:
    store = opened(deadline_ms=30)
    engine.stuck = set(range(BLOCKS))
    with pytest.raises(DeadlineError, match=r"table 'user': 2 blocks .* within 30 ms") as raised:
        store.multi_get("user", [0, 40])
    assert isinstance(raised.value, TimeoutError)
    assert store.stats()["user"]["late_blocks"] == 2


def test_reads_that_no_thread_has_begun_are_given_up(engine: Sick, opened: Any) -> None:
    store = opened(deadline_ms=20, readers=2)
    engine.stuck = set(range(BLOCKS))
    for first in range(0, BLOCKS, 2):
        with pytest.raises(DeadlineError):
            store.multi_get("user", [first * 31, first * 31 + 31])
    assert engine.reads <= 8  # two threads, with a slice each
    engine.let_go.set()
    engine.stuck.clear()
    wait_for(lambda: not store._tables["user"]._in_flight.count)
    assert np.array_equal(store.multi_get("user", np.arange(100)), ROWS[:100])


def test_a_caller_who_can_wait_joins_a_late_read(engine: Sick, opened: Any) -> None:
    store = opened(fallback=Asked(), deadline_ms=20)
    engine.stuck = {5}
    late(engine, lambda: store.get("user", 5 * 31))
    reads = engine.reads
    store._deadline_ms = None
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(store.get, "user", 5 * 31 + row) for row in range(4)]
        time.sleep(0.05)
        engine.let_go.set()
        for row, answer in enumerate(asked):
            assert np.array_equal(answer.result(PATIENCE_S), ROWS[5 * 31 + row])
    assert engine.reads == reads
    store.check()


def test_the_deadline_also_covers_waiting_for_the_reads_of_others(
    engine: Sick, opened: Any
) -> None:
    store = opened(fallback=Asked())
    engine.stuck = {5}
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(store.get, "user", 5 * 31)
        wait_for(lambda: engine.reads == 1)
        store._deadline_ms = 20.0
        begun = time.monotonic()
        assert np.array_equal(store.get("user", 5 * 31 + 1), ROWS[5 * 31 + 1])
        assert time.monotonic() - begun < PATIENCE_S / 2
        engine.let_go.set()
        assert np.array_equal(patient.result(PATIENCE_S), ROWS[5 * 31])
    assert engine.reads == 1
    assert store.stats()["user"]["late_blocks"] == 1


def test_one_deadline_covers_all_tables_of_a_call(tmp_path: Path) -> None:
    sick = Sick()
    tables = dict.fromkeys("abcdefgh", ROWS)
    bandana_kv.load(tmp_path, tables, adapter=sick, placement="identity")
    sick.stuck = {0}
    with bandana_kv.open(
        tmp_path, adapter=sick, deadline_ms=500, fallback=lambda _, ids: ROWS[ids]
    ) as store:
        begun = time.monotonic()
        found = store.multi_get({name: [1, 2] for name in tables})
        assert time.monotonic() - begun < 3.0  # and not 8 times 500 ms
        assert all(np.array_equal(rows, ROWS[[1, 2]]) for rows in found.values())
        sick.let_go.set()


def test_the_breaker_spares_a_bad_device_and_comes_back(
    engine: Sick, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(fallback=Asked())
    breaker = store._tables["user"]._fail_safe._breaker
    now = [100.0]
    monkeypatch.setattr(breaker, "_clock", lambda: now[0])
    breaker._begin_window()
    engine.unreadable = set(range(BLOCKS))
    for row in range(5):
        assert np.array_equal(store.get("user", row), ROWS[row])
    assert store.stats()["user"]["breaker_open"] == 1
    reads = engine.reads
    ids = np.arange(len(ROWS))
    assert np.array_equal(store.multi_get("user", ids), ROWS[ids])
    assert engine.reads == reads
    engine.unreadable.clear()
    now[0] += 5.1
    for _ in range(3):
        assert np.array_equal(store.multi_get("user", ids), ROWS[ids])
    assert engine.reads == reads + 12  # three probes of four blocks
    assert store.stats()["user"]["breaker_open"] == 0
    fallback_rows = store.stats()["user"]["fallback_rows"]
    assert np.array_equal(store.multi_get("user", ids), ROWS[ids])
    assert store.stats()["user"]["fallback_rows"] == fallback_rows
    store.check()


def test_a_torn_block_that_is_asked_for_often_does_not_open_the_breaker(
    engine: Sick, opened: Any
) -> None:
    store = opened(fallback=Asked())
    tear(engine, store, 3)
    for _ in range(50):
        assert np.array_equal(store.get("user", 3 * 31), ROWS[3 * 31])
    assert store.stats()["user"]["breaker_openings"] == 0


def test_what_comes_from_the_fallback_is_logged_once_in_a_while(
    engine: Sick, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(fallback=Asked())
    tear(engine, store, 3)
    caplog.set_level(logging.WARNING, "bandana_kv")
    for _ in range(100):
        store.get("user", 3 * 31)
    assert len(caplog.records) == 1
    assert "table 'user', block 3" in caplog.text
    assert "1 rows came from the fallback" in caplog.text


@pytest.mark.parametrize(
    ("fallback", "error", "said"),
    [
        (lambda _, ids: ROWS[ids][:-1], FallbackError, r"asked for 5 rows of 32 float32"),
        (lambda _, ids: ROWS[ids].astype(np.float64), FallbackError, "float64"),
        (lambda _, ids: ROWS[ids][:, :5], FallbackError, r"\(5, 5\)"),
        (lambda *_: 1 / 0, FallbackError, "ZeroDivisionError"),
        (lambda *_: None, FallbackError, "object"),
        ({"item": Asked()}, InputError, "'item'"),
        (3, InputError, "int gives no rows"),
    ],
)
def test_what_is_wrong_with_a_fallback_is_said(
    engine: Sick, opened: Any, fallback: Any, error: type[Exception], said: str
) -> None:
    def ask() -> None:
        store = opened(fallback=fallback)
        tear(engine, store, 3)
        store.multi_get("user", np.arange(3 * 31, 3 * 31 + 5))

    with pytest.raises(error, match=said):
        ask()


def test_another_store_is_a_fallback_and_a_row_it_lacks_is_named(
    engine: Sick, opened: Any, tmp_path: Path
) -> None:
    bandana_kv.load(tmp_path / "other", {"user": ROWS[:100]}, adapter="lmdb")
    with bandana_kv.open(tmp_path / "other") as other:
        store = opened(fallback=other)
        for block in (2, 5):
            tear(engine, store, block)
        assert np.array_equal(store.multi_get("user", [70, 65]), ROWS[[70, 65]])
        with pytest.raises(RowMissingError, match=r"block 5: .*id 155 is out of range"):
            store.get("user", 155)
        store.close()
        assert np.array_equal(other.get("user", 1), ROWS[1])  # it stays its owner's


@pytest.mark.parametrize("deadline_ms", [0, -1, "5", float("nan"), float("inf"), True])
def test_a_deadline_is_a_positive_number(opened: Any, deadline_ms: Any) -> None:
    with pytest.raises(InputError, match="deadline_ms"):
        opened(deadline_ms=deadline_ms)
    with pytest.raises(InputError, match="coalesce"):
        opened(deadline_ms=1, coalesce=False)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_forked_while_the_parent_counts_goes_on(engine: Sick, opened: Any) -> None:
    store = opened(fallback=Asked())
    tear(engine, store, 3)
    fail_safe = store._tables["user"]._fail_safe
    with fail_safe._lock, fail_safe._log._lock, fail_safe._breaker._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(int(PATIENCE_S))
            os._exit(0 if np.array_equal(store.get("user", 3 * 31), ROWS[3 * 31]) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_late_block_gets_its_answer_though_the_table_is_locked_when_it_comes(
    engine: Sick, opened: Any
) -> None:
    store = opened(fallback=Asked(), deadline_ms=5)
    table = store._tables["user"]
    engine.stuck = {3}
    assert np.array_equal(late(engine, lambda: store.multi_get("user", [100])), ROWS[[100]])
    table.words[LOCK] += 1  # as a lookup in another thread does
    try:
        ended = engine.ended
        engine.let_go.set()
        wait_for(lambda: engine.ended > ended)
        time.sleep(0.05)  # whoever gave up has done so by now
    finally:
        table.words[LOCK] -= 1  # else a fork in another test waits for ever
    wait_for(lambda: not table._in_flight.count)
    assert store.multi_get("user", [100])[0, 0] == ROWS[100, 0]
    assert store.stats()["user"]["hits"] == 1


def test_sixteen_threads_beside_a_device_that_stumbles_get_their_rows(
    engine: Sick, opened: Any
) -> None:
    store = opened(fallback=Asked(), deadline_ms=5, cache_bytes=30_000)
    stop = threading.Event()

    def stumble() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            engine.let_go.clear()
            engine.stuck = set(rng.integers(0, BLOCKS, 3).tolist())
            engine.unreadable = set(rng.integers(0, BLOCKS, 2).tolist())
            time.sleep(0.01)
            engine.let_go.set()
            time.sleep(0.01)

    def serve(seed: int) -> int:
        rng = np.random.default_rng(seed)
        wrong = 0
        for _ in range(60):
            ids = rng.integers(0, len(ROWS), rng.choice([1, 10, 200]))
            wrong += int((store.multi_get("user", ids) != ROWS[ids]).any(axis=1).sum())
        return wrong

    stumbling = threading.Thread(target=stumble)
    stumbling.start()
    try:
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(serve, range(16))) == [0] * 16
    finally:
        stop.set()
        stumbling.join()
    engine.stuck, engine.unreadable = set(), set()
    wait_for(lambda: not store._tables["user"]._in_flight.count)
    assert store.stats()["user"]["fallback_rows"] > 0
    store.check()


@pytest.mark.parametrize("name", ["lmdb", "blockfile"])
def test_an_engine_that_fails_as_a_whole_is_one_whose_blocks_all_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bandana_kv.load(tmp_path, {"user": ROWS, "item": ROWS}, adapter=name)
    engine = LmdbAdapter if name == "lmdb" else BlockfileAdapter

    def broken(*_: Any, **__: Any) -> None:
        raise lmdb.Error("broken") if name == "lmdb" else OSError(5, "broken")

    ids = [3, 500, 900]
    with bandana_kv.open(tmp_path, fallback=lambda _, ids: ROWS[ids]) as store:
        if name == "lmdb":
            monkeypatch.setattr(engine, "_begin", broken)
        else:
            monkeypatch.setattr(engine, "_read", broken)
            monkeypatch.setattr(engine, "standing", lambda _: None)
            monkeypatch.setattr(engine, "reading", lambda self, *_: self._call(broken))
        for _ in range(8):
            assert np.array_equal(store.multi_get("user", ids), ROWS[ids])
        assert store.stats()["user"]["breaker_openings"] == 1
        both = store.multi_get({"user": ids, "item": ids})
        assert np.array_equal(both["item"], ROWS[ids])
    with bandana_kv.open(tmp_path) as store:
        for asked in (("user", ids), ({"user": ids, "item": ids},)):
            with pytest.raises(AdapterError, match=r"table 'user', block .*broken"):
                store.multi_get(*asked)


def test_an_engine_that_fails_once_it_has_read_is_an_error_and_nothing_is_answered_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bandana_kv.load(tmp_path, {"user": ROWS, "item": ROWS}, adapter="lmdb")

    def broken(*_: object) -> None:
        raise OSError(5, "broken")

    with bandana_kv.open(tmp_path) as store:
        for asked in (("user", [3, 500]), ({"user": [5, 900], "item": [7]},)):
            with monkeypatch.context() as patch:
                patch.setattr(MappedPages, "after_reads", broken)
                with pytest.raises(AdapterError, match="broken"):
                    store.multi_get(*asked)
            assert store._tables["user"]._in_flight.count == 0
        assert np.array_equal(store.multi_get("user", [3, 5, 500]), ROWS[[3, 5, 500]])
        store.check()
