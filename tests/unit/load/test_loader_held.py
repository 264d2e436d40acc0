"""Loads into an engine that the user holds already, beside their own keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import numpy as np
import pytest
import rocksdict

import bandana_kv
from bandana_kv.adapters import Adapter, block_keys
from bandana_kv.adapters.lmdb import LmdbAdapter
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.adapters.rocksdb import RocksdbAdapter
from bandana_kv.errors import AdapterError, BandanaError, InputError
from bandana_kv.load import numbers
from bandana_kv.progress import Progress

ROWS = np.random.default_rng(0).random((400, 32), np.float32)
# theirs: short, long, and of 8 bytes with a space that no store uses
THEIRS = {b"user:1": b"ann", b"\x00": b"zero", b"\xff" * 8: b"last", b"\x00\x00\x01" * 9: b"x"}

Engine = tuple[Adapter, Callable[[], dict[bytes, bytes]]]


@contextmanager
def on_lmdb(path: Path) -> Iterator[Engine]:
    with lmdb.open(str(path), readahead=False, map_size=1 << 26, max_dbs=2) as environment:
        database = environment.open_db(b"shared")
        with environment.begin(db=database, write=True) as txn:
            for key, value in THEIRS.items():
                txn.put(key, value)

        def keys() -> dict[bytes, bytes]:
            with environment.begin(db=database) as txn:
                return {bytes(key): bytes(value) for key, value in txn.cursor()}

        with LmdbAdapter.on(environment, database) as adapter:
            yield adapter, keys


@contextmanager
def on_rocksdb(path: Path) -> Iterator[Engine]:
    options = rocksdict.Options(raw_mode=True)
    database = rocksdict.Rdict(str(path), options)
    family = database.create_column_family("shared", rocksdict.Options(raw_mode=True))
    for key, value in THEIRS.items():
        family[key] = value
    with RocksdbAdapter.on(family, strict=False) as adapter:
        yield adapter, lambda: dict(family.items())
    family.close()
    database.close()


@pytest.fixture(params=[on_lmdb, on_rocksdb], ids=["lmdb", "rocksdb"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    (tmp_path / "theirs").mkdir()
    with request.param(tmp_path / "theirs") as held:
        yield held


def spaces(adapter: Adapter, keys: dict[bytes, bytes]) -> set[int]:
    ours = [key for key in keys if key not in THEIRS]
    assert all(len(key) == 8 for key in ours)
    return {int.from_bytes(key, "big") >> 40 for key in ours}


def test_loads_serve_and_old_spaces_go_and_their_keys_stay(engine: Engine, tmp_path: Path) -> None:
    adapter, keys = engine
    seen: set[int] = set()
    for add in range(4):
        bandana_kv.load(tmp_path / "s", {"user": ROWS + add}, adapter=adapter)
        with bandana_kv.open(tmp_path / "s", adapter=adapter, cache_bytes=9000) as store:
            assert np.array_equal(store.multi_get("user", range(400)), ROWS + add)
            store.check()
        stored = keys()
        assert {key: stored[key] for key in THEIRS} == THEIRS
        now = spaces(adapter, stored)
        assert len(now) == min(2, add + 1)
        seen |= now
    assert len(seen) == 4  # no space is used twice


class Stop(Progress):
    def advance(self, count: int) -> None:
        raise KeyboardInterrupt


def test_a_stopped_load_takes_its_blocks_back(engine: Engine, tmp_path: Path) -> None:
    adapter, keys = engine
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter=adapter)
    before = keys()
    with pytest.raises(KeyboardInterrupt):
        bandana_kv.load(tmp_path / "s", {"user": ROWS + 1}, adapter=adapter, progress=Stop())
    assert keys() == before
    with bandana_kv.open(tmp_path / "s", adapter=adapter) as store:
        assert np.array_equal(store.multi_get("user", range(400)), ROWS)


def test_what_a_dead_load_left_is_cleared_by_the_next(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, keys = engine
    with monkeypatch.context() as patch:
        patch.setattr(bandana_kv.disk.manifest, "switch_to", lambda *_: 1 / 0)
        patch.setattr(bandana_kv.disk.retention, "discard", lambda *_: None)  # as if it was killed
        with pytest.raises(ZeroDivisionError):
            bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter=adapter)
    (left,) = spaces(adapter, keys())
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter=adapter)
    assert left not in spaces(adapter, keys())
    assert len(spaces(adapter, keys())) == 1


def test_blocks_that_cannot_be_deleted_now_are_deleted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = MemoryAdapter()

    def fail(space: int) -> None:
        raise AdapterError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(adapter, "delete_space", fail)
        for add in range(3):
            bandana_kv.load(tmp_path, {"user": ROWS + add}, adapter=adapter)
    assert len(list((tmp_path / "segments").iterdir())) == 3
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter="memory")
    assert len(list((tmp_path / "segments").iterdir())) == 4
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter=adapter)
    assert len(list((tmp_path / "segments").iterdir())) == 2
    found = {key >> 40 for key in adapter._blocks.of_key}
    assert len(found) == 1


def test_blocks_in_another_kind_of_engine_wait_for_that_engine(tmp_path: Path) -> None:
    class Other(MemoryAdapter):
        name = "other"

    before, after = MemoryAdapter(), Other()
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter=before)
    for add in range(2):
        bandana_kv.load(tmp_path, {"user": ROWS + add}, adapter=after)
    assert before._blocks.of_key
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter=before)
    assert len({key >> 40 for key in before._blocks.of_key}) == 1


def test_the_wrong_engine_neither_answers_nor_loses_blocks(tmp_path: Path) -> None:
    """Two stores of equal shape in two engines: exchanged, they must not answer."""
    one, other = MemoryAdapter(), MemoryAdapter()
    bandana_kv.load(tmp_path / "one", {"user": ROWS}, adapter=one)
    bandana_kv.load(tmp_path / "other", {"user": ROWS + 1}, adapter=other)
    with (
        bandana_kv.open(tmp_path / "one", adapter=other) as store,
        pytest.raises(BandanaError, match="'user'"),
    ):
        store.get("user", 1)
    for add in range(3):
        bandana_kv.load(tmp_path / "one", {"user": ROWS + add}, adapter=other)
    with bandana_kv.open(tmp_path / "other", adapter=other) as store:
        assert np.array_equal(store.multi_get("user", range(400)), ROWS + 1)


def test_a_store_in_a_held_engine_asks_for_it(engine: Engine, tmp_path: Path) -> None:
    adapter, _ = engine
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter=adapter)
    for wrong in (None, MemoryAdapter()):
        with pytest.raises(InputError, match=f"{adapter.name} engine that you hold; pass adapter="):
            bandana_kv.open(tmp_path / "s", adapter=wrong)


def test_spaces_that_hold_keys_of_theirs_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbers.secrets, "randbelow", lambda _: 4)
    adapter = MemoryAdapter()
    theirs = block_keys(5, [0])
    adapter.put_many(theirs, np.full((1, 4096), 7, np.uint8))
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter=adapter)
    assert {key >> 40 for key in adapter._blocks.of_key} == {5, 6}
    assert (adapter.multi_get(theirs) == 7).all()
