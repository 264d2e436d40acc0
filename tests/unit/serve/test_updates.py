"""Updated rows are what every lookup returns from then on, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bandana_kv
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.cache.index import find
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.disk import ledger
from bandana_kv.disk.journal import journal_files
from bandana_kv.errors import (
    BlockCorruptError,
    IdError,
    InputError,
    TableNotFoundError,
    UpdateInProgressError,
    WriteBudgetError,
)
from bandana_kv.serve import answer, following, updates
from bandana_kv.serve.overlay import Overlay
from bandana_kv.testing import in_child

ROWS, DIM = 600, 24
FIRST = np.random.default_rng(0).random((ROWS, DIM), np.float32)
LOG = bandana_kv.AccessLog.from_requests(np.random.default_rng(1).integers(0, ROWS, (200, 8)))
ENGINES = ["blockfile", "lmdb", "rocksdb"]
EVERY = np.arange(ROWS)


def new_rows(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, DIM), np.float32)


def load(path: Path, adapter: str = "blockfile", **options: Any) -> Path:
    bandana_kv.load(path, {"t": FIRST}, {"t": LOG}, adapter=adapter, **options)
    return path


def assert_has(store: bandana_kv.EmbeddingStore, expected: np.ndarray) -> None:
    order = np.random.default_rng(2).permutation(ROWS)
    assert np.array_equal(store.multi_get("t", order), expected[order])
    store.check()


@pytest.mark.parametrize("adapter", ENGINES)
@pytest.mark.parametrize("replicate", [0.0, 0.3])
def test_rows_change_in_cache_blocks_copies_and_after_opening_again(
    tmp_path: Path, adapter: str, replicate: float
) -> None:
    path = load(tmp_path / "s", adapter, replicate=replicate)
    expected = FIRST.copy()
    rng = np.random.default_rng(3)
    with bandana_kv.open(path, cache_bytes=20_000) as store:
        store.multi_get("t", EVERY)
        for step in range(40):
            ids = rng.choice(ROWS, rng.integers(1, 30), replace=False)
            expected[ids] = new_rows(step, ids.size)
            store.update("t", ids, expected[ids])
            asked = rng.integers(0, ROWS, 50)
            assert np.array_equal(store.multi_get("t", asked), expected[asked])
            if step % 10 == 5:
                store.flush()
        assert_has(store, expected)
    with bandana_kv.open(path, cache_bytes=20_000) as store:
        assert_has(store, expected)
        store.flush()
        assert_has(store, expected)
    assert sum(file.stat().st_size for file in journal_files(path)) < 100
    with bandana_kv.open(path, cache_bytes=0) as store:
        assert_has(store, expected)
    assert not bandana_kv.verify(path).bad_blocks


STEP = st.one_of(
    st.tuples(st.just("update"), st.integers(0, 2**32 - 1), st.integers(1, 40)),
    st.tuples(st.just("look"), st.integers(0, 2**32 - 1), st.integers(1, 80)),
    st.tuples(st.sampled_from(["flush", "reopen", "refresh", "ahead"]), st.just(0), st.just(0)),
)


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(STEP, max_size=25), cache_rows=st.sampled_from([0, 3, 50, ROWS]))
def test_equals_a_plain_array(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], cache_rows: int
) -> None:
    path = load(tmp_path_factory.mktemp("updates") / "s", placement="shuffled")
    expected = FIRST.copy()
    cache_bytes = 200 * cache_rows
    store = bandana_kv.open(path, cache_bytes)
    try:
        for what, seed, count in steps:
            ids = np.random.default_rng(seed).integers(0, ROWS, count)
            if what == "update":
                ids = np.unique(ids)
                expected[ids] = new_rows(seed, ids.size)
                store.update("t", ids, expected[ids])
            elif what == "look":
                assert np.array_equal(store.multi_get("t", ids), expected[ids])
            elif what == "flush":
                store.flush()
            elif what == "ahead":
                store.prefetch("t", EVERY[::7])
            elif what == "refresh":
                store.refresh()
            else:
                store.close()
                store = bandana_kv.open(path, cache_bytes)
        assert_has(store, expected)
    finally:
        store.close()


@pytest.mark.parametrize(
    ("ids", "rows", "error", "said"),
    [
        ([0, ROWS], new_rows(0, 2), IdError, f"id {ROWS} is out of range"),
        ([-1], new_rows(0, 1), IdError, "id -1 is out of range"),
        ([3, 5, 3], new_rows(0, 3), InputError, "id 3 is to be updated twice"),
        ([3, 5], new_rows(0, 3), InputError, r"rows must be \(2, 24\) of float32, not \(3, 24\)"),
        ([3], np.ones((1, DIM), complex), InputError, "of complex128"),
        ([0.5], new_rows(0, 1), IdError, "must be integers"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_changes(
    tmp_path: Path, ids: list[int], rows: np.ndarray, error: type[Exception], said: str
) -> None:
    with bandana_kv.open(load(tmp_path / "s")) as store:
        with pytest.raises(error, match=said):
            store.update("t", ids, rows)
        with pytest.raises(TableNotFoundError):
            store.update("x", [1], rows)
        assert_has(store, FIRST)
    with pytest.raises(InputError, match="closed"):
        store.update("t", [1], new_rows(0, 1))


def test_an_empty_update_is_fine(tmp_path: Path) -> None:
    with bandana_kv.open(load(tmp_path / "s")) as store:
        store.update("t", [], np.empty((0, DIM), np.float32))
        assert_has(store, FIRST)


@pytest.mark.parametrize("adapter", ENGINES)
def test_one_process_updates_and_others_follow(tmp_path: Path, adapter: str) -> None:
    path = load(tmp_path / "s", adapter)
    expected = FIRST.copy()
    with bandana_kv.open(path, 50_000) as writer, bandana_kv.open(path, 50_000) as reader:
        assert_has(reader, expected)
        for step in range(6):
            ids = np.arange(step, ROWS, 7)
            expected[ids] = new_rows(step, ids.size)
            writer.update("t", ids, expected[ids])
            if step % 2:
                writer.flush()
            assert reader.has_news()
            reader.refresh()
            assert not reader.has_news()
            assert_has(reader, expected)
        with pytest.raises(UpdateInProgressError, match="another process updates"):
            reader.update("t", [1], new_rows(9, 1))
    with bandana_kv.open(path) as writer:
        writer.update("t", [1], expected[1:2])  # the lock was given back


def test_updates_go_with_their_version(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    first = FIRST.copy()
    with bandana_kv.open(path, 50_000) as store:
        first[10:20] = new_rows(1, 10)
        store.update("t", np.arange(10, 20), first[10:20])
        second = new_rows(2, ROWS)
        bandana_kv.load(path, {"t": second}, adapter="blockfile", placement="identity")
        store.update("t", [3], first[4:5])
        first[3] = first[4]
        store.refresh()
        assert_has(store, second)
        second[7] = second[8]
        store.update("t", [7], second[8:9])
        bandana_kv.rollback(path)
        store.refresh()
        assert_has(store, first)
        store.flush()
    with bandana_kv.open(path) as store:
        assert_has(store, first)
    bandana_kv.rollback(path, 2)
    with bandana_kv.open(path) as store:
        assert_has(store, second)


def test_a_flush_keeps_updates_of_tables_that_it_does_not_serve(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    first = FIRST.copy()
    with bandana_kv.open(path) as store:
        first[5] = first[6]
        store.update("t", [5], first[6:7])
    bandana_kv.load(path, {"t": new_rows(2, ROWS)}, adapter="blockfile", placement="identity")
    with bandana_kv.open(path) as store:
        store.update("t", [1], new_rows(3, 1))
        store.flush()
    bandana_kv.rollback(path)
    with bandana_kv.open(path) as store:
        assert_has(store, first)


def test_many_updates_flush_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "FLUSH_BYTES", 20_000)
    path = load(tmp_path / "s")
    expected = FIRST.copy()
    with bandana_kv.open(path, 30_000) as store:
        for step in range(60):
            ids = np.random.default_rng(step).choice(ROWS, 20, replace=False)
            expected[ids] = new_rows(step, 20)
            store.update("t", ids, expected[ids])
            assert sum(file.stat().st_size for file in journal_files(path)) < 25_000
        assert_has(store, expected)


def test_where_blocks_cannot_be_written_updates_go_on_until_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(updates, "FLUSH_BYTES", 10_000)
    monkeypatch.setattr(updates, "MOST_BYTES", 40_000)
    path = load(tmp_path / "s", placement="identity")
    (file,) = path.rglob("*.blocks")
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)
    expected = FIRST.copy()
    with bandana_kv.open(path, 0) as store:
        steps = 0
        with contextlib.suppress(BlockCorruptError):
            while steps < 100:
                expected[:20] = new_rows(steps, 20)
                steps += 1
                store.update("t", np.arange(20), expected[:20])
        assert 40 < steps < 100
        assert np.array_equal(store.multi_get("t", np.arange(20)), expected[:20])
    assert "cannot be written into their blocks" in caplog.text


@pytest.mark.parametrize("adapter", ENGINES)
def test_blocks_as_they_were_before_a_flush_are_neither_kept_nor_shared(
    tmp_path: Path, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup that has asked where blocks lie, and is then overtaken by a flush."""
    bandana_kv.load(
        tmp_path / "s", {"t": FIRST}, adapter=adapter, placement="identity", policy=Policy()
    )
    kept = Policy("lru", Admission("all"))
    with bandana_kv.open(tmp_path / "s", cache_bytes=100_000, policy=kept) as store:
        store.update("t", [0], new_rows(1, 1))
        store.flush()  # the table's engine is one that writes, from here on
        store.update("t", [5], new_rows(2, 1))
        engine = store._tables["t"].stored.adapter
        standing, reading, flushes = type(engine).standing, type(engine).reading, []

        def flush() -> None:
            if not flushes:
                flushes.append(threading.Thread(target=store.flush))
                flushes[0].start()
                flushes[0].join()

        def stood(self: Any) -> Any:
            found = standing(self)
            if found is not None:
                flush()
            return found

        def overtaken(self: Any, count: int, use: Any) -> int | None:
            def late(words: Any) -> int:
                flush()
                return int(use(words))

            return reading(self, count, late)

        monkeypatch.setattr(type(engine), "standing", stood)
        monkeypatch.setattr(type(engine), "reading", overtaken)
        assert np.array_equal(store.get("t", 6), FIRST[6])  # from the block that has row 5, too
        assert len(flushes) == (adapter != "rocksdb")
        store.flush()
        assert np.array_equal(store.get("t", 5), new_rows(2, 1)[0])
        store.check()


