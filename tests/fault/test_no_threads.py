"""A thread that cannot be started, for a moment, breaks nothing for good."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import ThreadError
from bandana_kv.metrics import exporter

ROWS = np.random.default_rng(0).random((3000, 32), np.float32)
IDS = np.random.default_rng(1).permutation(3000)[:2000]
ENGINES = ["blockfile", "lmdb", "rocksdb"]


class Limit:
    """Lets no thread start while it holds, as the system does at its limit."""

    def __init__(self) -> None:
        self.holds = False
        self.after = 0
        self.refused = 0


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Limit]:
    found = Limit()
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if found.holds:
            found.after -= 1
            if found.after < 0:
                found.refused += 1
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    yield found
    found.holds = False


@pytest.fixture(params=ENGINES)
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter=request.param)
    return tmp_path / "s"


def threads() -> list[str]:
    return sorted(each.name for each in threading.enumerate() if each.name.startswith("bandana"))


def check(store: bandana_kv.EmbeddingStore, ids: np.ndarray = IDS) -> None:
    assert np.array_equal(store.multi_get("t", ids), ROWS[ids])


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("options", [{}, {"deadline_ms": 20_000.0}], ids=str)
def test_lookups_read_alone_and_are_helped_again_later(
    path: Path, limit: Limit, options: dict[str, Any], after: int
) -> None:
    def no_rows(table: str, ids: np.ndarray) -> np.ndarray:
        raise AssertionError("the device is well")

    before = threads()
    with bandana_kv.open(path, cache_bytes=0, readers=8, fallback=no_rows, **options) as store:
        limit.holds, limit.after = True, after
        for _ in range(4):
            check(store)
            check(store, IDS[:7])
            store.prefetch("t", IDS[:100])
        assert limit.refused or not options
        limit.holds = False
        for _ in range(3):
            check(store)
            check(store, IDS[:7])
        assert store.stats()["t"]["late_blocks"] == 0
        assert not store.stats()["t"]["breaker_open"]
        assert len(threads()) > len(before) or not options
    assert threads() == before


@pytest.mark.parametrize("after", [0, 1])
def test_of_an_event_loop(path: Path, limit: Limit, after: int) -> None:
    async def ask() -> None:
        parts = np.array_split(IDS, 40)
        found = await asyncio.gather(*(store.multi_get_async("t", part) for part in parts))
        assert np.array_equal(np.concatenate(found), ROWS[IDS])

    with bandana_kv.open(path, cache_bytes=0) as store:
        limit.holds, limit.after = True, after
        asyncio.run(ask())
        # One thread is enough where the engine's reads can be begun without waiting.
        assert limit.refused or (after and type(store._tables["t"].stored.adapter).queue())
        limit.holds = False
        asyncio.run(ask())


def test_who_watches_needs_one_and_opening_leaves_nothing_behind(path: Path, limit: Limit) -> None:
    limit.holds = True
    with pytest.raises(ThreadError, match="no thread could be started; raise the limit"):
        bandana_kv.open(path, watch_seconds=0.1)
    limit.holds = False
    bandana_kv.load(path, {"t": ROWS})
    bandana_kv.load(path, {"t": ROWS})
    assert [each.number for each in bandana_kv.versions(path)] == [2, 3]  # version 1 is not held


@pytest.mark.parametrize("there", [False, True])
def test_a_recorder_needs_one_and_keeps_no_lock(
    path: Path, limit: Limit, tmp_path: Path, there: bool
) -> None:
    where = tmp_path / "a" / "recorded"
    if there:
        where.mkdir(parents=True)
    with bandana_kv.open(path) as store:
        limit.holds = True
        with pytest.raises(ThreadError):
            store.record(where)
        assert (tmp_path / "a").exists() == there
        limit.holds = False
        with store.record(where):
            check(store)
        assert bandana_kv.AccessLog.read(where).lookups == IDS.size


def test_an_exporter_needs_one(path: Path, limit: Limit) -> None:
    with bandana_kv.open(path) as store:
        limit.holds = True
        with pytest.raises(ThreadError):
            exporter.serve(0, store)


def changes(path: Path, rows_file: Path) -> dict[str, Callable[[], Any]]:
    return {
        "load": lambda: bandana_kv.load(path, {"t": ROWS}),
        "load of a file": lambda: bandana_kv.load(path, {"t": rows_file}),
        "repair": lambda: bandana_kv.repair(path, lambda _, ids: ROWS[ids]),
        "verify": lambda: bandana_kv.verify(path),
    }


@pytest.mark.parametrize("what", ["load", "load of a file", "repair", "verify"])
@pytest.mark.parametrize("after", [0, 2])
def test_what_changes_a_store_says_so_or_is_done(
    path: Path, limit: Limit, tmp_path: Path, what: str, after: int
) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    change = changes(path, tmp_path / "rows.npy")[what]
    limit.holds, limit.after = True, after
    with contextlib.suppress(ThreadError):
        change()
    limit.holds = False
    with bandana_kv.open(path, cache_bytes=0) as store:
        check(store)
    assert bandana_kv.verify(path).sound
    change()


def test_at_a_limit_of_the_system(tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("only root may become a user without other processes")
    bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter="blockfile")
    with bandana_kv.open(tmp_path / "s", cache_bytes=0, deadline_ms=20_000) as store:
        check(store)
        child = os.fork()
        if not child:
            try:
                os.setresuid(54_321, 54_321, 54_321)
                resource.setrlimit(resource.RLIMIT_NPROC, (1, 4096))
                with pytest.raises(RuntimeError, match="start new thread"):
                    threading.Thread(target=print).start()
                for _ in range(3):
                    check(store)
                resource.setrlimit(resource.RLIMIT_NPROC, (4096, 4096))
                for _ in range(3):
                    check(store)
                store.close()
                os._exit(0)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
