"""Tables that are asked by keys, and what is answered where there is no row."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv import Rows
from bandana_kv.care.verification import verify
from bandana_kv.errors import FormatError, IdError, InputError
from bandana_kv.placement import place

ROWS, DIM = 500, 8
RNG = np.random.default_rng(12)
VALUES = RNG.standard_normal((ROWS, DIM)).astype(np.float32)
HASHED = RNG.permutation(np.unique(RNG.integers(-(1 << 63), (1 << 63) - 1, ROWS + 50)))[:ROWS]
KEYS: dict[str, Any] = {
    "int64": HASHED,
    "uint64": HASHED.view(np.uint64),
    "str": [f"user-{number}" for number in range(ROWS)],
    "bytes": [b"\x00%d\x00" % number for number in range(ROWS)],
}


def absent(kind: str) -> Any:
    missing = {"str": ["nobody"], "bytes": [b"nobody"]}
    return missing.get(kind, np.setdiff1d([1, 2, 3], HASHED)[:1].astype(kind, copy=False))


def some(kind: str, numbers: Any) -> Any:
    keys = KEYS[kind]
    return keys[numbers] if isinstance(keys, np.ndarray) else [keys[int(i)] for i in numbers]


@pytest.fixture(params=list(KEYS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path, kind: str) -> Path:
    bandana_kv.load(tmp_path / "s", {"t": Rows(VALUES, keys=KEYS[kind])}, adapter="blockfile")
    return tmp_path / "s"


def test_rows_by_key(path: Path, kind: str) -> None:
    numbers = RNG.integers(0, ROWS, 60)
    keys = some(kind, numbers)
    with bandana_kv.open(path, cache_bytes=8_000) as store:
        assert np.array_equal(store.multi_get("t", keys), VALUES[numbers])
        assert np.array_equal(store["t"].multi_get(keys), VALUES[numbers])
        assert np.array_equal(store.get("t", keys[0]), VALUES[numbers[0]])
        assert np.array_equal(store.multi_get({"t": keys})["t"], VALUES[numbers])
        assert np.array_equal(asyncio.run(store.multi_get_async("t", keys)), VALUES[numbers])
        assert store.multi_get_raw("t", keys).shape == (60, 4 * DIM)
        store.prefetch("t", keys)
        shaped = np.asarray(keys, object if kind in ("str", "bytes") else None).reshape(3, 20)
        assert np.array_equal(store.multi_get("t", shaped), VALUES[numbers].reshape(3, 20, DIM))
        bags = store.embedding_bag("t", keys, [0, 10, 30], mode="sum")
        assert np.allclose(bags[1], VALUES[numbers[10:30]].sum(0), atol=1e-5)
    assert verify(path).problems == 0


def test_keys_that_are_not_there(path: Path, kind: str) -> None:
    there = list(some(kind, [4, 7]))
    keys = [there[0], absent(kind)[0], there[1]]
    if kind in ("int64", "uint64"):
        keys = np.array(keys, kind)
    expected = np.stack([VALUES[4], np.zeros(DIM, np.float32), VALUES[7]])
    with bandana_kv.open(path) as store:
        with pytest.raises(IdError, match=r"table 't' has no key .*number 1 of those"):
            store.multi_get("t", keys)
        assert np.array_equal(store.multi_get("t", keys, missing="zeros"), expected)
        rows, found = store.multi_get("t", keys, missing="mask")
        assert np.array_equal(rows, expected)
        assert found.tolist() == [True, False, True]
        filled = store.multi_get("t", keys, missing=np.full(DIM, 2.5))
        assert np.array_equal(filled[1], np.full(DIM, 2.5, np.float32))
        assert np.array_equal(filled[[0, 2]], expected[[0, 2]])
        out = np.empty((3, DIM), np.float32)
        assert store.multi_get("t", keys, missing="zeros", out=out) is out
        assert np.array_equal(out, expected)
        assert not store.multi_get("t", absent(kind), missing="mask")[1].any()
        with pytest.raises(IdError, match=r"has no key .*number 1 of those"):
            store.prefetch("t", keys)
        store.prefetch("t", keys, missing="skip")
        with pytest.raises(InputError, match="missing is 'error'"):
            store.multi_get("t", keys, missing="nan")
        with pytest.raises(InputError, match="row of 8 numbers"):
            store.multi_get("t", keys, missing=[1.0])


def test_updates_and_switches_by_key(path: Path, kind: str) -> None:
    keys = some(kind, [3, 9])
    new = np.ones((2, DIM), np.float32)
    with bandana_kv.open(path) as store:
        store.update("t", keys, new)
        assert np.array_equal(store.multi_get("t", keys), new)
        store.flush()
        with pytest.raises(IdError, match="no key"):
            store.update("t", absent(kind), new[:1])
        other = VALUES[::-1].copy()
        bandana_kv.load(path, {"t": Rows(other[:100], keys=KEYS[kind][100:200])})
        store.refresh()
        assert np.array_equal(store.multi_get("t", some(kind, [100, 199])), other[[0, 99]])
        with pytest.raises(IdError, match="no key"):
            store.multi_get("t", keys)


def test_keys_stay_through_a_replacement(path: Path, kind: str) -> None:
    keys = some(kind, range(ROWS))
    with bandana_kv.open(path) as store:
        before = store.placement("t")
        store.place_anew("t", place(None, ROWS, before.rows_per_block, "shuffled", seed=3))
        assert np.array_equal(store.multi_get("t", keys), VALUES)
    with bandana_kv.open(path) as store:
        assert np.array_equal(store.multi_get("t", keys), VALUES)


def test_ids_beyond_the_table(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "s", {"t": VALUES})
    ids = [[3, -1], [ROWS, 4]]
    with bandana_kv.open(tmp_path / "s") as store:
        rows, found = store.multi_get("t", ids, missing="mask")
        assert found.tolist() == [[True, False], [False, True]]
        assert np.array_equal(rows[0, 0], VALUES[3])
        assert not rows[0, 1].any()
        assert rows.shape == (2, 2, DIM)
        with pytest.raises(IdError):
            store.multi_get("t", ids)


def test_batches_of_tables_with_integer_keys(tmp_path: Path) -> None:
    tables = {"a": Rows(VALUES, keys=KEYS["int64"]), "b": VALUES}
    bandana_kv.load(tmp_path / "s", tables)
    with bandana_kv.open(tmp_path / "s") as store:
        asked = np.concatenate([KEYS["int64"][[5, 6]], [8, 9, 10]])
        rows = store.batch(["a", "b"]).multi_get(asked, [0, 2, 5])
        assert np.array_equal(rows, VALUES[[5, 6, 8, 9, 10]])


def test_padding_is_a_key(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "s", {"t": Rows(VALUES, keys=np.arange(10, 10 + ROWS))})
    with bandana_kv.open(tmp_path / "s") as store:
        pooled = store.embedding_bag("t", [[10, -1], [-1, -1]], mode="sum", padding_idx=-1)
        assert np.array_equal(pooled, [VALUES[0], np.zeros(DIM)])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (np.zeros(ROWS, np.int64), "twice|repeated|more than once"),
        (np.arange(ROWS - 1), f"{ROWS - 1} keys for {ROWS} rows"),
        (np.arange(ROWS) / 2, "keys"),
        ([None] * ROWS, "keys"),
    ],
)
def test_keys_that_cannot_be_are_refused_and_leave_nothing(
    tmp_path: Path, keys: Any, message: str
) -> None:
    with pytest.raises((InputError, IdError), match=message):
        bandana_kv.load(tmp_path / "s", {"t": Rows(VALUES, keys=keys)})
    assert not (tmp_path / "s" / "CURRENT").exists()


def test_a_damaged_index_is_found(path: Path, kind: str) -> None:
    del kind
    file = next(path.rglob("keys-*"))
    data = bytearray(file.read_bytes())
    data[-20] ^= 255
    file.write_bytes(data)
    assert verify(path).problems == 1
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="keys-"):
        bandana_kv.open(path)