@pytest.mark.parametrize("adapter", ENGINES)
def test_what_is_read_ahead_of_a_flush_is_not_answered_after_it(
    tmp_path: Path, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first flush gives the table another engine, while reading ahead chooses blocks."""
    bandana_kv.load(tmp_path / "s", {"t": FIRST}, adapter=adapter, placement="identity")
    with bandana_kv.open(tmp_path / "s", cache_bytes=100_000) as store:
        store.update("t", [5], new_rows(2, 1))
        claim_ahead = answer.claim_ahead

        def late(*arguments: Any) -> int:
            store.flush()
            return int(claim_ahead(*arguments))

        monkeypatch.setattr(answer, "claim_ahead", late)
        store.prefetch("t", [6])
        assert np.array_equal(store.get("t", 5), new_rows(2, 1)[0])
        store.check()


@pytest.mark.parametrize("adapter", ENGINES)
def test_threads_never_see_an_old_or_a_torn_row(
    tmp_path: Path, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "FLUSH_BYTES", 60_000)
    path = tmp_path / "s"
    rows = np.zeros((ROWS, DIM), np.float32)
    bandana_kv.load(path, {"t": rows}, adapter=adapter, placement="shuffled")
    acknowledged = np.zeros(ROWS, np.float32)
    stop = threading.Event()
    wrong: list[str] = []

    def look(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set() and not wrong:
            ids = rng.integers(0, ROWS, 40)
            least = acknowledged[ids]
            got = store.multi_get("t", ids)
            if (got != got[:, :1]).any():
                wrong.append("torn")
            if (got[:, 0] < least).any():
                wrong.append("old")

    with bandana_kv.open(path, cache_bytes=15_000) as store:
        threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        rng = np.random.default_rng(9)
        for step in range(1, 300):
            ids = rng.choice(ROWS, 10, replace=False)
            store.update("t", ids, np.full((10, DIM), step, np.float32))
            acknowledged[ids] = step
            if wrong:
                break
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        store.check()


def test_a_fork_leaves_updating_to_its_parent(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path, 50_000) as store:
        store.update("t", [1], new_rows(1, 1))

        def child() -> bool:
            assert np.array_equal(store.get("t", 1), new_rows(1, 1)[0])
            with pytest.raises(UpdateInProgressError, match="another process updates"):
                store.update("t", [2], new_rows(2, 1))
            return True

        assert in_child(child)
        store.update("t", [2], new_rows(2, 1))
        assert np.array_equal(store.get("t", 2), new_rows(2, 1)[0])


def test_killed_at_any_moment_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    expected = FIRST.copy()
    for turn in range(6):
        ready, done = os.pipe()
        child = os.fork()
        if not child:
            _update_until_killed(path, turn, done)
        os.close(done)
        acknowledged = 0
        with open(ready, "rb") as acks:
            for _ in range(5 + 7 * turn):
                acknowledged += len(acks.read(1))
            os.kill(child, 9)
            acknowledged += len(acks.read())
        os.waitpid(child, 0)
        with bandana_kv.open(path, 20_000) as store:
            for step in range(acknowledged):
                ids, rows = _update_of(turn, step)
                expected[ids] = rows
            ids, rows = _update_of(turn, acknowledged)
            found = store.multi_get("t", EVERY)
            if not np.array_equal(found, expected):
                expected[ids] = rows  # made, and killed before it could say so
            assert np.array_equal(found, expected)
            assert_has(store, expected)


def _update_of(turn: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([turn, step])
    ids = rng.choice(ROWS, 15, replace=False)
    return ids, rng.random((15, DIM), np.float32)


def _update_until_killed(path: Path, turn: int, done: int) -> None:
    updates.FLUSH_BYTES = 30_000
    try:
        with bandana_kv.open(path, 20_000) as store:
            for step in range(10_000):
                store.update("t", *_update_of(turn, step))
                os.write(done, b".")
    finally:
        os._exit(1)


def test_the_ledger_knows_what_was_written_and_the_budget_is_kept(tmp_path: Path) -> None:
    path = load(tmp_path / "s", placement="identity")
    with bandana_kv.open(path) as store:
        store.update("t", np.arange(10), new_rows(1, 10))
        store.flush()
        store.update("t", [500], new_rows(2, 1))
    found = [(entry.kind, entry.handed_bytes) for entry in ledger.entries(path)]
    row_bytes = 4 * DIM
    assert found[0][0] == "load"
    assert found[1:] == [
        ("update", 40 + 10 * (4 + row_bytes)),
        ("flush", 4096),
        ("update", 40 + 4 + row_bytes),
    ]
    written = sum(entry.written_bytes for entry in ledger.entries(path))
    bandana_kv.set_write_budget(path, written + 10_000)
    with bandana_kv.open(path) as store:
        store.update("t", [1], new_rows(3, 1))
        with pytest.raises(WriteBudgetError):
            store.update("t", EVERY, new_rows(4, ROWS))
        assert np.array_equal(store.get("t", 1), new_rows(3, 1)[0])
        assert not np.array_equal(store.get("t", 2), new_rows(4, ROWS)[2])


def test_an_empty_overlay_can_be_asked() -> None:
    """A search ends at an empty bucket: there is one, whatever was dropped."""
    overlay = Overlay(4 * DIM)
    positions = np.arange(5)
    rows = np.full((5, 4 * DIM), 7, np.uint8)
    for _ in range(2):
        assert overlay.count == 0
        assert find(overlay.buckets, 0, 3) == -1
        overlay.put(positions, rows, np.ones(5, np.uint64))
        overlay.drop(1)
    assert overlay.buckets.size


def test_of_two_updates_of_a_row_the_later_one_stays_in_whatever_order_they_come() -> None:
    """The journal numbers them, and threads bring them to DRAM in an order of their own."""
    overlay = Overlay(4 * DIM)
    position = np.array([3])
    for sequence in (2, 1, 4, 3):
        rows = np.full((1, 4 * DIM), sequence, np.uint8)
        overlay.put(position, rows, np.array([sequence], np.uint64))
    assert (overlay.data[find(overlay.buckets, 0, 3)] == 4).all()
    assert overlay.count == 1
    overlay.drop(3)
    assert overlay.count == 1


def test_what_was_read_before_a_flush_does_not_enter_the_cache_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = load(tmp_path / "s", "memory", placement="shuffled")
    read, go = threading.Event(), threading.Event()
    multi_get = MemoryAdapter.multi_get

    def held(self: MemoryAdapter, *arguments: Any, **named: Any) -> Any:
        found = multi_get(self, *arguments, **named)
        if threading.current_thread() is reader:
            read.set()
            assert go.wait(20)
        return found

    monkeypatch.setattr(MemoryAdapter, "multi_get", held)
    with bandana_kv.open(path, cache_bytes=100_000) as store:
        reader = threading.Thread(target=store.multi_get, args=("t", [7]))
        reader.start()
        assert read.wait(20)
        store.update("t", [7], new_rows(1, 1))
        store.flush()
        go.set()
        reader.join()
        for _ in range(2):
            assert np.array_equal(store.multi_get("t", [7]), new_rows(1, 1))
        store.check()


def test_who_follows_notices_what_goes_into_blocks_while_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = load(tmp_path / "s")
    replay = following.replay
    with bandana_kv.open(path) as store:
        follower = following.Follower(path)
        store.update("t", [7], new_rows(1, 1))

        def overtaken(*given: Any) -> None:
            replay(*given)
            store.flush()

        monkeypatch.setattr(following, "replay", overtaken)
        assert not follower.catch_up([])


def test_who_follows_notices_what_was_cut_off(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path) as store:
        store.update("t", [7], new_rows(1, 1))
        follower = following.Follower(path)
        (journal,) = journal_files(path)
        os.truncate(journal, journal.stat().st_size - 1)
        assert not follower.catch_up([])
