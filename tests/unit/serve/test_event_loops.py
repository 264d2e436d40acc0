"""Requests of event loops: any number pending, cancelled, failing, of loops and stores that end."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters import blockfile_queue
from bandana_kv.adapters.blockfile import BlockfileAdapter
from bandana_kv.adapters.contract import Adapter
from bandana_kv.errors import (
    AdapterError,
    BlockCorruptError,
    DeadlineError,
    IdError,
    InputError,
)
from bandana_kv.serve import event_loops
from bandana_kv.testing.faults import Faults, FaultyAdapter, injecting

ROWS, DIM = 20_000, 32
TABLE = np.random.default_rng(0).random((ROWS, DIM), np.float32)
READERS = 4
ENTRIES_LOCK, ALONE = 0, 1 << 32
Store = bandana_kv.EmbeddingStore


@pytest.fixture(params=["blockfile", "lmdb", "rocksdb", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    bandana_kv.load(tmp_path / "s", {"t": TABLE}, adapter=request.param, placement="shuffled")
    return tmp_path / "s"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with bandana_kv.open(path, 200_000, readers=READERS) as opened:
        yield opened


only_blockfile = pytest.mark.parametrize("path", ["blockfile"], indirect=True)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it in a loop of its own; what hangs fails."""

    async def bounded() -> Any:
        return await asyncio.wait_for(work, 60)

    return asyncio.run(bounded())


def names() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("bandana-kv")]


