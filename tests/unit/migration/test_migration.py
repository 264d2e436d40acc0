"""Tables moved out of engines with a row per key: every row there, odd sources refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters import rows as rows_module
from bandana_kv.adapters.lmdb import LmdbAdapter
from bandana_kv.adapters.rows import KEY_CODECS, Codec, KeyedRows, open_rows
from bandana_kv.disk import manifest
from bandana_kv.errors import InputError, LoadInProgressError, MigrationError
from bandana_kv.migration import Migrated, migrate, staging
from bandana_kv.progress import Progress

ROWS = np.random.default_rng(0).random((700, 6), np.float32)
ENGINES = ("lmdb", "rocksdb")
Put = Callable[..., None]


def by_key(codec: str, rows: np.ndarray, prefix: bytes = b"") -> dict[bytes, bytes]:
    keys = KEY_CODECS[codec]("user", np.arange(len(rows)))
    return {prefix + key: row.tobytes() for key, row in zip(keys, rows, strict=True)}


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != "lock.mdb"}


def served(store: Path, table: str = "user") -> np.ndarray:
    count = manifest.read_current(store).tables[table].rows
    with bandana_kv.open(store, cache_bytes=0) as opened:
        return opened.multi_get(table, np.arange(count))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_SCANNED_KEYS", 16)
    monkeypatch.setattr(staging, "CHECKPOINT_BYTES", 100 * ROWS[0].nbytes)


@pytest.fixture
def decimal(tmp_path: Path, put_by_key: Put) -> KeyedRows:
    put_by_key("rocksdb", tmp_path / "db", by_key("decimal", ROWS))
    return open_rows("rocksdb", tmp_path / "db", key="decimal")


@pytest.mark.parametrize("inner", [None, "emb"])
@pytest.mark.parametrize("codec", KEY_CODECS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_row_arrives_and_the_source_stays_as_it_was(
    engine: str, codec: str, inner: str | None, tmp_path: Path, put_by_key: Put
) -> None:
    put_by_key(engine, tmp_path / "db", by_key(codec, ROWS), inner)
    before = contents(tmp_path / "db")
    with open_rows(engine, tmp_path / "db", key=codec, inner=inner) as source:
        done = migrate(source, tmp_path / "store", "user")
    assert contents(tmp_path / "db") == before
    assert np.array_equal(served(tmp_path / "store"), ROWS)
    assert (done.rows, done.dim, done.dtype, done.read) == (700, 6, "<f4", 700)
    assert (done.filled, done.skipped, done.resumed_from) == (0, 0, 0)
    assert done.checksum_source == done.checksum_store != f"{0:016x}"
    assert not (tmp_path / "store" / "migrations").exists()


def test_the_checksum_is_the_one_that_it_says_it_is(decimal: KeyedRows, tmp_path: Path) -> None:
    xxhash = pytest.importorskip("xxhash")
    done = migrate(decimal, tmp_path / "store", "user")
    digests = (
        xxhash.xxh64_intdigest(number.to_bytes(8, "little") + row.tobytes())
        for number, row in enumerate(ROWS)
    )
    assert int(done.checksum_store, 16) == sum(digests) % (1 << 64)


@pytest.mark.parametrize("engine", ENGINES)
def test_tables_of_one_key_space_are_told_apart_by_prefix(
    engine: str, tmp_path: Path, put_by_key: Put
) -> None:
    rows = by_key("decimal", ROWS, b"emb:user:") | by_key("decimal", -ROWS[:90], b"emb:item:")
    put_by_key(engine, tmp_path / "db", rows | {b"emb:user": b"?", b"zz": b"?"})
    for table, expected in (("user", ROWS), ("item", -ROWS[:90])):
        prefix = b"emb:%s:" % table.encode()
        with open_rows(engine, tmp_path / "db", key="decimal", prefix=prefix) as source:
            migrate(source, tmp_path / "store", table)
        assert np.array_equal(served(tmp_path / "store", table), expected)
    assert np.array_equal(served(tmp_path / "store", "user"), ROWS)


@pytest.mark.parametrize("engine", ENGINES)
def test_keys_of_no_id_are_named_or_skipped_and_counted(
    engine: str, tmp_path: Path, put_by_key: Put
) -> None:
    others = dict.fromkeys((b"", b"!", b"12x", b"~", b"9" * 12)[engine == "lmdb" :], b"else")
    put_by_key(engine, tmp_path / "db", by_key("decimal", ROWS) | others)
    with open_rows(engine, tmp_path / "db", key="decimal") as source:
        with pytest.raises(InputError, match=r"'user'.*is of no id.*'decimal'"):
            migrate(source, tmp_path / "store", "user")
        done = migrate(source, tmp_path / "store", "user", skip_others=True)
    assert (done.read, done.skipped) == (700, len(others))
    assert np.array_equal(served(tmp_path / "store"), ROWS)


@pytest.mark.parametrize(
    ("changed", "options", "said"),
    [
        ({b"5": b"12345"}, {}, r"key 35 \(b'5'\) \(id 5\) is 5 bytes long.*24 bytes"),
        ({b"0": b"1234"}, {}, "not a row of"),
        ({b"0": b"12345"}, {}, "5 bytes long"),
        ({}, {"dim": 7}, "24 bytes long"),
        ({b"005": ROWS[5].tobytes()}, {}, "id 5 has two keys"),
        ({b"0699": ROWS[5].tobytes()}, {}, "id 699 has two keys"),
        ({b"703": ROWS[5].tobytes()}, {}, r"of 704 ids, 3 have no row: 700, 701, 702;.*zeros"),
        ({b"900": ROWS[5].tobytes()}, {}, r"200 have no row: 700, 701, 702, 703, 704, \.\.\."),
        ({}, {"rows": 699}, "of id 699, and the table has 699 rows"),
        ({}, {"rows": 702}, "of 702 ids, 2 have no row: 700, 701"),
        ({}, {"missing": "skip"}, "'skip'"),
        ({}, {"adapter": "sqlite"}, "'sqlite'"),
        ({}, {"profile": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_what_is_no_table_is_refused_by_name_and_what_was_served_stays(
    changed: dict[bytes, bytes],
    options: dict[str, object],
    said: str,
    tmp_path: Path,
    put_by_key: Put,
) -> None:
    put_by_key("lmdb", tmp_path / "db", by_key("decimal", ROWS) | changed)
    bandana_kv.load(tmp_path / "store", {"user": ROWS[::-1]})
    with (
        open_rows("lmdb", tmp_path / "db", key="decimal") as source,
        pytest.raises(InputError, match=said),
    ):
        migrate(source, tmp_path / "store", "user", **options)
    assert np.array_equal(served(tmp_path / "store"), ROWS[::-1])


def test_a_failure_before_anything_is_durable_leaves_no_directory(
    tmp_path: Path, put_by_key: Put
) -> None:
    put_by_key("lmdb", tmp_path / "db", {b"other": b""})
    (tmp_path / "file").write_bytes(b"")
    with open_rows("lmdb", tmp_path / "db", key="decimal") as source:
        with pytest.raises(InputError, match="no row of it"):
            migrate(source, tmp_path / "deep" / "store", "user", skip_others=True)
        with pytest.raises(InputError, match="of no id"):
            migrate(source, tmp_path / "deep" / "store", "user")
        with pytest.raises(InputError, match="cannot be made a store directory"):
            migrate(source, tmp_path / "file", "user")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db", "file"]


def test_missing_rows_are_zeros_if_asked_for_and_the_source_is_not_read_for_it_again(
    tmp_path: Path, put_by_key: Put
) -> None:
    rows = by_key("decimal", ROWS)
    del rows[b"0"], rows[b"13"], rows[b"698"]
    put_by_key("rocksdb", tmp_path / "db", rows)
    expected = ROWS.copy()
    expected[[0, 13, 698]] = 0
    with open_rows("rocksdb", tmp_path / "db", key="decimal") as source:
        with pytest.raises(InputError, match="3 have no row: 0, 13, 698;"):
            migrate(source, tmp_path / "store", "user")
        done = migrate(source, tmp_path / "store", "user", missing="zeros")
        assert (done.rows, done.read, done.filled, done.resumed_from) == (700, 697, 3, 697)
        assert np.array_equal(served(tmp_path / "store"), expected)
        done = migrate(source, tmp_path / "store", "user", missing="zeros", rows=705)
    assert (done.rows, done.filled) == (705, 8)
    assert np.array_equal(served(tmp_path / "store")[:700], expected)
    assert not served(tmp_path / "store")[700:].any()


def test_a_codec_of_ones_own_is_read_back(tmp_path: Path, put_by_key: Put) -> None:
    codec = Codec(
        lambda _, ids: [b"%x" % number for number in ids.tolist()],
        lambda keys: np.array([int(key, 16) for key in keys], np.int64),
    )
    rows = {b"%x" % number: row.tobytes() for number, row in enumerate(ROWS)}
    put_by_key("lmdb", tmp_path / "db", rows)
    with open_rows("lmdb", tmp_path / "db", key=codec) as source:
        migrate(source, tmp_path / "store", "user")
    assert np.array_equal(served(tmp_path / "store"), ROWS)


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb", "blockfile"])
def test_it_is_placed_by_a_log_and_loaded_as_any_table(
    decimal: KeyedRows, adapter: str, tmp_path: Path
) -> None:
    requests = np.random.default_rng(1).integers(0, 700, (60, 6))
    log = bandana_kv.AccessLog.from_requests(requests)
    done = migrate(decimal, tmp_path / "store", "user", log=log, adapter=adapter)
    assert np.array_equal(served(tmp_path / "store"), ROWS)
    assert bandana_kv.verify(tmp_path / "store").sound
    assert done.bytes == ROWS.nbytes


def test_into_an_engine_that_the_user_holds(decimal: KeyedRows, tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "own"), map_size=1 << 26, max_dbs=1, readahead=False) as own:
        adapter = LmdbAdapter.on(own, own.open_db(b"blocks"))
        migrate(decimal, tmp_path / "store", "user", adapter=adapter)
        with bandana_kv.open(tmp_path / "store", adapter=adapter) as store:
            assert np.array_equal(store.multi_get("user", np.arange(700)), ROWS)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "complex128"])
def test_rows_of_any_dtype_and_of_several_pages(
    dtype: str, tmp_path: Path, put_by_key: Put
) -> None:
    rows = np.random.default_rng(2).integers(0, 200, (70, 3000)).astype(dtype)
    put_by_key("lmdb", tmp_path / "db", by_key("uint32-be", rows))
    with open_rows("lmdb", tmp_path / "db", key="uint32-be", dtype=dtype) as source:
        migrate(source, tmp_path / "store", "user", dim=3000)
    assert served(tmp_path / "store").dtype == dtype
    assert np.array_equal(served(tmp_path / "store"), rows)


class At(Progress):
    """Calls a function when a stage begins."""

    def __init__(self, stage: str, then: Callable[[], None]) -> None:
        self._stage, self._then = stage, then

    def start(self, label: str, _total: int, _unit: str) -> None:
        if label == self._stage:
            self._then()


def test_a_row_that_went_wrong_on_the_way_is_found_and_never_served(
    decimal: KeyedRows, tmp_path: Path
) -> None:
    bandana_kv.load(tmp_path / "store", {"user": ROWS[::-1]})

    def spoil() -> None:
        (staged,) = (tmp_path / "store" / "migrations").rglob("rows.npy")
        rows = np.lib.format.open_memmap(staged, "r+")
        rows[[3, 400]] += 1
        rows.flush()

    with pytest.raises(MigrationError, match=r"2 rows differ.*ids 3, 400;.*--restart"):
        migrate(decimal, tmp_path / "store", "user", progress=At("load user", spoil))
    assert np.array_equal(served(tmp_path / "store"), ROWS[::-1])
    migrate(decimal, tmp_path / "store", "user", restart=True)
    assert np.array_equal(served(tmp_path / "store"), ROWS)


@pytest.mark.parametrize("stage", ["load user", "compare user"])
def test_a_second_migration_of_a_table_waits_its_turn(
    decimal: KeyedRows, stage: str, tmp_path: Path
) -> None:
    refused = []

    def again() -> None:
        with pytest.raises(LoadInProgressError, match="moves this table"):
            migrate(decimal, tmp_path / "store", "user")
        refused.append(True)

    done: Migrated = migrate(decimal, tmp_path / "store", "user", progress=At(stage, again))
    assert refused == [True]
    assert done.version == 1


@pytest.mark.parametrize("damage", ["state.json", "ids", "rows.npy"])
def test_damaged_remains_of_an_earlier_process_are_refused(
    damage: str, tmp_path: Path, put_by_key: Put
) -> None:
    rows = by_key("decimal", ROWS)
    del rows[b"13"]
    put_by_key("lmdb", tmp_path / "db", rows)
    with open_rows("lmdb", tmp_path / "db", key="decimal") as source:
        with pytest.raises(InputError, match="have no row"):
            migrate(source, tmp_path / "store", "user")
        (found,) = (tmp_path / "store" / "migrations").rglob(damage)
        found.write_bytes(found.read_bytes()[:7] if damage != "rows.npy" else b"")
        with pytest.raises(MigrationError, match="restart"):
            migrate(source, tmp_path / "store", "user", missing="zeros")
        migrate(source, tmp_path / "store", "user", missing="zeros", restart=True)
