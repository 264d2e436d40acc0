"""Many threads on one store: shared reads, failures that stay with their thread, forks."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.errors import AdapterError, IdError, InputError
from bandana_kv.serve import table
from bandana_kv.serve.table import ServedTable
from bandana_kv.serve.words import LOCK, SOUND

ROWS = np.random.default_rng(0).random((5000, 32), np.float32)
PATIENCE_S = 20.0
# Lookups of the first, and of shadows, take turns; all others share the cache.
POLICIES = [
    Policy("lru", Admission("all")),
    Policy("clock", Admission("online"), half_life=2.0),
    Policy("sieve", Admission("lower")),
    Policy("s3-fifo", Admission("shadow")),
    Policy("s3-fifo", Admission("none")),
    Policy("tinylfu", Admission("none"), half_life=2.0),
    Policy("tinylfu", Admission("online"), half_life=2.0),
]


class Gated(MemoryAdapter):
    """Counts reads, and holds them until its gate is opened; each takes one of the failures."""

    engine_errors = (OSError,)

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.failures: list[BaseException] = []

    def _read(self, keys: np.ndarray, out: np.ndarray) -> None:
        self.reads.update((keys & np.uint64((1 << 40) - 1)).tolist())
        assert self.gate.wait(PATIENCE_S)
        if self.failures:
            raise self.failures.pop()
        super()._read(keys, out)


@pytest.fixture
def engine(tmp_path: Path) -> Gated:
    adapter = Gated()
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter=adapter, placement="identity")
    adapter.reads.clear()
    return adapter


@pytest.fixture
def store(engine: Gated, tmp_path: Path) -> Iterator[bandana_kv.EmbeddingStore]:
    with bandana_kv.open(tmp_path, adapter=engine, readers=4) as opened:
        yield opened


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def wait_for(condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < PATIENCE_S
        time.sleep(0.001)


def ask_all(
    store: bandana_kv.EmbeddingStore, pool: ThreadPoolExecutor, requests: list[list[int]]
) -> list[Future[np.ndarray]]:
    """Start all requests; return when each of them is reading or waits for one that is."""
    claimed: set[int] = set()
    original = ServedTable._read_and_answer

    def read_and_answer(self: ServedTable, reader: object, scratch: np.ndarray, *rest: Any) -> int:
        claimed.add(id(scratch))
        return original(self, reader, scratch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServedTable, "_read_and_answer", read_and_answer)
        asked = [pool.submit(store.multi_get, "user", ids) for ids in requests]
        wait_for(lambda: len(claimed) == len(requests))
    return asked


def test_concurrent_misses_on_a_block_read_it_once(
    engine: Gated, store: bandana_kv.EmbeddingStore, pool: ThreadPoolExecutor
) -> None:
    engine.gate.clear()
    # blocks of 31 rows; each request overlaps others in one block and has one of its own
    requests = [[first, 40, 31 * (10 + first)] for first in range(12)]
    asked = ask_all(store, pool, requests)
    engine.gate.set()
    for ids, rows in zip(requests, asked, strict=True):
        assert np.array_equal(rows.result(PATIENCE_S), ROWS[ids])
    assert max(engine.reads.values()) == 1
    assert set(engine.reads) == {0, 1, *range(10, 22)}
    assert store.stats()["user"]["block_reads"] == len(engine.reads)
    assert not store._tables["user"]._in_flight.count
    store.check()


@pytest.mark.parametrize("failure", [OSError("the device is gone"), KeyboardInterrupt()])
def test_a_failing_read_hangs_nobody_and_is_forgotten(
    engine: Gated,
    store: bandana_kv.EmbeddingStore,
    pool: ThreadPoolExecutor,
    failure: BaseException,
) -> None:
    engine.gate.clear()
    engine.failures = [failure] * 100
    asked = ask_all(store, pool, [[3, 100], [4, 100], [5], [100]])
    engine.gate.set()
    for rows in asked:
        with pytest.raises((AdapterError, KeyboardInterrupt)) as raised:
            rows.result(PATIENCE_S)
        if isinstance(raised.value, AdapterError):
            assert "table 'user'" in str(raised.value)
            assert "the device is gone" in str(raised.value)
    engine.failures = []
    assert not store._tables["user"]._in_flight.count
    assert np.array_equal(store.multi_get("user", [3, 100, 4, 5]), ROWS[[3, 100, 4, 5]])
    store.check()


def test_whoever_waits_for_a_failed_read_reads_on_its_own(
    engine: Gated, store: bandana_kv.EmbeddingStore, pool: ThreadPoolExecutor
) -> None:
    engine.gate.clear()
    engine.failures = [OSError("once")]
    asked = ask_all(store, pool, [[0], [1], [2]])
    assert engine.reads == {0: 1}
    engine.gate.set()
    failed = [rows.exception(PATIENCE_S) is not None for rows in asked]
    assert sum(failed) == 1
    for at in np.flatnonzero(~np.array(failed)):
        assert np.array_equal(asked[at].result(), ROWS[[at]])
    store.check()


def test_closing_during_lookups_ends_them_with_an_error_or_their_rows(
    engine: Gated, store: bandana_kv.EmbeddingStore, pool: ThreadPoolExecutor
) -> None:
    engine.gate.clear()
    ids = list(range(0, 5000, 31))
    asked = ask_all(store, pool, [ids] * 4)
    closing = pool.submit(store.close)
    engine.gate.set()
    closing.result(PATIENCE_S)
    for rows in asked:
        error = rows.exception(PATIENCE_S)
        assert error is None or isinstance(error, InputError)
        assert error is not None or np.array_equal(rows.result(), ROWS[ids])


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Make threads take turns far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switches")
@pytest.mark.parametrize(
    ("adapter", "policy"),
    [
        *(("memory", policy) for policy in POLICIES),
        ("lmdb", POLICIES[0]),
        ("lmdb", POLICIES[-1]),
        ("rocksdb", POLICIES[0]),
        ("rocksdb", POLICIES[-1]),
    ],
    ids=str,
)
def test_sixteen_threads_get_their_rows(
    adapter: str, policy: Policy, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter=adapter, placement="shuffled")

    def serve(seed: int, store: bandana_kv.EmbeddingStore) -> tuple[int, int]:
        """Return how many rows were asked for, and how many were wrong."""
        rng = np.random.default_rng(seed)
        asked = wrong = 0
        for _ in range(40):
            ids = np.minimum(rng.geometric(0.002, rng.integers(1, 200)), 5000) - 1
            asked += ids.size
            wrong += int((store.multi_get("user", ids) != ROWS[ids]).any(axis=1).sum())
        return asked, wrong

    with bandana_kv.open(tmp_path / "s", cache_bytes=90_000, policy=policy) as store:
        served = list(pool.map(lambda seed: serve(seed, store), range(16)))
        counts = store.stats()["user"]
        store.check()
    assert [wrong for _, wrong in served] == [0] * 16
    assert counts["lookups"] == sum(asked for asked, _ in served)
    assert 0 < counts["hits"] < counts["lookups"]
    if policy.admission.rule != "none":
        assert counts["neighbours_admitted"] > 0


@pytest.mark.usefixtures("eager_switches")
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_hits_beside_admissions_are_rows_of_their_own_id(
    policy: Policy, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """Half of the threads ask for few rows, mostly hits; the others drive rows out."""
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter="memory", placement="identity")

    def serve(seed: int, store: bandana_kv.EmbeddingStore) -> int:
        rng = np.random.default_rng(seed)
        wrong, most = 0, 200 if seed % 2 else 5000
        for _ in range(150):
            ids = rng.integers(0, most, 8)
            wrong += int((store.multi_get("user", ids) != ROWS[ids]).any(axis=1).sum())
        return wrong

    with bandana_kv.open(tmp_path / "s", cache_bytes=60_000, policy=policy, readers=1) as store:
        assert list(pool.map(lambda seed: serve(seed, store), range(8))) == [0] * 8
        assert store.stats()["user"]["hits"] > 0
        store.check()


@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[-1]], ids=str)
def test_a_wrong_id_and_a_failed_read_leave_the_cache_to_others(
    engine: Gated, tmp_path: Path, policy: Policy
) -> None:
    with bandana_kv.open(tmp_path, adapter=engine, policy=policy, readers=1) as store:
        store.multi_get("user", [1, 2, 3])
        with pytest.raises(IdError):
            store.multi_get("user", [1, 5000])
        engine.failures = [OSError("once")]
        with pytest.raises(AdapterError):
            store.multi_get("user", [1, 4000])
        for _ in range(2):
            assert np.array_equal(store.multi_get("user", [1, 4000]), ROWS[[1, 4000]])
        assert store._tables["user"].words[LOCK] == 0
        assert store._tables["user"]._in_flight.count == 0
        store.check()


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on_serving(adapter: str, tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter=adapter, placement="shuffled")
    ids = np.arange(0, 5000, 3)
    with bandana_kv.open(tmp_path / "s", cache_bytes=60_000, readers=2) as store:
        store._reader._block_us = 1e6  # reads seem slow, so that both threads take part
        store.multi_get("user", ids)
        child = os.fork()
        if child == 0:
            signal.alarm(int(PATIENCE_S))
            right = np.array_equal(store.multi_get("user", ids[::-1]), ROWS[ids[::-1]])
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert np.array_equal(store.multi_get("user", ids + 1), ROWS[ids + 1])
        store.check()


def test_a_child_forked_during_a_read_does_not_wait_for_it(
    engine: Gated, store: bandana_kv.EmbeddingStore, pool: ThreadPoolExecutor
) -> None:
    """The thread that reads exists in the parent only."""
    engine.gate.clear()
    (asked,) = ask_all(store, pool, [[0]])
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE_S))
        engine.gate = threading.Event()
        engine.gate.set()
        right = np.array_equal(store.get("user", 1), ROWS[1])
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    engine.gate.set()
    assert np.array_equal(asked.result(PATIENCE_S)[0], ROWS[0])


def test_what_was_verified_elsewhere_is_taken_as_that_once(
    store: bandana_kv.EmbeddingStore,
) -> None:
    """Compiled code may do the next reads of the same request, and has to verify them."""
    table._scratch.clear()
    store.multi_get("user", [1, 100, 500])
    assert [int(scratch[SOUND]) for scratch, _ in table._scratch] == [0]


def test_all_tables_of_a_request_are_read_at_once(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    engine = Gated()
    tables = {name: ROWS * number for number, name in enumerate("abcd", 1)}
    bandana_kv.load(tmp_path, tables, adapter=engine, placement="identity")
    with bandana_kv.open(tmp_path, adapter=engine, readers=4) as store:
        engine.reads.clear()
        engine.gate.clear()
        asked = pool.submit(store.multi_get, {name: [3, 100] for name in tables})
        wait_for(lambda: sum(engine.reads.values()) == 8)
        engine.gate.set()
        rows = asked.result(PATIENCE_S)
        assert all(np.array_equal(rows[name], tables[name][[3, 100]]) for name in tables)
        engine.failures = [OSError(5, "Input/output error")] * 3
        with pytest.raises(AdapterError, match="block"):
            store.multi_get({name: [1000, 4000] for name in tables})
        engine.failures.clear()
        rows = store.multi_get({name: [1000, 4000] for name in tables})
        assert all(np.array_equal(rows[name], tables[name][[1000, 4000]]) for name in tables)


def test_who_takes_what_was_read_ahead_while_a_flush_ends_does_not_keep_what_it_brings(
    engine: Gated, tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy("lru", Admission("all"))
    with bandana_kv.open(tmp_path, 100_000, adapter=engine, policy=policy) as store:
        served = store._tables["user"]
        first, go_on, read = threading.Event(), threading.Event(), Gated._read

        def held(self: Gated, keys: np.ndarray, out: np.ndarray) -> None:
            read(self, keys, out)
            if not first.is_set():
                first.set()
                assert go_on.wait(PATIENCE_S)

        new = np.ones((1, 32), np.float32)
        store.update("user", [5], new)
        monkeypatch.setattr(Gated, "_read", held)
        store.prefetch("user", [7])  # the block of row 5, as it is now
        wait_for(first.is_set)
        reads: list[Future[np.ndarray]] = []
        forget, waiting = served._in_flight.forget, threading.Event()
        wait = ServedTable._wait

        def waits(self: ServedTable, *arguments: Any) -> None:
            waiting.set()
            wait(self, *arguments)

        def late(keys: np.ndarray) -> None:
            reads.append(pool.submit(store.get, "user", 8))
            wait_for(waiting.is_set)  # it has joined
            forget(keys)

        monkeypatch.setattr(ServedTable, "_wait", waits)
        monkeypatch.setattr(served._in_flight, "forget", late)
        store.flush()
        go_on.set()
        assert np.array_equal(reads[0].result(PATIENCE_S), ROWS[8])
        assert np.array_equal(store.get("user", 5), new[0])
        store.check()
