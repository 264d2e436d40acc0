"""Readers of LMDB that are killed leave their slots taken, until the living take them back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters import lmdb_environment
from bandana_kv.adapters.lmdb import LmdbAdapter
from bandana_kv.adapters.rows import open_rows
from bandana_kv.errors import AdapterError

ROWS = np.random.default_rng(0).random((300, 8), np.float32)


def in_killed_child(work: Callable[[], object]) -> None:
    if not (child := os.fork()):
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def fill(directory: Path) -> None:
    """Die with as many transactions open as there may be."""

    def read() -> None:
        environment = lmdb.open(str(directory), readonly=True, max_readers=1024, max_dbs=4)
        held = []
        while True:
            held.append(environment.begin())

    in_killed_child(read)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter="lmdb")
    return tmp_path / "s"


def environment_of(path: Path) -> Path:
    return path / "segments/000001/blocks-1"


def check(store: bandana_kv.EmbeddingStore) -> None:
    assert np.array_equal(store.multi_get("t", [299, 4]), ROWS[[299, 4]])


@pytest.mark.parametrize("tidied_lately", [False, True])
@pytest.mark.parametrize("options", [{}, {"deadline_ms": 10_000.0}], ids=str)
def test_who_serves_goes_on_and_others_can_open(
    path: Path, tidied_lately: bool, options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    if tidied_lately:
        monkeypatch.setattr(lmdb_environment, "_TIDY_S", 1e9)
    with bandana_kv.open(path, cache_bytes=0, **options) as store:
        check(store)
        for _ in range(3):
            fill(environment_of(path))
            # A thread without a slot of its own is what meets the full table.
            check(store)
            with LmdbAdapter.open_existing(environment_of(path), read_only=True, pages=1):
                check(store)
        store.update("t", [4], ROWS[4:5])
        store.flush()
        fill(environment_of(path))
        bandana_kv.load(path, {"t": ROWS}, adapter="lmdb")
        store.refresh()
        check(store)


def test_a_process_that_opens_waits_for_one_that_reads(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=0) as store:
        check(store)
        fill(environment_of(path))
        ready, begun = os.pipe()
        if not (child := os.fork()):
            os.write(begun, b"x")
            with bandana_kv.open(path, cache_bytes=0) as own:
                check(own)
            os._exit(0)
        os.read(ready, 1)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            check(store)


def test_where_nobody_reads_opening_says_what_to_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_environment, "_OPEN_PATIENCE_S", 0.1)
    ready, opened = os.pipe()
    done, end = os.pipe()
    if not (child := os.fork()):
        idle = lmdb.open(str(environment_of(path)), readonly=True, max_readers=1024)
        os.write(opened, b"x")
        os.read(done, 1)
        idle.close()
        os._exit(0)
    os.read(ready, 1)
    fill(environment_of(path))
    with pytest.raises(AdapterError, match="all 1024 slots of its table of readers are taken, by"):
        bandana_kv.open(path)
    os.write(end, b"x")
    os.waitpid(child, 0)
    with bandana_kv.open(path) as store:
        check(store)


@pytest.mark.parametrize("tidied_lately", [False, True])
def test_of_rows_by_key(
    tmp_path: Path, tidied_lately: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tidied_lately:
        monkeypatch.setattr(lmdb_environment, "_TIDY_S", 1e9)
    rows = str(tmp_path / "rows")
    with lmdb.open(rows, map_size=1 << 24) as written, written.begin(write=True) as txn:
        for each in range(300):
            txn.put(each.to_bytes(8, "big"), ROWS[each].tobytes())
    with open_rows("lmdb", tmp_path / "rows", key="uint64-be") as source:
        for _ in range(2):
            fill(tmp_path / "rows")
            assert np.array_equal(source.rows("t", np.arange(300)), ROWS)


def test_of_a_handle_of_the_users(tmp_path: Path) -> None:
    own = str(tmp_path / "own")
    with lmdb.open(
        own, map_size=1 << 24, max_readers=1024, max_dbs=2, readahead=False
    ) as environment:
        adapter = LmdbAdapter.on(environment, environment.open_db(b"blocks"))
        bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter=adapter)
        with bandana_kv.open(tmp_path / "s", adapter=adapter, cache_bytes=0) as store:
            fill(tmp_path / "own")
            check(store)
