"""Where pooled rows come from: DRAM, blocks, updates, the fallback; and while all of it changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters import block_keys
from bandana_kv.adapters.contract import Keys, Payloads
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.errors import BlockCorruptError, DeadlineError, FallbackError
from bandana_kv.logs.recording import read_recording
from bandana_kv.serve import bags

PER_BLOCK, BLOCKS, DIM = 31, 40, 32
COUNT = PER_BLOCK * BLOCKS
ROWS = np.random.default_rng(0).random((COUNT, DIM), np.float32)
OTHERS = np.random.default_rng(1).random((COUNT, DIM), np.float32)
PATIENCE_S = 30.0


def sums(rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the sum of each bag of ids (bags, n), one addition after the other."""
    found = np.zeros((ids.shape[0], rows.shape[1]), rows.dtype)
    for column in ids.T:
        found += rows[column]
    return found


@pytest.fixture(params=["blockfile", "lmdb", "rocksdb", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tables = {"t": ROWS, "u": OTHERS}
    bandana_kv.load(tmp_path / "s", tables, adapter=request.param, placement="identity")
    return tmp_path / "s"


@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("several", [False, True])
def test_hits_misses_and_both_count_as_multi_get_does(
    path: Path, several: bool, coalesce: bool
) -> None:
    """As many blocks are read, and the same rows are cached afterwards."""
    rng = np.random.default_rng(2)
    many = [rng.integers(0, COUNT, (rng.integers(1, 9), 6)) for _ in range(40)]
    many += [many[-1], np.repeat(many[-1], 40, axis=0), rng.integers(0, COUNT, (200, 6))]
    size: dict[str, Any] = {"cache_bytes": 150_000, "coalesce": coalesce, "admission": "all"}
    with bandana_kv.open(path, **size) as pooling, bandana_kv.open(path, **size) as getting:
        kinds = set()
        for ids in many:
            hits = getting.stats()["t"]["hits"]
            if several:
                wanted = {"t": ids.reshape(-1), "u": ids[0]}
                found = pooling.embedding_bag({"t": (ids, None), "u": (ids[:1], None)}, mode="sum")
                rows = getting.multi_get(wanted)
                assert np.array_equal(found["u"], sums(OTHERS, ids[:1]))
                assert np.array_equal(found["t"], sums(ROWS, ids))
                assert np.array_equal(rows["t"], ROWS[wanted["t"]])
            else:
                found = pooling.embedding_bag("t", ids, mode="sum")
                assert np.array_equal(found, sums(ROWS, ids))
                getting.multi_get("t", ids.reshape(-1))
            hits = getting.stats()["t"]["hits"] - hits
            kinds.add("none" if hits == 0 else "all" if hits == ids.size else "some")
        assert kinds >= {"all", "some"}
        assert pooling.stats() == getting.stats()
        assert pooling.stats()["t"]["neighbours_admitted"] > 0
        pooling.check()


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_updated_rows_are_pooled_before_and_after_they_are_in_blocks(
    path: Path, cache_bytes: int
) -> None:
    rng = np.random.default_rng(3)
    rows = ROWS.copy()
    with bandana_kv.open(path, cache_bytes) as store:
        store.multi_get("t", rng.integers(0, COUNT, 300))
        for turn in range(12):
            ids = rng.choice(COUNT, 50, replace=False)
            rows[ids] = rng.random((50, DIM), np.float32)
            store.update("t", ids, rows[ids])
            if turn % 4 == 3:
                store.flush()
            # of updated rows alone; of some; of none
            for each in (ids.reshape(5, 10), np.stack([ids, ids[::-1] // 2]).T, rows_beside(ids)):
                assert np.array_equal(store.embedding_bag("t", each, mode="sum"), sums(rows, each))
        store.check()


def rows_beside(ids: np.ndarray) -> np.ndarray:
    return np.setdiff1d(np.arange(COUNT), ids)[:600].reshape(60, 10)


def test_requests_are_recorded_and_another_version_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bandana_kv.load(path, {"t": ROWS, "u": OTHERS})
    with bandana_kv.open(path) as store:
        with store.record(tmp_path / "log"):
            store.embedding_bag("t", [3, 1, 2], [0, 2], padding_idx=1)
            store.embedding_bag({"t": ([4], [0]), "u": ([5, 6], [0])})
        bandana_kv.load(path, {"t": ROWS + 1, "u": OTHERS})
        store.refresh()
        assert np.array_equal(store.embedding_bag("t", [[7]]), ROWS[[7]] + 1)
    found = read_recording(tmp_path / "log")
    asked = {"t": [[3, 2], [4]], "u": [[5, 6]]}
    for name, requests in asked.items():
        log = found.log(name)
        assert [log.request(k).tolist() for k in range(log.requests)] == requests


# -- blocks that do not come -------------------------------------------------------------------


class Stuck(MemoryAdapter):
    """Keeps whoever reads certain blocks waiting; fails where it is told to."""

    engine_errors = (OSError,)

    def __init__(self) -> None:
        super().__init__()
        self.stuck: set[int] = set()
        self.let_go = threading.Event()
        self.broken = False
        self.reads = 0

    def _read(self, keys: Keys, out: Payloads) -> None:
        self.reads += len(keys)
        if set((keys & np.uint64((1 << 40) - 1)).tolist()) & self.stuck:
            assert self.let_go.wait(PATIENCE_S)
        if self.broken:
            raise OSError(5, "Input/output error")
        super()._read(keys, out)


Open = Callable[..., bandana_kv.EmbeddingStore]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Stuck]:
    stuck = Stuck()
    bandana_kv.load(tmp_path, {"t": ROWS}, adapter=stuck, placement="identity")
    yield stuck
    stuck.let_go.set()


@pytest.fixture
def opened(engine: Stuck, tmp_path: Path) -> Iterator[Open]:
    stores: list[bandana_kv.EmbeddingStore] = []

    def open_store(**options: Any) -> bandana_kv.EmbeddingStore:
        options = {"admission": "all", "cache_bytes": 1 << 20, "readers": 4} | options
        stores.append(bandana_kv.open(tmp_path, adapter=engine, **options))
        return stores[-1]

    yield open_store
    engine.let_go.set()
    for store in stores:
        store.close()


def tear(engine: Stuck, store: bandana_kv.EmbeddingStore, block: int) -> None:
    key = block_keys(store._tables["t"].stored.space, [block])
    payload = engine.multi_get(key)
    payload[0, 2000] ^= 1
    engine.put_many(key, payload)


def of_the_fallback(_: str, ids: np.ndarray) -> np.ndarray:
    return -ROWS[ids]


def with_negative(blocks: set[int]) -> np.ndarray:
    """Return the rows, negative those that come from the fallback."""
    rows = ROWS.copy()
    for block in blocks:
        rows[block * PER_BLOCK : (block + 1) * PER_BLOCK] *= -1
    return rows


# bags of rows in DRAM, of blocks that come, of one that does not, and of all these
BAGS = np.array([[0, 1, 2], [70, 35, 64], [160, 161, 185], [1, 71, 160], [0, 2, 1], [186, 155, 0]])


@pytest.mark.parametrize("options", [{}, {"deadline_ms": 20_000}, {"coalesce": False}], ids=str)
@pytest.mark.parametrize("several", [False, True])
def test_bad_blocks_are_pooled_from_the_fallback(
    engine: Stuck, opened: Open, options: dict[str, Any], several: bool
) -> None:
    store = opened(fallback=of_the_fallback, **options)
    tear(engine, store, 5)
    store.multi_get("t", [0, 1, 2])
    asked: Any = ({"t": (BAGS, None)},) if several else ("t", BAGS)
    for _ in range(2):
        found: Any = store.embedding_bag(*asked, mode="sum")
        assert np.array_equal(found["t"] if several else found, sums(with_negative({5}), BAGS))
    assert store.stats()["t"]["fallback_rows"] == 2 * 5
    store.check()


def test_without_a_fallback_a_bad_block_is_an_error(engine: Stuck, opened: Open) -> None:
    store = opened()
    tear(engine, store, 5)
    with pytest.raises(BlockCorruptError, match="'t'"):
        store.embedding_bag("t", BAGS)
    assert np.array_equal(store.embedding_bag("t", BAGS[:2], mode="sum"), sums(ROWS, BAGS[:2]))
    assert not store._tables["t"]._in_flight.count


def test_a_fallback_that_fails_is_an_error(engine: Stuck, opened: Open) -> None:
    def broken(_: str, _ids: np.ndarray) -> np.ndarray:
        raise OSError("no")

    store = opened(fallback=broken)
    tear(engine, store, 5)
    with pytest.raises(FallbackError):
        store.embedding_bag("t", BAGS)
    assert not store._tables["t"]._in_flight.count


def test_late_blocks_are_pooled_from_the_fallback_and_enter_the_cache_when_they_come(
    engine: Stuck, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out = []

    def keep(*arguments: Any) -> Any:
        laid_out.append(bags_of(*arguments))
        return laid_out[-1]

    bags_of = bags._bags_of
    monkeypatch.setattr(bags, "_bags_of", keep)
    store = opened(fallback=of_the_fallback, deadline_ms=500)
    store.multi_get("t", np.concatenate([BAGS[0], BAGS[1]]))
    engine.stuck = {5}
    out = np.empty((6, DIM), np.float32)
    store.embedding_bag("t", BAGS, mode="sum", out=out)
    rows = with_negative({5})
    # The last one has a row of block 6, which may be read with block 5, and be late with it.
    assert np.array_equal(out[:5], sums(rows, BAGS[:5]))
    out.fill(7)
    words = laid_out[0].held[0]
    as_left = words.copy()
    engine.let_go.set()
    begun = time.monotonic()
    while store._tables["t"]._in_flight.count:
        assert time.monotonic() - begun < PATIENCE_S
        time.sleep(0.001)
    # What the caller got, and what would be free by now, is not written again.
    assert (out == 7).all()
    assert np.array_equal(words, as_left)
    before = engine.reads
    store._deadline_ms = None
    assert np.array_equal(store.embedding_bag("t", BAGS, mode="sum"), sums(ROWS, BAGS))
    assert engine.reads == before
    store.check()


def test_a_deadline_without_a_fallback_is_an_error(engine: Stuck, opened: Open) -> None:
    store = opened(deadline_ms=30)
    engine.stuck = set(range(BLOCKS))
    with pytest.raises(DeadlineError, match="within 30 ms"):
        store.embedding_bag("t", [[0, 40]])


def test_an_open_breaker_pools_rows_of_the_fallback_unread(engine: Stuck, opened: Open) -> None:
    store = opened(fallback=of_the_fallback)
    engine.broken = True
    for row in range(5):
        assert np.array_equal(store.embedding_bag("t", [[row]]), -ROWS[[row]])
    assert store.stats()["t"]["breaker_open"] == 1
    before = engine.reads
    found = store.embedding_bag("t", BAGS, mode="sum")
    assert np.array_equal(found, sums(-ROWS, BAGS))
    assert engine.reads == before


# -- many at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["blockfile", "lmdb"])
@pytest.mark.parametrize("bytes_per_cache", [30_000, 200_000])
def test_sums_are_never_wrong_under_updates_and_evictions(
    tmp_path: Path, adapter: str, bytes_per_cache: int
) -> None:
    """Row i is i in every column, plus a multiple of 1024 that updates raise.

    So a torn row gives columns that differ, and a wrong row another remainder.
    """
    count, dim, seconds = 1000, 48, 2.0
    rows = np.repeat(np.arange(count, dtype=np.float32)[:, None], dim, axis=1)
    bandana_kv.load(tmp_path, {"t": rows, "u": rows}, adapter=adapter, placement="shuffled")
    wrong: list[str] = []
    pooled = [0] * 4
    until = time.monotonic() + seconds
    with bandana_kv.open(tmp_path, bytes_per_cache, admission="all") as store:

        def pool(number: int) -> None:
            rng = np.random.default_rng(number)
            while time.monotonic() < until and not wrong:
                ids = (count * rng.random((rng.integers(1, 30), 8)) ** 2).astype(np.int64)
                if number % 2:
                    found = store.embedding_bag("t", ids, mode="sum")
                else:
                    wanted = {"t": (ids, None), "u": (ids, None)}
                    found = np.concatenate(list(store.embedding_bag(wanted, mode="sum").values()))
                    ids = np.concatenate([ids, ids])
                if (found != found[:, :1]).any():
                    wrong.append(f"torn: {found}")
                if (found[:, 0] % 1024 != ids.sum(axis=1) % 1024).any():
                    wrong.append(f"other rows: {ids} {found[:, 0]}")
                pooled[number] += 1

        def update() -> None:
            rng, turn = np.random.default_rng(9), 0
            while time.monotonic() < until and not wrong:
                turn = turn % 60 + 1
                ids = rng.choice(count, 100, replace=False)
                new = np.repeat((ids + 1024.0 * turn)[:, None], dim, axis=1)
                store.update("t", ids, new)
                if turn % 7 == 0:
                    store.flush()

        threads = [threading.Thread(target=pool, args=(number,)) for number in range(4)]
        threads.append(threading.Thread(target=update))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert min(pooled) > 10
        store.check()
