"""Rows that are placed anew while they are served: right at every moment, and in few writes."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import rocksdict

import bandana_kv
from bandana_kv.adapters.lmdb import LmdbAdapter
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.adapters.rocksdb import RocksdbAdapter
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.disk import block_map, ledger, manifest, retention
from bandana_kv.disk.lock import writer_lock
from bandana_kv.errors import (
    BandanaError,
    BlockCorruptError,
    FormatError,
    InputError,
    LoadInProgressError,
    TableNotFoundError,
    UpdateInProgressError,
    WriteBudgetError,
)
from bandana_kv.placement import Placement
from bandana_kv.plan import PlannedPoint, TablePlan
from bandana_kv.serve import replacement
from bandana_kv.testing import in_child

ROWS, DIM = 700, 32
FIRST = np.random.default_rng(0).random((ROWS, DIM), np.float32)
ITEMS = FIRST[:100] + 1
LOG = bandana_kv.AccessLog.from_requests(np.random.default_rng(1).integers(0, ROWS, (300, 8)))
EVERY = np.arange(ROWS)
ENGINES = ["blockfile", "lmdb", "rocksdb"]
LRU = Policy()


def load(path: Path, adapter: Any = "blockfile", **options: Any) -> Path:
    options = {"placement": "shuffled", "policy": LRU} | options
    bandana_kv.load(path, {"t": FIRST, "u": ITEMS}, {"t": LOG}, adapter=adapter, **options)
    return path


def shuffled(served: Placement, seed: int, rows: int = 60, **options: Any) -> Placement:
    """Return a placement in which some rows have changed places among themselves."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(served.rows, rows, replace=False)
    positions = served.position_of_id.copy()
    positions[ids] = positions[np.roll(ids, 1)]
    return Placement(positions, served.rows_per_block, f"shuffled {seed}", **options)


def assert_has(store: bandana_kv.EmbeddingStore, expected: np.ndarray) -> None:
    order = np.random.default_rng(2).permutation(ROWS)
    assert np.array_equal(store.multi_get("t", order), expected[order])
    assert np.array_equal(store.multi_get("u", np.arange(100)), ITEMS)
    store.check()


def assert_sound(path: Path, **options: Any) -> None:
    report = bandana_kv.verify(path, **options)
    assert report.sound, report.findings


def cached_ids(store: bandana_kv.EmbeddingStore) -> set[int]:
    positions, _ = store._tables["t"].cached()
    return set(store.placement("t").id_of_position()[positions].tolist())


@contextlib.contextmanager
def held_engine(kind: str, path: Path) -> Iterator[Any]:
    """Open an engine as a user does, with a key of theirs."""
    if kind == "memory":
        yield MemoryAdapter()
    elif kind == "lmdb":
        with lmdb.open(str(path), map_size=1 << 26, max_dbs=2, readahead=False) as environment:
            database = environment.open_db(b"blocks")
            with environment.begin(write=True, db=database) as txn:
                txn.put(b"theirs", b"1")
            yield LmdbAdapter.on(environment, database)
            with environment.begin(db=database) as txn:
                assert txn.get(b"theirs") == b"1"
    else:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        handle = rocksdict.Rdict(str(path), options)
        handle[b"theirs"] = b"1"
        yield RocksdbAdapter.on(handle, strict=False)
        assert handle[b"theirs"] == b"1"
        handle.close()