def quiet(store: Store, *, ahead: bool = False) -> bool:
    """Whether all claims and versions are left, soon; but for blocks that were read ahead."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        busy = sum(table._in_flight.count for table in store._tables.values())
        if (ahead or not busy) and not store._current.serving.inside:
            return True
        time.sleep(0.01)
    return False


def pending(store: Store) -> int:
    return sum(len(loop.requests) for loop in store._loops._loops.values())


async def ask(store: Store, ids: np.ndarray) -> np.ndarray:
    return np.array(await asyncio.gather(*(store.multi_get_async("t", each) for each in ids)))


@pytest.mark.parametrize("what", ["hits", "misses", "mixed"])
def test_ten_thousand_requests_are_pending_at_once(store: Store, what: str) -> None:
    rng = np.random.default_rng(1)
    if what == "hits":
        ids = np.arange(30_000).reshape(-1, 3) % 60
        store.multi_get("t", np.arange(60))
        store.multi_get("t", np.arange(60))
    else:
        ids = rng.integers(0, ROWS, (10_000, 3))
    most = [0, 0]

    async def main() -> None:
        tasks = [asyncio.create_task(store.multi_get_async("t", each)) for each in ids]
        for task in tasks:
            task.add_done_callback(lambda _: most.__setitem__(1, max(most[1], len(names()))))
        await asyncio.sleep(0)
        most[0] = pending(store)
        found = np.array(await asyncio.gather(*tasks))
        assert np.array_equal(found, TABLE[ids])
        if what == "mixed":
            some = rng.integers(0, ROWS, (2_000, 5))
            assert np.array_equal(await ask(store, some), TABLE[some])

    run(main())
    assert most[0] > 5_000 or what == "hits"
    assert most[1] <= 2 * READERS + 1
    assert quiet(store)
    store.check()


@only_blockfile
def test_one_thread_reads_for_all(store: Store) -> None:
    before = len(names())
    run(ask(store, np.arange(ROWS).reshape(-1, 4)))
    assert len(names()) == before + 1
    assert store.stats()["t"]["lookups"] == ROWS
    store.close()
    assert not names()


def test_a_block_that_many_ask_for_is_read_a_few_times(store: Store) -> None:
    run(ask(store, np.full((2_000, 1), 7)))
    assert store.stats()["t"]["block_reads"] < 100
    assert quiet(store)


def test_ids_in_any_form_and_a_larger_request(store: Store) -> None:
    many = np.random.default_rng(2).integers(0, ROWS, (50, 80))
    for ids in (many, many.astype(np.int32), many.astype(np.uint32), many.tolist(), [[]]):
        wanted = TABLE[np.array(ids, np.int64)]
        assert np.array_equal(run(store.multi_get_async("t", ids)), wanted)
    out = np.empty((50, 80, DIM), np.float32)
    assert run(store.multi_get_async("t", many, out=out)) is out
    assert np.array_equal(out, TABLE[many])
    with pytest.raises(IdError, match=str(ROWS)):
        run(store.multi_get_async("t", [0, ROWS]))
    assert quiet(store)


def test_a_call_that_blocks_its_loop_gets_what_that_loop_waits_for(store: Store) -> None:
    async def main() -> None:
        ids = np.arange(300)
        waiting = [asyncio.create_task(store.multi_get_async("t", [id])) for id in ids]
        await asyncio.sleep(0)
        assert np.array_equal(store.multi_get("t", ids), TABLE[ids])
        assert np.array_equal(np.array(await asyncio.gather(*waiting))[:, 0], TABLE[ids])

    run(main())


@only_blockfile
def test_blocks_that_another_thread_reads_are_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, read = threading.Event(), Adapter.multi_get

    def held(*arguments: Any, **named: Any) -> Any:
        assert go.wait(20)
        return read(*arguments, **named)

    monkeypatch.setattr(BlockfileAdapter, "multi_get", held)
    placed = store.placement("t")
    block_of = placed.position_of_id // placed.rows_per_block
    others = np.flatnonzero(~np.isin(block_of, block_of[:200]))[:100].reshape(-1, 1)
    store.prefetch("t", np.arange(200))

    async def main() -> None:
        waiting = asyncio.ensure_future(ask(store, np.arange(200).reshape(-1, 2)))
        found = await ask(store, others)  # these do not wait for those
        assert np.array_equal(found, TABLE[others])
        assert not waiting.done()
        go.set()
        assert np.array_equal(await waiting, TABLE[np.arange(200).reshape(-1, 2)])

    run(main())
    assert quiet(store)


# -- cancelled ------------------------------------------------------------------------------------


def test_requests_are_cancelled_at_any_time(store: Store) -> None:
    rng = np.random.default_rng(3)
    outs = np.zeros((3_000, 3, DIM), np.float32)
    ids = rng.integers(0, ROWS, (3_000, 3))

    async def main() -> None:
        tasks = []
        for each, out in zip(ids, outs, strict=True):
            tasks.append(asyncio.create_task(store.multi_get_async("t", each, out=out)))
            if rng.random() < 0.3:
                await asyncio.sleep(0)
            if rng.random() < 0.7:
                tasks[rng.integers(len(tasks))].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task, each, out in zip(tasks, ids, outs, strict=True):
            if task.cancelled():
                assert not out.any()
            else:
                assert np.array_equal(out, TABLE[each])
        assert any(task.cancelled() for task in tasks)
        assert np.array_equal(await ask(store, ids[:500]), TABLE[ids[:500]])

    run(main())
    store._loops.hear()
    assert quiet(store)
    store.check()


@only_blockfile
def test_what_is_cancelled_before_it_is_begun_is_not_read(store: Store) -> None:
    (served,) = store._tables.values()

    async def main() -> None:
        served.flights[ENTRIES_LOCK] = ALONE  # nothing can be claimed
        tasks = [asyncio.create_task(store.multi_get_async("t", [id])) for id in range(2_000)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        served.flights[ENTRIES_LOCK] = 0
        assert np.array_equal(await store.multi_get_async("t", [3]), TABLE[[3]])

    run(main())
    assert store.stats()["t"]["block_reads"] <= 2
    assert quiet(store)


# -- loops that end, and stores that close --------------------------------------------------------


def test_a_loop_that_ends_keeps_nothing(path: Path) -> None:
    with bandana_kv.open(path, 0, readers=READERS) as store:
        ids = np.arange(1_000)
        for _ in range(3):

            async def main() -> None:
                tasks = [asyncio.create_task(store.multi_get_async("t", [id])) for id in ids]
                await asyncio.sleep(0)
                assert not any(task.done() for task in tasks)

            asyncio.run(main())  # which cancels them
            assert np.array_equal(store.multi_get("t", ids), TABLE[ids])
        loop = asyncio.new_event_loop()
        task = loop.create_task(store.multi_get_async("t", [15_000]))
        loop.run_until_complete(asyncio.sleep(0))  # and is never run again
        assert np.array_equal(store.multi_get("t", [15_000]), TABLE[[15_000]])
        old = store._current.serving
        bandana_kv.load(path, {"t": TABLE + 1})
        end = time.monotonic() + 20
        while not old.closed.is_set() and time.monotonic() < end:
            store.refresh()
            time.sleep(0.01)
        assert old.closed.is_set()
        assert np.array_equal(run(store.multi_get_async("t", [5])), TABLE[[5]] + 1)
        assert np.array_equal(loop.run_until_complete(task), TABLE[[15_000]])
        loop.close()
        del loop
        gc.collect()
        store.refresh()  # from when on it is known to be idle
        time.sleep(event_loops._KEPT_S + 0.1)
        store.refresh()
        assert len(store._loops._loops) + len(store._loops._ended) == 0
    assert not names()


@pytest.mark.parametrize("by", ["its own thread", "another thread"])
def test_a_store_that_closes_answers_what_is_pending(path: Path, by: str) -> None:
    ids = np.random.default_rng(5).integers(0, ROWS, (3_000, 2))

    async def main() -> None:
        store = bandana_kv.open(path, 0, readers=READERS)
        tasks = [asyncio.create_task(store.multi_get_async("t", each)) for each in ids]
        await asyncio.sleep(0)
        if by == "another thread":
            await asyncio.to_thread(store.close)
        else:
            store.close()
        assert np.array_equal(np.array(await asyncio.gather(*tasks)), TABLE[ids])
        with pytest.raises(InputError, match="closed"):
            await store.multi_get_async("t", [1])

    run(main())
    assert not names()


def test_loops_in_several_threads(store: Store) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            for _ in range(3):
                ids = rng.integers(0, ROWS, (400, 3))
                if not np.array_equal(run(ask(store, ids)), TABLE[ids]):
                    wrong.append(number)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert quiet(store)


def test_a_child_begins_anew_and_leaves_its_parents_requests_alone(store: Store) -> None:
    ids = np.random.default_rng(6).integers(0, ROWS, (2_000, 2))

    async def main() -> None:
        tasks = [asyncio.create_task(store.multi_get_async("t", each)) for each in ids]
        await asyncio.sleep(0)
        child = os.fork()
        if not child:
            code = 1
            try:
                asyncio._set_running_loop(None)
                some = np.arange(400).reshape(-1, 2)
                if np.array_equal(run(ask(store, some)), TABLE[some]):
                    code = 0
                store.close()
            finally:
                os._exit(code)
        assert np.array_equal(np.array(await asyncio.gather(*tasks)), TABLE[ids])
        assert os.waitpid(child, 0)[1] == 0

    run(main())
    assert quiet(store)


# -- what goes wrong ------------------------------------------------------------------------------


def damage(path: Path) -> None:
    """Damage one block in ten, below all that checks."""
    for file in path.rglob("*.blocks"):
        with open(file, "r+b") as blocks:
            for at in range(0, file.stat().st_size, 40_960):
                blocks.seek(at + 100)
                blocks.write(b"\xff\x00\xff\x01")


@only_blockfile
def test_damaged_blocks_are_named_and_hurt_no_others(path: Path) -> None:
    damage(path)
    ids = np.random.default_rng(7).integers(0, ROWS, (1_000, 1))
    with bandana_kv.open(path, 0, readers=READERS) as store:

        async def main() -> list[Any]:
            tasks = (store.multi_get_async("t", each) for each in ids)
            return await asyncio.gather(*tasks, return_exceptions=True)

        found = run(main())
        bad = [each for each in found if isinstance(each, BaseException)]
        assert 20 < len(bad) < 500
        assert {type(each) for each in bad} == {BlockCorruptError}
        for rows, each in zip(found, ids, strict=True):
            if not isinstance(rows, BaseException):
                assert np.array_equal(rows, TABLE[each])
        assert quiet(store)
        assert store.stats()["t"]["bad_blocks"] == len(bad)
    with bandana_kv.open(path, 0, fallback=lambda _, ids: TABLE[ids]) as store:
        assert np.array_equal(run(ask(store, ids)), TABLE[ids])
        assert store.stats()["t"]["fallback_rows"] >= len(bad)


@only_blockfile
def test_a_file_that_is_cut_short_names_its_blocks(path: Path) -> None:
    with bandana_kv.open(path, 0, readers=READERS) as store:
        for file in path.rglob("*.blocks"):
            os.truncate(file, file.stat().st_size // 2 // 4096 * 4096)

        async def main() -> list[Any]:
            tasks = (store.multi_get_async("t", [id]) for id in range(500))
            return await asyncio.gather(*tasks, return_exceptions=True)

        found = run(main())
        bad = [each for each in found if isinstance(each, BaseException)]
        assert 150 < len(bad) < 350
        assert all("is 0 bytes long" in str(each) for each in bad)
        assert quiet(store)


def test_an_engine_that_fails_now_and_then(path: Path) -> None:
    faults = Faults(8)
    with injecting(faults), bandana_kv.open(path, 0, readers=READERS) as store:
        assert isinstance(store._tables["t"].stored.adapter, FaultyAdapter)
        faults.probability = 0.02
        ids = np.random.default_rng(8).integers(0, ROWS, (1_000, 1))

        async def main() -> list[Any]:
            tasks = (store.multi_get_async("t", each) for each in ids)
            return await asyncio.gather(*tasks, return_exceptions=True)

        found = run(main())
        faults.probability = 0.0
        bad = [each for each in found if isinstance(each, BaseException)]
        assert bad
        assert all(isinstance(each, (AdapterError, BlockCorruptError)) for each in bad)
        good = [at for at, each in enumerate(found) if not isinstance(each, BaseException)]
        assert np.array_equal(np.array([found[at] for at in good]), TABLE[ids[good]])
        assert quiet(store)


def test_a_deadline_that_is_missed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Adapter.multi_get

    def late(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.2)
        return read(*arguments, **named)

    with bandana_kv.open(path, 0, deadline_ms=50, readers=READERS) as store:
        monkeypatch.setattr(Adapter, "multi_get", late)
        with pytest.raises(DeadlineError, match="within 50 ms"):
            run(store.multi_get_async("t", [1]))
        monkeypatch.undo()
        time.sleep(0.3)
        assert np.array_equal(run(store.multi_get_async("t", [9_000])), TABLE[[9_000]])


@only_blockfile
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.ENOMEM])
def test_without_rings_a_few_threads_read(
    store: Store,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(blockfile_queue, "Ring", refused)
    blockfile_queue._say.cache_clear()
    ids = np.random.default_rng(9).integers(0, ROWS, (3_000, 2))
    for _ in range(2):
        assert np.array_equal(run(ask(store, ids)), TABLE[ids])
    assert len(names()) <= READERS
    said = [each for each in caplog.records if "no io_uring for event loops" in each.message]
    assert len(said) == 1
    assert os.strerror(number) in said[0].message


@only_blockfile
def test_a_ring_that_fails_is_done_without(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    ids = np.random.default_rng(10).integers(0, ROWS, (3_000, 2))

    async def main() -> None:
        await ask(store, ids[:100])
        (reader,) = store._loops._readers.values()
        assert reader._queue is not None
        waiting = asyncio.ensure_future(ask(store, ids))
        await asyncio.sleep(0)
        ring = reader._queue._held[1]
        handle, ring[0] = int(ring[0]), 1 << 20
        assert np.array_equal(await waiting, TABLE[ids])
        assert np.array_equal(await ask(store, ids), TABLE[ids])
        ring[0] = handle
        assert not reader.takes

    run(main())
    assert "io_uring failed" in caplog.text
    assert quiet(store)


# -- while all else changes -----------------------------------------------------------------------


class Turns:
    """A table whose row `id` is ``id * 1000 + turn`` throughout; turns only rise."""

    def __init__(self, store: Store, count: int) -> None:
        self.store = store
        self.count = count
        self.turns = np.zeros(count, np.int64)
        self.over = threading.Event()
        self.wrong: list[object] = []

    @staticmethod
    def rows(ids: np.ndarray, turns: np.ndarray) -> np.ndarray:
        return (1000.0 * ids + turns)[:, None] + np.zeros((1, 8))

    def judge(self, ids: np.ndarray, least: np.ndarray, rows: np.ndarray) -> None:
        turn = rows - 1000.0 * ids[:, None]
        if (turn != turn[:, :1]).any() or (turn[:, 0] < least).any():
            self.wrong.append((ids, least, rows))

    def in_thread(self, work: Callable[[np.random.Generator], None], seed: int) -> threading.Thread:
        def body() -> None:
            rng = np.random.default_rng(seed)
            try:
                while not self.over.is_set():
                    work(rng)
            except BaseException as error:
                self.wrong.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    def change(self, rng: np.random.Generator) -> None:
        ids = rng.choice(self.count, 50, replace=False)
        self.store.update("t", ids, self.rows(ids, self.turns[ids] + 1))
        self.turns[ids] += 1
        if rng.random() < 0.15:
            self.store.flush()
        if rng.random() < 0.03:
            served = self.store.placement("t")
            order = rng.permutation(self.count).astype(np.uint32)
            self.store.place_anew("t", type(served)(order, served.rows_per_block, "shuffled"))
        self.store.refresh()
        time.sleep(0.002)

    def look(self, rng: np.random.Generator) -> None:
        ids = rng.integers(0, self.count, 5)
        least = self.turns[ids]
        self.judge(ids, least, self.store.multi_get("t", ids))
        self.store.prefetch("t", rng.integers(0, self.count, 20))

    async def ask(self, ids: np.ndarray) -> None:
        least = self.turns[ids]
        self.judge(ids, least, await self.store.multi_get_async("t", ids))

    async def ask_many(self) -> None:
        rng = np.random.default_rng(13)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            await asyncio.gather(*(self.ask(rng.integers(0, self.count, 4)) for _ in range(200)))


@pytest.mark.parametrize("path", ["blockfile", "lmdb"], indirect=True)
def test_rows_are_whole_and_never_old_while_all_else_changes(path: Path) -> None:
    count = 3_000
    ids = np.arange(count)
    bandana_kv.load(path, {"t": Turns.rows(ids, np.zeros(count))}, keep=1)
    with bandana_kv.open(path, 40_000, readers=READERS) as store:
        turns = Turns(store, count)
        threads = [turns.in_thread(turns.change, 1)]
        threads += [turns.in_thread(turns.look, seed) for seed in (2, 3)]
        try:
            run(turns.ask_many())
        finally:
            turns.over.set()
            for thread in threads:
                thread.join()
        assert not turns.wrong, turns.wrong[0]
        assert turns.turns.max() > 1
        assert quiet(store, ahead=True)
        store.check()


def test_with_another_event_loop(store: Store) -> None:
    uvloop = pytest.importorskip("uvloop")
    ids = np.random.default_rng(14).integers(0, ROWS, (2_000, 2))
    loop = uvloop.new_event_loop()
    assert np.array_equal(loop.run_until_complete(ask(store, ids)), TABLE[ids])
    loop.close()


def test_without_a_descriptor_to_spare_the_loop_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "eventfd", refused)
            assert np.array_equal(await store.multi_get_async("t", [5, 9]), TABLE[[5, 9]])
        assert np.array_equal(await store.multi_get_async("t", [7_000]), TABLE[[7_000]])

    run(main())
    assert quiet(store)
