"""Reading ahead, answering event loops, and small requests beside large ones."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import IdError, InputError, TableNotFoundError
from bandana_kv.serve.table import ServedTable

ROWS, DIM = 20_000, 32
TABLE = np.random.default_rng(0).random((ROWS, DIM), np.float32)


@pytest.fixture(params=["lmdb", "rocksdb", "blockfile", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[bandana_kv.EmbeddingStore]:
    bandana_kv.load(tmp_path / "s", {"t": TABLE}, adapter=request.param, placement="shuffled")
    with bandana_kv.open(tmp_path / "s", 100_000) as opened:
        yield opened


def arrived(store: bandana_kv.EmbeddingStore, reads: int) -> bool:
    """Wait until so many blocks were read."""
    deadline = time.monotonic() + 20
    while store.stats()["t"]["block_reads"] < reads and time.monotonic() < deadline:
        time.sleep(0.01)
    return store.stats()["t"]["block_reads"] >= reads


def test_what_was_read_ahead_is_not_read_again(store: bandana_kv.EmbeddingStore) -> None:
    ids = np.arange(0, 300)
    store.prefetch("t", ids)
    assert arrived(store, 1)
    time.sleep(0.2)
    ahead = store.stats()["t"]["block_reads"]
    assert np.array_equal(store.multi_get("t", ids), TABLE[ids])
    assert store.stats()["t"]["block_reads"] == ahead
    # They were for one lookup: what did not enter the cache is read anew.
    assert np.array_equal(store.multi_get("t", np.arange(ROWS)), TABLE)
    store.check()


def test_reading_ahead_is_bounded_and_harmless(store: bandana_kv.EmbeddingStore) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        store.prefetch("t", rng.integers(0, ROWS, 3000))
    ids = rng.integers(0, ROWS, 5000)
    assert np.array_equal(store.multi_get("t", ids), TABLE[ids])
    (served,) = store._tables.values()
    assert served._in_flight.count <= 1024
    store.prefetch("t", [])


def test_reading_ahead_names_what_is_wrong(store: bandana_kv.EmbeddingStore) -> None:
    with pytest.raises(TableNotFoundError, match="u"):
        store.prefetch("u", [1])
    with pytest.raises(IdError, match=str(ROWS)):
        store.prefetch("t", [0, ROWS])
    store.close()
    with pytest.raises(InputError, match="closed"):
        store.prefetch("t", [1])


def test_reading_ahead_skips_what_is_not_there(store: bandana_kv.EmbeddingStore) -> None:
    store.prefetch("t", [-1, ROWS, 1 << 40], missing="skip")
    assert store.stats()["t"]["block_reads"] == 0
    store.prefetch("t", [[-1, 3], [ROWS, 4]], missing="skip")
    assert arrived(store, 1)
    ahead = store.stats()["t"]["block_reads"]
    rows = store.multi_get("t", [-1, 3, ROWS, 4], missing="zeros")
    assert np.array_equal(rows[[1, 3]], TABLE[[3, 4]])
    assert store.stats()["t"]["block_reads"] == ahead
    with pytest.raises(InputError, match="'error' or 'skip', not 'zeros'"):
        store.prefetch("t", [3], missing="zeros")  # type: ignore[arg-type]


def test_an_event_loop_goes_on_while_rows_are_looked_up(
    store: bandana_kv.EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks, ticked = 0, threading.Event()
    finish = ServedTable.finish

    def finish_late(*arguments: Any) -> None:
        assert ticked.wait(20)
        finish(*arguments)

    monkeypatch.setattr(ServedTable, "finish", finish_late)
    (served,) = store._tables.values()
    monkeypatch.setattr(type(served.stored.adapter), "queue", lambda: None)

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            if ticks == 50:
                ticked.set()
            await asyncio.sleep(0)

    async def main() -> list[np.ndarray]:
        ticking = asyncio.create_task(tick())
        ids = [np.arange(first, ROWS, 50) for first in range(50)]
        rows = await asyncio.gather(*(store.multi_get_async("t", each) for each in ids))
        ticking.cancel()
        return rows

    for first, rows in enumerate(asyncio.run(main())):
        assert np.array_equal(rows, TABLE[first::50])
    assert ticks >= 50
    store.close()
    with pytest.raises(InputError, match="closed"):
        asyncio.run(store.multi_get_async("t", [1]))


def test_threads_with_small_large_and_early_requests_get_their_own_rows(
    store: bandana_kv.EmbeddingStore,
) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(60):
            ids = rng.integers(0, ROWS, rng.choice([1, 40, 3000]))
            if rng.random() < 0.3:
                store.prefetch("t", rng.integers(0, ROWS, 200))
            if not np.array_equal(store.multi_get("t", ids), TABLE[ids]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    store.check()