# -- rows are right --------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ENGINES)
@pytest.mark.parametrize("replicate", [0.0, 0.3])
def test_rows_are_the_same_in_other_places(tmp_path: Path, adapter: str, replicate: float) -> None:
    options = {"placement": {"t": "shp"}, "replicate": replicate} if replicate else {}
    path = load(tmp_path / "s", adapter, **options)
    expected = FIRST.copy()
    rng = np.random.default_rng(3)
    with bandana_kv.open(path, 30_000) as store, bandana_kv.open(path, 30_000) as other:
        assert bool(replicate) == (store.placement("t").replicas is not None)
        for step in range(5):
            ids = rng.choice(ROWS, 20, replace=False)
            expected[ids] = rng.random((20, DIM), np.float32)
            store.update("t", ids, expected[ids])
            before = store.placement("t")
            new = shuffled(before, step)
            done = store.place_anew("t", new)
            assert done.version == store.version == manifest.current_number(path)
            assert np.array_equal(store.placement("t").position_of_id, new.position_of_id)
            assert np.array_equal(store.placement("t").replicas, before.replicas)
            assert store.placement("t").method == f"shuffled {step}"
            assert_has(store, expected)
            if step % 2:
                store.flush()
            assert other.refresh() == done.version
            assert_has(other, expected)
            assert_sound(path)
    with bandana_kv.open(path, 0) as store:
        assert_has(store, expected)


@pytest.mark.parametrize("kind", ["memory", "lmdb", "rocksdb"])
def test_an_engine_that_the_user_holds(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    with held_engine(kind, tmp_path / "theirs") as adapter:
        load(path, adapter)
        expected = FIRST.copy()
        with (
            bandana_kv.open(path, 30_000, adapter=adapter) as store,
            bandana_kv.open(path, 30_000, adapter=adapter) as other,
        ):
            for step in range(4):
                store.place_anew("t", shuffled(store.placement("t"), step))
                expected[step] += 1
                store.update("t", [step], expected[[step]])
                store.flush()
                other.refresh()
                assert_has(store, expected)
                assert_has(other, expected)
                assert_sound(path, adapter=adapter)
        space = manifest.read_current(path).tables["t"].space
        load(path, adapter, keep=1)
        assert adapter.space_is_empty(space)  # whatever numbers its blocks had


def test_a_random_order_of_all_rows_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacement, "_WINDOW_BYTES", 5 * 4096)  # several passes
    monkeypatch.setattr(replacement, "_READ_AT_ONCE", 3)
    monkeypatch.setattr(replacement, "_WRITTEN_AT_ONCE", 2)
    with bandana_kv.open(load(tmp_path / "s"), 0) as store:
        first = store.placement("t")
        done = store.place_anew("t", shuffled(first, 0, ROWS))
        assert done.blocks_rewritten == first.blocks
        assert_has(store, FIRST)
        store.place_anew("t", first)
        assert np.array_equal(store.placement("t").position_of_id, first.position_of_id)
        assert_has(store, FIRST)
    assert_sound(tmp_path / "s")


def test_copies_stay_come_and_go(tmp_path: Path) -> None:
    path = load(tmp_path / "s", placement={"t": "shp"}, replicate=0.3)
    with bandana_kv.open(path, 0) as store:
        served = store.placement("t")
        assert served.replicas is not None
        # Copies of rows that do not move lie where they did.
        done = store.place_anew("t", shuffled(served, 0, 2))
        assert done.blocks_rewritten <= 2
        none = np.zeros(0, np.uint32)
        done = store.place_anew("t", shuffled(served, 0, 2, replicas=none))
        assert done.blocks_rewritten == 0
        assert store.placement("t").replicas is None
        assert_has(store, FIRST)
        for copies in (np.arange(5, 90, dtype=np.uint32), np.array([3, 7], np.uint32)):
            store.place_anew("t", shuffled(served, 1, 9, replicas=copies))
            assert np.array_equal(store.placement("t").replicas, copies)
            assert_has(store, FIRST)
            assert_sound(path)
        changed = FIRST.copy()
        changed[[3, 400]] += 1
        store.update("t", [3, 400], changed[[3, 400]])
        store.flush()
        assert_has(store, changed)


