"""Values of either byte order and every kind: the same numbers come out, wherever they go."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.adapters.rows import KEY_CODECS, open_rows
from bandana_kv.disk import manifest
from bandana_kv.errors import MigrationError
from bandana_kv.migration import migrate
from bandana_kv.rollout import Rollout, Shares
from bandana_kv.rows.source import checked_rows, source_of
from bandana_kv.tools.verify_store import main as verify_store

ENGINES = ("lmdb", "rocksdb")
DTYPES = (">f4", "<f4", ">f2", ">f8", ">i2", ">u4", ">i8", ">c8", "u1", "?", "float32")
IDS = np.arange(60)
Put = Callable[..., None]


def rows_of(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (IDS.size, 6)).astype(dtype)


def by_key(rows: np.ndarray) -> dict[bytes, bytes]:
    keys = KEY_CODECS["uint64-be"]("t", IDS)
    return {key: row.tobytes() for key, row in zip(keys, rows, strict=True)}


def blocks_of(store: Path) -> Path:
    engine = manifest.engine_path(store, 1, 1)
    return max((path for path in engine.rglob("*") if path.is_file()), key=size_of)


def size_of(path: Path) -> int:
    return path.stat().st_size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_the_numbers_that_were_written(
    engine: str, dtype: str, tmp_path: Path, put_by_key: Put
) -> None:
    rows = rows_of(dtype)
    put_by_key(engine, tmp_path / "db", by_key(rows))
    with open_rows(engine, tmp_path / "db", dtype=dtype) as source:
        found = source.rows("t", IDS[::-1])
        assert found.dtype == rows.dtype.newbyteorder("<")
        assert np.array_equal(found, rows[::-1])
        done = migrate(source, tmp_path / "store", "t")
    assert done.checksum_source == done.checksum_store
    with bandana_kv.open(tmp_path / "store") as store:
        assert store.dtype("t") == rows.dtype.newbyteorder("<")
        assert np.array_equal(store.multi_get("t", IDS), rows)


@pytest.mark.parametrize("stored", ["<f4", ">f4"])
@pytest.mark.parametrize("kept", ["<f4", ">f4"])
def test_repair_and_fallback_from_a_source_of_either_order(
    kept: str, stored: str, tmp_path: Path, put_by_key: Put
) -> None:
    rows = rows_of("f4")
    bandana_kv.load(tmp_path / "store", {"t": rows.astype(stored)}, adapter="blockfile")
    put_by_key("lmdb", tmp_path / "db", by_key(rows.astype(kept)))
    with blocks_of(tmp_path / "store").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 8)
    with (
        open_rows("lmdb", tmp_path / "db", dtype=kept) as source,
        bandana_kv.open(tmp_path / "store", fallback=source) as store,
    ):
        assert np.array_equal(store.multi_get("t", IDS), rows)
        assert store.stats()["t"]["fallback_rows"] > 0
    from_db = ["--repair", "--from-lmdb", str(tmp_path / "db"), "--dtype", kept]
    done = CliRunner().invoke(verify_store, [str(tmp_path / "store"), *from_db])
    assert done.exit_code == 0, done.output
    with bandana_kv.open(tmp_path / "store") as store:
        assert np.array_equal(store.multi_get("t", IDS), rows)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_roll_out_finds_no_difference(engine: str, tmp_path: Path, put_by_key: Put) -> None:
    rows = rows_of("f4")
    bandana_kv.load(tmp_path / "store", {"t": rows})
    put_by_key(engine, tmp_path / "db", by_key(rows.astype(">f4")))
    with (
        open_rows(engine, tmp_path / "db", dtype=">f4") as source,
        bandana_kv.open(tmp_path / "store") as store,
        Rollout(source, store, shares=Shares(1.0, 1.0, 1.0)) as rollout,
    ):
        assert np.array_equal(rollout.multi_get("t", IDS), rows)
        for stage in ("shadow", "canary", "full"):
            rollout.set_stage(stage)
            assert np.array_equal(rollout.multi_get("t", IDS), rows)
        assert rollout.wait(30)
        assert not rollout.report().differences


def test_numbers_keep_their_bits(tmp_path: Path, put_by_key: Put) -> None:
    bits = np.array([0x7FC00001, 0x7F800001, 0xFF800000, 0x80000000, 1, 0x3F800000], np.uint32)
    odd = np.tile(bits, (IDS.size, 1))
    put_by_key("lmdb", tmp_path / "db", by_key(odd.astype(">u4")))
    with open_rows("lmdb", tmp_path / "db", dtype=">f4") as source:
        assert np.array_equal(source.rows("t", IDS).view(np.uint32), odd)
    assert math.isnan(odd[:1].view(np.float32)[0, 0])


def test_a_migration_that_was_begun_in_the_other_order_is_not_gone_on_with(
    tmp_path: Path, put_by_key: Put
) -> None:
    values = by_key(rows_of(">f4"))
    del values[KEY_CODECS["uint64-be"]("t", np.array([7]))[0]]
    put_by_key("lmdb", tmp_path / "db", values)
    with (
        open_rows("lmdb", tmp_path / "db", dtype="<f4") as wrong,
        pytest.raises(bandana_kv.errors.InputError, match="have no row"),
    ):
        migrate(wrong, tmp_path / "store", "t")
    with (
        open_rows("lmdb", tmp_path / "db", dtype=">f4") as source,
        pytest.raises(MigrationError, match="dtype was '<f4' and is '>f4'"),
    ):
        migrate(source, tmp_path / "store", "t")


def test_a_function_may_give_rows_of_either_order() -> None:
    rows = rows_of("f4")
    source = source_of(lambda _, ids: rows[ids].astype(">f4"))
    given = checked_rows(source, "t", IDS, 6, np.dtype("<f4"))
    assert given.dtype == np.dtype("<f4")
    assert np.array_equal(given, rows)


@pytest.mark.parametrize("dtype", ["<f8", ">f8"])
def test_bags_of_a_table_of_either_order_are_pooled_alike(dtype: str, tmp_path: Path) -> None:
    rows = np.full((4, 2), 1 + 2**-40)
    bandana_kv.load(tmp_path, {"t": rows.astype(dtype)})
    with bandana_kv.open(tmp_path) as store:
        assert np.array_equal(store.embedding_bag("t", [[1, 2]]), rows[:1])
