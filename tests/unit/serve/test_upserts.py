"""Keys come and go while a table is served: durable, at once, and never another's row."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bandana_kv
from bandana_kv import EmbeddingStore, Rows
from bandana_kv.care.inspection import inspect
from bandana_kv.disk import manifest
from bandana_kv.errors import FormatError, IdError, InputError
from bandana_kv.placement import Placement

ROWS, DIM = 300, 24
ENGINES = ["blockfile", "lmdb", "rocksdb"]
INT64, UINT64 = np.iinfo(np.int64), np.iinfo(np.uint64)


def numbers_of(count: int, mark: float = 0.0) -> np.ndarray:
    """Rows that all differ, and tell in which round they were made."""
    return (np.arange(count)[:, None] + np.arange(DIM) / 32 + 1000 * mark).astype(np.float32)


def keys_of(kind: str, numbers: Any) -> Any:
    if kind == "str":
        return [f"key {number}" for number in numbers]
    if kind == "bytes":
        return [b"key %d" % number for number in numbers]
    return np.array([*numbers], np.int64).astype(kind) * 977


class Pair:
    """A store with the table "user", and a dict of what it must hold."""

    def __init__(self, root: Path, kind: str = "str", **options: Any) -> None:
        self.root, self.kind = root, kind
        keys = keys_of(kind, range(ROWS))
        bandana_kv.load(root, {"user": Rows(numbers_of(ROWS), keys=keys)}, **options)
        self.rows = dict(zip(range(ROWS), numbers_of(ROWS), strict=True))
        self.store = bandana_kv.open(root, 1 << 14)

    def upsert(self, numbers: Any, mark: float) -> None:
        rows = numbers_of(len(numbers), mark)
        self.store.upsert("user", keys_of(self.kind, numbers), rows)
        self.rows.update(zip(numbers, rows, strict=True))

    def delete(self, numbers: Any) -> None:
        there = sum(number in self.rows for number in numbers)
        assert self.store.delete("user", keys_of(self.kind, numbers)) == there
        for number in numbers:
            self.rows.pop(number, None)

    def check(self, store: EmbeddingStore | None = None) -> None:
        store = store or self.store
        numbers = sorted({*range(2 * ROWS), *self.rows})
        rows, there = store.multi_get("user", keys_of(self.kind, numbers), missing="mask")
        assert there.tolist() == [number in self.rows for number in numbers]
        for number, row in zip(numbers, rows, strict=True):
            if number in self.rows:
                assert np.array_equal(row, self.rows[number]), number
        assert store.shape("user") == (len(self.rows), DIM)
        assert len(store.keys("user")) == len(self.rows)

    def open_again(self) -> None:
        self.store.close()
        self.store = bandana_kv.open(self.root, 1 << 14)


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    made = Pair(tmp_path / "store", adapter="blockfile")
    yield made
    made.store.close()


@pytest.mark.parametrize("kind", ["str", "bytes", "int64", "uint64"])
@pytest.mark.parametrize("engine", ENGINES)
def test_keys_come_and_go_and_stay_so(tmp_path: Path, engine: str, kind: str) -> None:
    pair = Pair(tmp_path / "store", kind, adapter=engine)
    pair.upsert([5, ROWS, ROWS + 1, ROWS + 2], 1)
    pair.delete([7, 8, ROWS + 1, 2 * ROWS])
    pair.check()
    pair.open_again()  # what the journal has
    pair.check()
    pair.store.flush()
    pair.check()
    pair.open_again()  # what lies beside the blocks
    pair.check()
    pair.upsert([7, ROWS + 1, ROWS + 3], 2)
    pair.delete([5])
    pair.check()
    pair.open_again()
    pair.check()
    pair.store.check()
    pair.store.close()
    report = bandana_kv.verify(pair.root)
    assert report.sound, report.findings


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["upsert", "delete"]),
            st.lists(st.integers(0, 2 * ROWS - 1), min_size=1, max_size=60, unique=True),
        ),
        st.tuples(st.sampled_from(["flush", "open", "place", "other", "load"]), st.just([])),
    ),
    min_size=3,
    max_size=14,
)


@settings(max_examples=25)
@given(actions=ACTIONS, spare=st.sampled_from([0.0, 0.02, 0.5]), wide=st.booleans())
def test_it_is_as_a_dict(
    actions: Any, spare: float, wide: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("dict") / "store"
    pair = Pair(root, "str" if wide else "int64", adapter="memory" if wide else "lmdb", spare=spare)
    with pair.store, bandana_kv.open(root, 0) as other:
        for mark, (what, numbers) in enumerate(actions, 1):
            if what == "upsert":
                pair.upsert(numbers, mark)
            elif what == "delete":
                pair.delete(numbers)
            elif what == "flush":
                pair.store.flush()
            elif what == "open":
                pair.open_again()
            elif what == "other":
                other.refresh()
                pair.check(other)
            elif what == "place":
                served = pair.store.placement("user")
                backwards = served.rows - 1 - served.position_of_id
                placement = Placement(backwards, served.rows_per_block, "backwards")
                pair.store.place_anew("user", placement)
            else:
                rows = np.array([*pair.rows.values(), numbers_of(1)[0]])[:-1]
                kept = Rows(rows, keys=keys_of(pair.kind, pair.rows)) if len(rows) else None
                if kept is not None:
                    bandana_kv.load(root, {"user": kept}, adapter="lmdb", spare=spare)
                    pair.store.refresh()
            pair.check()
        pair.store.check()
        pair.store.close()
    assert bandana_kv.verify(root).sound


def test_a_table_that_is_full_grows(tmp_path: Path) -> None:
    for engine in ENGINES:
        pair = Pair(tmp_path / engine, adapter=engine, spare=0.0, replicate=0.0)
        assert manifest.read_current(pair.root).tables["user"].rows == ROWS
        for mark in range(1, 6):
            pair.upsert(range(ROWS + 50 * mark, ROWS + 50 * mark + 50), mark)
            pair.check()
        grown = manifest.read_current(pair.root)
        assert grown.version > 1
        assert grown.tables["user"].rows - grown.tables["user"].spare == ROWS
        pair.open_again()
        pair.check()
        pair.store.flush()
        pair.store.close()
        assert bandana_kv.verify(pair.root).sound


def test_a_table_with_second_copies_grows(tmp_path: Path) -> None:
    log = bandana_kv.AccessLog.from_requests(np.random.default_rng(0).integers(0, ROWS, (400, 6)))
    keys = keys_of("str", range(ROWS))
    rows = {"user": Rows(numbers_of(ROWS), keys=keys)}
    root = tmp_path / "store"
    bandana_kv.load(root, rows, {"user": log}, replicate=0.5, spare=0.0, adapter="blockfile")
    copies = manifest.read_current(root).tables["user"].copies
    assert copies > 0
    with bandana_kv.open(root, 0) as store:
        store.upsert("user", keys_of("str", range(ROWS, ROWS + 90)), numbers_of(90, 1))
        assert np.array_equal(store.multi_get("user", keys), numbers_of(ROWS))
        assert manifest.read_current(root).tables["user"].copies == copies
        store.flush()
        assert np.array_equal(store.multi_get("user", keys), numbers_of(ROWS))
    assert bandana_kv.verify(root).sound


def test_spare_is_a_share_of_the_rows_and_whole_blocks(tmp_path: Path) -> None:
    keys, rows = np.arange(1000), numbers_of(1000)
    tables = {"keyed": Rows(rows, keys=keys), "plain": rows}
    bandana_kv.load(tmp_path / "store", tables, spare=0.25)
    found = manifest.read_current(tmp_path / "store").tables
    per_block = found["keyed"].rows_per_block
    assert 250 <= found["keyed"].spare < 250 + per_block
    assert found["keyed"].rows % per_block == 0
    assert (found["plain"].rows, found["plain"].spare) == (1000, 0)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="spare"):
            bandana_kv.load(tmp_path / "other", tables, spare=wrong)
    assert not (tmp_path / "other").exists()


def test_who_follows_sees_it_after_a_refresh(pair: Pair) -> None:
    with bandana_kv.open(pair.root, 1 << 14) as other:
        pair.upsert([3, ROWS], 1)
        pair.delete([4])
        assert other.has_news()
        assert other.multi_get("user", ["key 4"], missing="mask")[1].all()
        other.refresh()
        pair.check(other)
        pair.store.flush()
        pair.upsert(range(ROWS, ROWS + 200), 2)  # grows: another version
        other.refresh()
        pair.check(other)
        assert other.version == pair.store.version


def test_a_deleted_key_comes_again_with_an_id_of_its_own(pair: Pair) -> None:
    served = pair.store._current.serving.tables["user"]
    ids = []
    for mark in range(1, 4):
        pair.upsert([ROWS], mark)
        ids.append(int(served.keys.ids_of(served.keys.words_of("user", ["key 300"]))[0]))
        pair.check()
        pair.delete([ROWS])
        pair.check()
    assert len(set(ids)) == 3


def test_threads_that_add_the_same_keys_get_one_row_each(pair: Pair) -> None:
    failures: list[BaseException] = []

    def add(mark: int) -> None:
        try:
            for first in range(ROWS, ROWS + 200, 10):
                rows = numbers_of(10, mark)
                pair.store.upsert("user", keys_of("str", range(first, first + 10)), rows)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    served = pair.store._current.serving.tables["user"]
    assert len(served.keys) == ROWS + 200
    assert served.keys.next_id == ROWS + 200
    rows = pair.store.multi_get("user", keys_of("str", range(ROWS, ROWS + 200)))
    marks = rows[:, 0] // 1000
    assert set(marks.tolist()) <= {1, 2, 3, 4}
    assert np.array_equal(rows, numbers_of(10)[np.arange(200) % 10] + 1000 * marks[:, None])


def test_a_rollback_brings_back_what_came_and_went(pair: Pair) -> None:
    pair.upsert([ROWS, 2], 1)
    pair.delete([9])
    pair.store.flush()
    pair.upsert([ROWS + 1], 2)
    tables = {"user": Rows(numbers_of(10, 3), keys=keys_of("str", range(10)))}
    bandana_kv.load(pair.root, tables, adapter="blockfile")
    pair.store.refresh()
    assert pair.store.shape("user") == (10, DIM)
    pair.store.upsert("user", ["other"], numbers_of(1, 4))
    bandana_kv.rollback(pair.root)
    pair.store.refresh()
    pair.check()
    assert "other" not in pair.rows
    assert not pair.store.multi_get("user", ["other"], missing="mask")[1].any()


def test_a_placement_may_leave_spare_rows_out(pair: Pair) -> None:
    pair.upsert(range(ROWS, ROWS + 5), 1)
    served = pair.store.placement("user")
    for rows in (ROWS, ROWS + 5, served.rows):
        shuffled = np.random.default_rng(rows).permutation(rows).astype(np.uint32)
        pair.store.place_anew("user", Placement(shuffled, served.rows_per_block, "shuffled"))
        pair.check()
    short = Placement(np.arange(ROWS - 1, dtype=np.uint32), served.rows_per_block, "short")
    with pytest.raises(InputError, match="rows"):
        pair.store.place_anew("user", short)


def test_a_fork_reads_what_its_parent_added(pair: Pair) -> None:
    pair.upsert([ROWS], 1)
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            pair.check()
            pair.store.upsert("user", ["by a child"], numbers_of(1))
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(into, said.encode())
        os._exit(0)
    os.close(into)
    os.waitpid(child, 0)
    with os.fdopen(out) as said:
        assert "another process updates its rows" in said.read()
    pair.check()


def test_rows_by_number_end_with_the_last_key(pair: Pair) -> None:
    pair.upsert([ROWS], 1)
    assert np.array_equal(pair.store.rows_at("user", [ROWS]), numbers_of(1, 1))
    with pytest.raises(IdError, match=f"id {ROWS + 1} is out of range; it has rows 0 to {ROWS}"):
        pair.store.rows_at("user", [0, ROWS + 1])


def test_numbers_beyond_int64_are_missing_whatever_was_added(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "store", "int64")
    pair.store.upsert("user", np.array([INT64.min, -1, INT64.max]), numbers_of(3))
    beyond = np.array([1 << 63, UINT64.max], np.uint64)
    assert not pair.store.multi_get("user", beyond, missing="mask")[1].any()
    absent = pair.store._current.serving.tables["user"].keys.index.absent
    stands_for_none = np.array([absent], np.uint64).view(np.int64)
    with pytest.raises(IdError, match="load the table with it"):
        pair.store.upsert("user", stands_for_none, numbers_of(1))
    pair.store.close()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: s.upsert("nobody", ["a"], numbers_of(1)), "no table 'nobody'"),
        (lambda s: s.upsert("plain", [1], numbers_of(1)), "has no keys"),
        (lambda s: s.delete("plain", [1]), "has no keys"),
        (lambda s: s.upsert("user", ["a", "b", "a"], numbers_of(3)), "'a' is to be changed twice"),
        (lambda s: s.delete("user", ["a", "a"]), "'a' is to be changed twice"),
        (lambda s: s.upsert("user", [1], numbers_of(1)), "keys are str"),
        (lambda s: s.upsert("user", None, numbers_of(1)), "no keys given"),
        (lambda s: s.upsert("user", ["a"], numbers_of(2)), "rows must be"),
        (lambda s: s.upsert("user", ["a"], np.full((1, DIM), 1e300)), "of key a, column 0"),
        (lambda s: s.upsert("small", ["a"], np.full((1, DIM), np.nan)), "the row of key a"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_changes(tmp_path: Path, call: Any, says: str) -> None:
    keyed = Rows(numbers_of(ROWS), keys=keys_of("str", range(ROWS)))
    tables = {"user": keyed, "small": keyed, "plain": numbers_of(ROWS)}
    bandana_kv.load(tmp_path / "store", tables, store_as={"small": "int8-rowwise"})
    with bandana_kv.open(tmp_path / "store") as store:
        with pytest.raises(bandana_kv.BandanaError, match=says):
            call(store)
        assert store.shape("user")[0] == store.shape("small")[0] == ROWS
        assert not store.multi_get("user", ["a", "b"], missing="mask")[1].any()
        store.upsert("user", [], np.zeros((0, DIM)))
        assert store.delete("user", []) == 0


def test_rows_are_quantised_as_a_load_does(tmp_path: Path) -> None:
    keys = keys_of("str", range(ROWS))
    tables = {"user": Rows(numbers_of(ROWS), keys=keys)}
    bandana_kv.load(tmp_path / "store", tables, store_as="int8-rowwise")
    bandana_kv.load(
        tmp_path / "same", {"user": Rows(numbers_of(ROWS, 1), keys=keys)}, store_as="int8-rowwise"
    )
    with bandana_kv.open(tmp_path / "store") as store, bandana_kv.open(tmp_path / "same") as same:
        store.upsert("user", keys, numbers_of(ROWS, 1))
        store.upsert("user", ["new"], numbers_of(1, 1))
        wanted = same.multi_get_raw("user", keys)
        assert np.array_equal(store.multi_get_raw("user", keys), wanted)
        assert np.array_equal(store.multi_get_raw("user", ["new"]), wanted[:1])
        store.flush()
        assert np.array_equal(store.multi_get_raw("user", ["new"]), wanted[:1])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "newer"])
def test_damaged_changes_are_never_served(pair: Pair, damage: str) -> None:
    pair.upsert([ROWS], 1)
    pair.store.flush()
    pair.store.close()
    (path,) = pair.root.glob("segments/*/key-changes-*")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-9] ^= 1
    elif damage == "newer":
        content[4] = 9
    path.write_bytes(content[: {"cut": -3, "empty": 0}.get(damage)])
    with pytest.raises(FormatError, match="key-changes"):
        bandana_kv.open(pair.root)
    report = bandana_kv.verify(pair.root)
    assert not report.sound
    assert "keys" in {finding.kind for finding in report.findings}


def test_it_is_seen_by_inspection(pair: Pair) -> None:
    pair.upsert([ROWS, 1], 1)
    pair.delete([2, 3])
    pair.store.flush()
    (table,) = inspect(pair.root).tables
    assert (table.keys, table.rows, table.changed_keys) == ("str", ROWS - 1, 3)
    assert table.spare_rows == manifest.read_current(pair.root).tables["user"].spare - 1


def test_the_budget_is_taken_for_what_is_written_alone(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "store", "int64", adapter="blockfile", spare=0.0)
    updates = pair.store._current.updating()
    served = pair.store._current.serving.tables["user"]
    new = served.keys.words_of("user", keys_of("int64", [ROWS]))
    rows = numbers_of(1).view(np.uint8)
    assert updates.upsert(served, new, rows, ()) == ROWS + 1  # there is no room for it
    assert updates.delete(served, new) == 0
    assert updates.allowance._taken == 0
    old = served.keys.words_of("user", keys_of("int64", [0]))
    assert updates.delete(served, np.concatenate([old, new])) == 1
    assert updates.allowance._taken == updates.journal_bytes > 0
    pair.store.close()
