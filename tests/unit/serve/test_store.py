"""What a store answers, and what it refuses without losing anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv import adapters
from bandana_kv.cache.policy import Policy
from bandana_kv.errors import (
    BandanaError,
    IdError,
    InputError,
    MissingExtraError,
    StoreNotFoundError,
    TableNotFoundError,
)

RNG = np.random.default_rng(0)
USER = RNG.random((500, 32), np.float32)
ITEM = RNG.integers(-9, 9, (70, 8)).astype(np.int8)
TABLES = {"user": USER, "item": ITEM}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("store")
    bandana_kv.load(directory, TABLES, adapter="memory", placement="shuffled")
    return directory


@pytest.fixture
def store(path: Path) -> Iterator[bandana_kv.EmbeddingStore]:
    with bandana_kv.open(path, cache_bytes=10_000) as opened:
        yield opened
        opened.check()


@pytest.mark.parametrize("adapter", ["memory", "lmdb", "rocksdb"])
def test_every_engine_answers_the_same_bits(adapter: str, tmp_path: Path) -> None:
    rows = RNG.integers(0, 256, (700, 96)).astype(np.uint8).view(np.float16)
    wide = RNG.random((9, 3000))
    tables = {"narrow": rows, "wide": wide}
    bandana_kv.load(tmp_path / "s", tables, adapter=adapter, placement="shuffled")
    ids = RNG.integers(0, 700, 2000)
    with bandana_kv.open(tmp_path / "s", cache_bytes=30_000) as store:
        assert store.multi_get("narrow", ids).tobytes() == rows[ids].tobytes()
        assert store.multi_get("narrow", ids[::-1]).tobytes() == rows[ids[::-1]].tobytes()
        assert store.multi_get("wide", ids % 9).tobytes() == wide[ids % 9].tobytes()
        store.check()


def test_order_and_repeats_are_kept(store: bandana_kv.EmbeddingStore) -> None:
    ids = [499, 0, 0, 7, 499, 0]
    assert np.array_equal(store.multi_get("user", ids), USER[ids])
    assert np.array_equal(store.get("user", 42), USER[42])
    assert store.get("user", np.int8(3)).shape == (32,)


def test_an_empty_batch_is_fine(store: bandana_kv.EmbeddingStore) -> None:
    for nothing in ([], (), np.zeros(0, np.int32)):
        rows = store.multi_get("user", nothing)
        assert rows.shape == (0, 32)
        assert rows.dtype == np.float32
    assert store.stats()["user"]["lookups"] == 0


@pytest.mark.parametrize(
    "dtype", ["i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", ">i8", ">u4"]
)
def test_ids_of_every_integer_type_are_taken(store: bandana_kv.EmbeddingStore, dtype: str) -> None:
    ids = np.array([5, 120, 5], dtype)
    ids.flags.writeable = False
    assert np.array_equal(store.multi_get("user", ids), USER[[5, 120, 5]])
    every_other = np.arange(20).astype(dtype)[::-2]
    assert np.array_equal(store.multi_get("user", every_other), USER[:20][::-2])


@pytest.mark.parametrize(
    ("ids", "error", "said"),
    [
        ([0, 500], IdError, "id 500 is out of range; it has rows 0 to 499"),
        ([-1], IdError, "id -1 is out of range"),
        (np.array([1 << 40]), IdError, str(1 << 40)),
        (np.array([1 << 32], np.uint64), IdError, str(1 << 32)),
        (np.array([(1 << 64) - 1], np.uint64), IdError, str((1 << 64) - 1)),
        (np.array([1 << 63], ">u8"), IdError, str(1 << 63)),
        ([1 << 64], IdError, "must be integers"),
        ([1.0], IdError, "must be integers, not float64"),
        ([True], IdError, "must be integers, not bool"),
        (["1"], IdError, "must be integers"),
        ([None], IdError, "must be integers"),
        ([[1], [1, 2]], IdError, "not an array of integers"),
        ([[1, 2], [3, 500]], IdError, "id 500 is out of range"),
        ([[1.0, 2.0]], IdError, "must be integers, not float64"),
        (None, InputError, "no ids"),
    ],
)
def test_bad_ids_are_named_and_cost_nothing(
    store: bandana_kv.EmbeddingStore, ids: object, error: type[BandanaError], said: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        store.multi_get("user", ids)
    assert "'user'" in str(raised.value)
    assert store.stats()["user"]["lookups"] == store.stats()["user"]["block_reads"] == 0


def test_an_unknown_table_is_named_beside_those_there_are(
    store: bandana_kv.EmbeddingStore,
) -> None:
    for ask in (lambda: store.get("usr", 1), lambda: store.multi_get({"item": [1], "usr": [1]})):
        with pytest.raises(TableNotFoundError, match=r"'usr'.*'user', 'item'"):
            ask()
    assert store.stats()["item"]["lookups"] == 0


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 32), np.float64),
        np.empty((3, 32), np.float32),
        np.empty((32, 2), np.float32).T,
        np.empty((2, 64), np.float32)[:, ::2],
        np.empty((2, 32), ">f4"),
        [[0.0] * 32] * 2,
    ],
)
def test_an_out_that_does_not_fit_is_refused(
    store: bandana_kv.EmbeddingStore, out: np.ndarray
) -> None:
    with pytest.raises(InputError, match=r"out must be .*\(2, 32\) and dtype float32"):
        store.multi_get("user", [1, 2], out=out)


def test_a_read_only_out_is_refused_and_a_good_one_is_returned(
    store: bandana_kv.EmbeddingStore, tmp_path: Path
) -> None:
    out = np.empty((2, 32), np.float32)
    assert store.multi_get("user", [3, 4], out=out) is out
    assert np.array_equal(out, USER[3:5])
    mapped = np.memmap(tmp_path / "out", np.float32, "w+", shape=(2, 32))
    assert np.array_equal(store.multi_get("user", [9, 8], out=mapped), USER[[9, 8]])
    out.flags.writeable = False
    with pytest.raises(InputError, match="writeable"):
        store.multi_get("user", [1, 2], out=out)


def test_tables_at_once_are_answered_by_name(store: bandana_kv.EmbeddingStore) -> None:
    rows = store.multi_get({"item": [1, 1], "user": []})
    assert np.array_equal(rows["item"], ITEM[[1, 1]])
    assert rows["user"].shape == (0, 32)
    for wrong in (lambda: store.multi_get({"item": [1]}, [2]), lambda: store.multi_get(None)):
        with pytest.raises(InputError, match="ids by table name"):
            wrong()


def test_a_closed_store_says_so(path: Path) -> None:
    store = bandana_kv.open(path)
    store.close()
    store.close()
    for ask in (
        lambda: store.get("user", 1),
        lambda: store.multi_get({"user": [1]}),
        lambda: store.policy("user"),
    ):
        with pytest.raises(InputError, match="closed"):
            ask()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache_bytes": -1}, "cache_bytes -1"),
        ({"cache_bytes": 1e6}, "cache_bytes"),
        ({"cache_bytes": {"usr": 1}}, "'usr'"),
        ({"readers": 0}, "readers 0"),
        ({"readers": 1.5}, "readers 1.5"),
        ({"readers": "many"}, "readers 'many'"),
        ({"admission": "some"}, "choose one of none, all, lower"),
        ({"admission": "threshold"}, "threshold"),
        ({"admission": "threshold", "threshold": -1}, "threshold -1"),
        ({"threshold": 3}, "no admission was named"),
        ({"policy": "lru"}, "not a bandana_kv.policy.Policy"),
        ({"policy": Policy(half_life=0.0)}, "half_life"),
        ({"policy": Policy(), "admission": "all"}, "not both"),
    ],
)
def test_wrong_options_are_named(path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bandana_kv.open(path, **options)


def test_cache_bytes_may_be_given_by_table(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes={"user": 20_000}) as store:
        assert store.capacity_rows("user") > 0
        assert store.capacity_rows("item") == 0


def test_opening_a_mistyped_path_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for wrong in ("not there", "file", "."):
        with pytest.raises(StoreNotFoundError, match=r"bandana_kv\.load"):
            bandana_kv.open(tmp_path / wrong)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_missing_engine_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bandana_kv.load(tmp_path / "s", {"user": USER}, adapter="lmdb")

    def fail(name: str) -> None:
        raise ImportError(f"no module {name}")

    monkeypatch.setattr(adapters.importlib, "import_module", fail)
    with pytest.raises(MissingExtraError, match="pip install lmdb"):
        bandana_kv.open(tmp_path / "s")
    with pytest.raises(MissingExtraError, match="pip install rocksdict"):
        bandana_kv.load(tmp_path / "t", {"user": USER}, adapter="rocksdb")
    assert not (tmp_path / "t").exists()