# -- what it costs ---------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ENGINES)
def test_only_blocks_whose_rows_change_are_written(tmp_path: Path, adapter: str) -> None:
    path = load(tmp_path / "s", adapter)
    with bandana_kv.open(path) as store:
        served = store.placement("t")
        ids = np.flatnonzero(np.isin(served.position_of_id // served.rows_per_block, [2, 5, 6]))
        positions = served.position_of_id.copy()
        positions[ids] = positions[np.roll(ids, 1)]
        done = store.place_anew("t", Placement(positions, served.rows_per_block, "rolled"))
        assert done.blocks_rewritten == 3
        payload_bytes = store._tables["t"].stored.adapter.payload_bytes
        beside = 3 * payload_bytes + sum(
            path.stat().st_size for path in manifest.segment_path(path, done.version).iterdir()
        )
        assert done.bytes_written == beside
    (entry,) = [each for each in ledger.entries(path) if each.kind == "place-anew"]
    assert (entry.version, entry.tables) == (done.version, ("t",))
    assert entry.handed_bytes == done.bytes_written


def test_rows_in_dram_come_along_without_reads(tmp_path: Path) -> None:
    for policy in (LRU, Policy("clock"), Policy("tinylfu", Admission("online"))):
        path = load(tmp_path / policy.eviction, policy=policy)
        with bandana_kv.open(path, 60_000) as store:
            hot = np.random.default_rng(0).permutation(ROWS)[:200]
            store.multi_get("t", hot)
            store.multi_get("u", np.arange(40))
            before = store.stats()
            cached = cached_ids(store)
            assert len(cached) >= hot.size
            store.update("t", hot[:5], FIRST[hot[:5]] + 1)
            store.place_anew("t", shuffled(store.placement("t"), 0))
            assert store.stats()["u"] == before["u"]
            assert set(store.stats()["t"].values()) == {0}
            assert cached_ids(store) == cached
            expected = FIRST.copy()
            expected[hot[:5]] += 1
            warm = np.array(sorted(cached))
            assert np.array_equal(store.multi_get("t", warm), expected[warm])
            assert store.stats()["t"]["hits"] == warm.size
            assert_has(store, expected)


def test_only_a_plan(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path, 60_000) as store:
        served = store.placement("t")
        policy = Policy("s3-fifo", Admission("all"))
        plan = TablePlan((PlannedPoint(100, policy, None),))
        assert store.place_anew("t", served, plan=plan) == (2, 0, 0)
        assert store.plan("t") == plan
        assert store.plan("u") != plan
        assert store.policy("t") == policy
        assert_has(store, FIRST)
        assert store.place_anew("t", shuffled(served, 0)).blocks_rewritten
        assert store.plan("t") == plan
        assert store.place_anew("t", store.placement("t")) == (4, 0, 0)
        assert_has(store, FIRST)
    # Versions that differ in their plan only have the same blocks.
    assert [version.number for version in bandana_kv.versions(path)] == [3, 4]
    assert bandana_kv.rollback(path) == 3
    with bandana_kv.open(path) as store:
        assert_has(store, FIRST)


def test_heat_goes_with_the_rows_or_is_that_of_another_log(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path) as store:
        new = shuffled(store.placement("t"), 0)
        store.place_anew("t", new)
        wanted = heat_by_position(LOG.ids, new.position_of_id)
        assert np.array_equal(store._tables["t"].heat, wanted)
        looked_up = manifest.read_current(path).tables["t"].looked_up_rows
        log = bandana_kv.AccessLog.from_requests([[1, 2, 3], [3, 600]])
        assert store.place_anew("t", new, log=log).blocks_rewritten == 0
        assert store._tables["t"].heat[new.position_of_id[[1, 2, 3, 600]]].tolist() == [1, 1, 2, 1]
        assert store._tables["t"].heat.sum() == 5
        assert looked_up > 4 == manifest.read_current(path).tables["t"].looked_up_rows
        assert_has(store, FIRST)


def test_room_is_that_of_two_placements_however_many_there_were(tmp_path: Path) -> None:
    path = load(tmp_path / "s", "lmdb")
    with bandana_kv.open(path) as store:
        blocks = store.placement("t").blocks
        for step in range(12):
            store.place_anew("t", shuffled(store.placement("t"), step, 60 if step % 3 else ROWS))
            entries = block_map.read_block_map(path, manifest.read_current(path).tables["t"])
            assert entries is not None
            numbers = block_map.numbers_of(entries)
            assert np.unique(numbers).size == blocks
            assert numbers.max() < 2 * blocks
        assert sorted(int(each.name) for each in (path / "segments").iterdir()) == [1, 13]


# -- what others see -------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ENGINES)
def test_whoever_serves_an_earlier_placement_goes_on_with_it(tmp_path: Path, adapter: str) -> None:
    path = load(tmp_path / "s", adapter)
    with bandana_kv.open(path, 0) as old, bandana_kv.open(path, 0) as store:
        for step in range(6):
            store.place_anew("t", shuffled(store.placement("t"), step, ROWS))
            assert_has(old, FIRST)
            assert_sound(path)
        store.update("t", [5], FIRST[[5]] + 1)
        store.flush()
        rows = old.multi_get("t", EVERY)
        assert np.array_equal(np.delete(rows, 5, 0), np.delete(FIRST, 5, 0))
        assert (old.version, [each.number for each in bandana_kv.versions(path)]) == (1, [7])
        assert old.refresh() == 7
        assert np.array_equal(old.get("t", 5), FIRST[5] + 1)
        # Its numbers are free once it has gone.
        store.place_anew("t", shuffled(store.placement("t"), 9, ROWS))
        assert sorted(int(each.name[:6]) for each in (path / "manifests").iterdir()) == [7, 8]


@pytest.mark.parametrize("adapter", ["blockfile", "lmdb"])
def test_another_process_follows_and_may_then_place_itself(tmp_path: Path, adapter: str) -> None:
    path = load(tmp_path / "s", adapter)

    def place_update_and_flush() -> None:
        with bandana_kv.open(path) as store:
            store.place_anew("t", shuffled(store.placement("t"), 0))
            store.update("t", [5, 6], FIRST[[5, 6]] + 1)
            store.flush()
            store.update("t", [6], FIRST[[6]] + 2)

    expected = FIRST.copy()
    expected[5] += 1
    expected[6] += 2
    with bandana_kv.open(path, 50_000) as store:
        assert_has(store, FIRST)
        in_child(place_update_and_flush)
        # It serves a placement that takes no updates any more; its own go into the other.
        store.update("t", [7], FIRST[[7]] + 3)
        expected[7] += 3
        assert store.version == 2
        store.flush()
        assert_has(store, expected)
        store.place_anew("t", shuffled(store.placement("t"), 1))
        assert_has(store, expected)
    with bandana_kv.open(path, 0) as store:
        assert_has(store, expected)


def test_who_begins_to_update_leaves_a_placement_that_gave_way(tmp_path: Path) -> None:
    path = load(tmp_path / "s")

    def place() -> None:
        with bandana_kv.open(path) as store:
            store.place_anew("t", shuffled(store.placement("t"), 0))

    expected = FIRST.copy()
    expected[7] += 3
    with bandana_kv.open(path, 50_000) as store:
        in_child(place)
        store.update("t", [7], expected[[7]])
        assert store.version == 2
        store.flush()
        assert_has(store, expected)
    with bandana_kv.open(path, 0) as store:
        assert_has(store, expected)


def test_a_version_before_a_re_placement_is_not_offered(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    bandana_kv.load(path, {"t": FIRST + 1}, adapter="blockfile", placement="shuffled")
    with bandana_kv.open(path) as store:
        served = store.placement("t")
        with bandana_kv.open(path) as reader:
            store.place_anew("t", shuffled(served, 0))
            assert [version.number for version in bandana_kv.versions(path)] == [1, 3]
            with pytest.raises(InputError, match="placed anew"):
                bandana_kv.rollback(path, 2)
            reader.check()
        # That of the load before is another table's, in a manner of speaking.
        assert bandana_kv.rollback(path) == 1
        store.refresh()
        assert_has(store, FIRST)
        assert bandana_kv.rollback(path, 3) == 3
        store.refresh()
        assert_has(store, FIRST + 1)


def test_what_superseded_a_version_stays_as_long_as_that_is_read(tmp_path: Path) -> None:
    """Else nothing would say any more that nobody may go back to it."""
    path = load(tmp_path / "s")
    with bandana_kv.open(path) as reader:
        with bandana_kv.open(path) as store:
            store.place_anew("t", shuffled(store.placement("t"), 0))
            store.update("t", [5], FIRST[[5]] + 1)
            store.flush()
        for _ in range(3):
            bandana_kv.load(path, {"t": FIRST + 1, "u": ITEMS}, adapter="blockfile", keep=1)
        assert [version.number for version in bandana_kv.versions(path)] == [2, 5]
        assert_has(reader, FIRST)
    bandana_kv.load(path, {"t": FIRST + 1, "u": ITEMS}, adapter="blockfile", keep=1)
    assert [version.number for version in bandana_kv.versions(path)] == [6]


def test_a_load_of_another_table_leaves_the_placement(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path) as store:
        new = shuffled(store.placement("t"), 0)
        store.place_anew("t", new)
        bandana_kv.load(path, {"u": ITEMS + 1}, adapter="lmdb")
        store.refresh()
        assert np.array_equal(store.placement("t").position_of_id, new.position_of_id)
        assert np.array_equal(store.multi_get("t", EVERY), FIRST)
        assert np.array_equal(store.multi_get("u", range(100)), ITEMS + 1)
        # Both may be gone back to: they have the same rows of t in the same places.
        assert [version.number for version in bandana_kv.versions(path)] == [2, 3]
        store.place_anew("t", shuffled(new, 1))
        assert [version.number for version in bandana_kv.versions(path)] == [4]
    assert_sound(path)


def test_a_version_that_died_before_the_switch_is_not_gone_to(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path) as store, pytest.MonkeyPatch.context() as patch:
        point_at = manifest.point_at
        patch.setattr(manifest, "point_at", lambda *to: point_at(*to) if to[1] == 1 else 1 / 0)
        patch.setattr(retention, "discard", lambda *_: None)
        with pytest.raises(ZeroDivisionError):
            store.place_anew("t", shuffled(store.placement("t"), 0))
        assert manifest.numbers_in(path / "manifests") == [1, 2]
        store.update("t", [5], FIRST[[5]] + 1)
        store.flush()
        assert_has(store, np.where(EVERY[:, None] == 5, FIRST + 1, FIRST))
    assert [version.number for version in bandana_kv.versions(path)] == [1]
    with pytest.raises(InputError, match="no 2"):
        bandana_kv.rollback(path, 2)
    assert manifest.numbers_in(path / "manifests") == [1]


# -- while much else happens -----------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["blockfile", "lmdb"])
def test_eight_threads_read_and_two_update_meanwhile(tmp_path: Path, adapter: str) -> None:
    """Each row carries its id and the number of its last update."""
    rows = np.zeros((ROWS, DIM), np.float32)
    rows[:, 0] = EVERY
    path = tmp_path / "s"
    bandana_kv.load(path, {"t": rows}, {"t": LOG}, adapter=adapter, policy=LRU)
    acknowledged = np.zeros(ROWS)
    over, wrong = threading.Event(), []

    def read(rng: np.random.Generator, _: int) -> None:
        ids = rng.integers(0, ROWS, rng.integers(1, 40))
        floors = acknowledged[ids].copy()
        got = store.multi_get("t", ids)
        if not (np.array_equal(got[:, 0], ids) and (got[:, 1] >= floors).all()):
            wrong.append((ids, got))

    def update(rng: np.random.Generator, number: int) -> None:
        half = int(threading.current_thread().name)
        ids = 2 * rng.choice(ROWS // 2, 5, replace=False) + half
        new = np.zeros((5, DIM), np.float32)
        new[:, 0], new[:, 1] = ids, number
        store.update("t", ids, new)
        acknowledged[ids] = number

    def repeat(work: Any, seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for number in itertools.count(1):
                if over.is_set():
                    return
                work(rng, number)
        except Exception as error:
            wrong.append(error)

    with bandana_kv.open(path, 20_000) as store:
        threads = [
            threading.Thread(
                target=repeat, args=(update if seed < 2 else read, seed), name=str(seed)
            )
            for seed in range(10)
        ]
        for thread in threads:
            thread.start()
        for step in range(15):
            store.place_anew("t", shuffled(store.placement("t"), step, 30 if step % 2 else ROWS))
            if step % 4 == 3:
                store.flush()
        over.set()
        for thread in threads:
            thread.join()
        assert not wrong, wrong[0]
        assert np.array_equal(store.multi_get("t", EVERY)[:, 1], acknowledged)
    with bandana_kv.open(path) as store:
        assert np.array_equal(store.multi_get("t", EVERY)[:, 1], acknowledged)
    assert_sound(path)


def test_an_update_that_meant_the_table_before_reaches_the_one_after(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path, 60_000) as store:
        store.multi_get("t", EVERY)
        before = store._tables["t"]
        store.place_anew("t", shuffled(store.placement("t"), 0))
        expected = FIRST.copy()
        expected[9] += 1
        # As a thread does that had found its table just before the switch.
        updates, row = store._current.updating(), expected[[9]].view(np.uint8)
        updates.update(before, np.array([9], np.uint32), row)
        assert_has(store, expected)
        store.flush()
        assert_has(store, expected)
    with bandana_kv.open(path, 0) as store:
        assert_has(store, expected)


def test_an_update_during_a_refresh_reaches_a_table_that_begins_anew(tmp_path: Path) -> None:
    """Tables come, so that the DRAM of the others changes, and they are opened once more."""
    path = load(tmp_path / "s")
    expected = FIRST.copy()
    with bandana_kv.open(path, 60_000) as store, pytest.MonkeyPatch.context() as patch:
        store.multi_get("t", EVERY)
        store.update("t", [1], expected[[1]])
        bandana_kv.load(path, {"more": ITEMS}, adapter="blockfile")
        warm_up = bandana_kv.serve.current.warm_up

        def updated_meanwhile(*given: Any) -> None:
            warm_up(*given)
            expected[[1, 2, 3]] += 1
            store.update("t", [1, 2, 3], expected[[1, 2, 3]])

        patch.setattr(bandana_kv.serve.current, "warm_up", updated_meanwhile)
        before = store._tables["t"]
        store.refresh()
        assert store._tables["t"] is not before
        assert_has(store, expected)
        store.flush()
        assert_has(store, expected)
    with bandana_kv.open(path, 0) as store:
        assert_has(store, expected)


@pytest.mark.parametrize("adapter", ENGINES)
def test_rows_flushed_by_another_are_seen_after_the_switch_to_a_load(
    tmp_path: Path, adapter: str
) -> None:
    path = load(tmp_path / "s", adapter)
    expected = FIRST.copy()
    expected[5] += 1
    with bandana_kv.open(path, 60_000) as reader:
        reader.multi_get("t", EVERY)
        with bandana_kv.open(path) as store:
            store.update("t", [5], expected[[5]])
            store.flush()
        bandana_kv.load(path, {"u": ITEMS}, adapter=adapter)
        assert reader.refresh() == 2
        assert_has(reader, expected)


# -- what is refused and noticed -------------------------------------------------------------


def test_what_is_wrong_is_said_and_nothing_changes(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path) as store:
        served = store.placement("t")
        per_block = served.rows_per_block
        twice = served.position_of_id.copy()
        twice[0] = twice[1]
        far = served.position_of_id.copy()
        far[0] = ROWS
        for positions in (twice, far, served.position_of_id.astype(np.int64)):
            with pytest.raises(InputError, match="not a permutation"):
                store.place_anew("t", Placement(positions, per_block, "wrong"))
        for copies in ([ROWS], [1, 1]):
            wrong = shuffled(served, 0, replicas=np.array(copies, np.uint32))
            with pytest.raises(InputError, match="distinct ids"):
                store.place_anew("t", wrong)
        with pytest.raises(InputError, match="30 a block"):
            store.place_anew("t", Placement(served.position_of_id, 30, "wrong"))
        with pytest.raises(InputError, match="699 rows"):
            store.place_anew("t", Placement(np.arange(699, dtype=np.uint32), per_block, "wrong"))
        with pytest.raises(TableNotFoundError):
            store.place_anew("no", served)
        log = bandana_kv.AccessLog.from_requests([[ROWS]])
        with pytest.raises(BandanaError, match="700"):
            store.place_anew("t", served, log=log)
        bandana_kv.load(path, {"u": ITEMS}, adapter="blockfile")
        with pytest.raises(InputError, match=r"version 2 is current, and 1 is served here"):
            store.place_anew("t", served)
        assert_has(store, FIRST)
        assert manifest.numbers_in(path / "segments") == [1, 2]
    with pytest.raises(InputError, match="closed"):
        store.place_anew("t", served)
    with pytest.raises(InputError, match="closed"):
        store.placement("t")


def test_one_at_a_time(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path) as store, bandana_kv.open(path) as other:
        new = shuffled(store.placement("t"), 0)
        store.update("t", [0], FIRST[[0]])
        with pytest.raises(UpdateInProgressError):
            other.place_anew("t", new)
        with writer_lock(path), pytest.raises(LoadInProgressError):
            store.place_anew("t", new)
        write = replacement._write_arrays
        refused = []

        def load_meanwhile(*given: Any) -> int:
            for change in (lambda: load(path), lambda: bandana_kv.rollback(path)):
                with pytest.raises(LoadInProgressError):
                    change()
                refused.append(1)
            return write(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replacement, "_write_arrays", load_meanwhile)
            store.place_anew("t", new)
        assert refused == [1, 1]
        assert_has(store, FIRST)


def test_the_write_budget_is_kept(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path) as store:
        served = store.placement("t")
        written = ledger.written_per_day(path).last_day_bytes
        bandana_kv.set_write_budget(path, written + 40_000)
        with pytest.raises(WriteBudgetError):
            store.place_anew("t", shuffled(served, 0, ROWS))
        assert manifest.numbers_in(path / "segments") == [1]
        assert all(entry.kind != "place-anew" for entry in ledger.entries(path))
        store.place_anew("t", shuffled(served, 0, 2))
        assert_has(store, FIRST)


def test_closing_ends_it_between_two_batches(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    store = bandana_kv.open(path)
    new = shuffled(store.placement("t"), 0, ROWS)
    closing = threading.Thread(target=store.close)
    assembled = replacement._assembled

    def closed_meanwhile(*given: Any) -> np.ndarray:
        closing.start()
        assert store._closing.wait(30)
        return assembled(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replacement, "_assembled", closed_meanwhile)
        with pytest.raises(InputError, match="closed"):
            store.place_anew("t", new)
    closing.join()
    assert manifest.numbers_in(path / "segments") == [1]
    with bandana_kv.open(path) as store:
        assert_has(store, FIRST)


@pytest.mark.parametrize("adapter", ENGINES)
def test_a_block_of_the_placement_before_is_not_taken_for_the_new_one(
    tmp_path: Path, adapter: str
) -> None:
    """As if the device had lost the write of a block under a number that was used before."""
    path = load(tmp_path / "s", adapter)
    with bandana_kv.open(path, 0) as store:
        store.place_anew("t", shuffled(store.placement("t"), 0, ROWS))
        entry = manifest.read_current(path).tables["t"]
        entries = block_map.read_block_map(path, entry)
        assert entries is not None
        keys = bandana_kv.adapters.block_keys(entry.space, [3, block_map.numbers_of(entries)[3]])
        engine = store._current.serving.writable(path, "t")
        engine.put_many(keys[1:], engine.multi_get(keys[:1]))
    said = pytest.raises(BlockCorruptError, match="block 3: it belongs to another")
    with bandana_kv.open(path, 0) as store, said:
        store.multi_get("t", EVERY)
    report = bandana_kv.verify(path)
    assert [(each.kind, each.block) for each in report.findings] == [("block", 3)]
    repaired = bandana_kv.repair(path, lambda name, ids: {"t": FIRST, "u": ITEMS}[name][ids])
    assert (repaired.repaired_blocks, repaired.sound) == (1, True)
    with bandana_kv.open(path, 0) as store:
        assert_has(store, FIRST)


def test_a_damaged_or_foreign_map_is_found(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path) as store:
        store.place_anew("t", shuffled(store.placement("t"), 0))
    entry = manifest.read_current(path).tables["t"]
    file = manifest.table_file(path, entry.files, entry.space, block_map.KIND)
    sound = file.read_bytes()
    entries = block_map.read_block_map(path, entry)
    assert entries is not None
    moved = np.flatnonzero(entries > block_map.numbers_of(entries))
    swapped, twice = entries.copy(), entries.copy()
    swapped[moved[:2]] = entries[moved[1::-1]]
    twice[moved[0]] = entries[moved[1]]
    for wrong, said in ((swapped, "is of other positions"), (twice, "two blocks in one place")):
        file.unlink()
        replacement.write_array(file, block_map.KIND, wrong)
        found = bandana_kv.verify(path).findings
        assert found[0].kind == "block-map"
        assert said in found[0].message
        with bandana_kv.open(path, 0) as store, pytest.raises(BlockCorruptError):
            store.multi_get("t", EVERY)
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    found = bandana_kv.verify(path).findings
    assert [each.kind for each in found] == ["block-map"]
    with pytest.raises(FormatError, match="block-map"):
        bandana_kv.open(path)
    file.write_bytes(sound)
    assert_sound(path)


def test_a_flush_never_goes_into_a_placement_that_gave_way(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    with bandana_kv.open(path, 0) as store:
        store.update("t", [5], FIRST[[5]] + 1)
        # The switch has happened, and this process does not know.
        with pytest.MonkeyPatch.context() as patch:
            point_at = manifest.point_at

            def interrupted(*given: Any) -> None:
                point_at(*given)
                if given[1] == 2:  # not where what is current is made so again, at the beginning
                    raise KeyboardInterrupt

            patch.setattr(manifest, "point_at", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.place_anew("t", shuffled(store.placement("t"), 0))
        assert (store.version, manifest.current_number(path)) == (1, 2)
        expected = FIRST.copy()
        expected[5] += 1
        assert_has(store, expected)
        with pytest.raises(InputError, match="placed anew"):
            store.flush()
        assert store.refresh() == 2
        store.flush()
        assert_has(store, expected)
    with bandana_kv.open(path, 0) as store:
        assert_has(store, expected)


def test_stores_of_the_format_before_are_read(tmp_path: Path) -> None:
    path = load(tmp_path / "s")
    file = manifest.manifest_path(path, 1)
    older = manifest.msgspec.json.decode(file.read_bytes())["manifest"] | {"format": 3}
    for table in older["tables"].values():
        del table["placed_by"]
    body = manifest.msgspec.json.encode(older)
    checksum = manifest.xxhash.xxh3_64_hexdigest(body)
    file.write_bytes(manifest.msgspec.json.encode({"checksum": checksum, "manifest": older}))
    with bandana_kv.open(path) as store:
        store.place_anew("t", shuffled(store.placement("t"), 0))
        assert_has(store, FIRST)
    assert manifest.read_current(path).format == manifest.FORMAT_VERSION
