"""Rows by key in engines that somebody else writes: found, named when missing, never changed."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np
import pytest
import rocksdict

from bandana_kv.adapters.rows import KEY_CODECS, KeyedRows, open_rows
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    FallbackError,
    InputError,
    RowMissingError,
    StoreNotFoundError,
)

ROWS = np.random.default_rng(0).random((50, 6), np.float32)
IDS = np.array([49, 0, 7], np.int64)
ENGINES = ("lmdb", "rocksdb")


def raw_options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    return options


def build(engine: str, path: Path, keys: Sequence[bytes], inner: str | None) -> None:
    values = [row.tobytes() for row in ROWS]
    if engine == "lmdb":
        with lmdb.open(str(path), map_size=1 << 24, max_dbs=2) as environment:
            database = environment.open_db(None if inner is None else inner.encode())
            with environment.begin(write=True, db=database) as txn:
                for key, value in zip(keys, values, strict=True):
                    txn.put(key, value)
        return
    families = {"default": raw_options()} | ({inner: raw_options()} if inner else {})
    database = rocksdict.Rdict(str(path), raw_options(), families)
    family = database.get_column_family(inner or "default")
    for key, value in zip(keys, values, strict=True):
        family[key] = value
    family.flush()
    del family
    database.close()


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != "lock.mdb"}


@pytest.mark.parametrize("inner", [None, "emb"])
@pytest.mark.parametrize("codec", KEY_CODECS)
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_found_by_every_codec_and_nothing_is_changed(
    engine: str, codec: str, inner: str | None, tmp_path: Path
) -> None:
    keys = KEY_CODECS[codec]("user", np.arange(50))
    build(engine, tmp_path / "db", keys, inner)
    before = contents(tmp_path / "db")
    with open_rows(engine, tmp_path / "db", key=codec, inner=inner) as source:
        assert np.array_equal(source.rows("user", IDS), ROWS[IDS])
        with pytest.raises(RowMissingError, match=r"'user'.*id 50\b"):
            source.rows("user", np.array([3, 50]))
    assert contents(tmp_path / "db") == before


def test_named_codecs_give_the_bytes_that_they_promise() -> None:
    assert {name: codec("t", np.array([258]))[0] for name, codec in KEY_CODECS.items()} == {
        "uint64-be": b"\0\0\0\0\0\0\1\2",
        "uint64-le": b"\2\1\0\0\0\0\0\0",
        "uint32-be": b"\0\0\1\2",
        "uint32-le": b"\2\1\0\0",
        "decimal": b"258",
        "table:decimal": b"t:258",
    }


@pytest.fixture(params=ENGINES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> KeyedRows:
    build(request.param, tmp_path / "db", KEY_CODECS["uint64-be"]("t", np.arange(50)), None)
    return open_rows(request.param, tmp_path / "db")


def test_a_codec_of_ones_own(source: KeyedRows, tmp_path: Path) -> None:
    source.close()
    with open_rows(
        source.name,
        tmp_path / "db",
        key=lambda _, ids: [struct.pack(">Q", row_id) for row_id in ids],
    ) as own:
        assert np.array_equal(own.rows("any", IDS), ROWS[IDS])
    with (
        open_rows(source.name, tmp_path / "db", key=lambda *_: [b""]) as own,
        pytest.raises(FallbackError, match="codec"),
    ):
        own.rows("any", IDS)


def test_a_child_after_a_fork_reads_on(source: KeyedRows) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(source.rows("t", IDS), ROWS[IDS]) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(source.rows("t", IDS), ROWS[IDS])
    source.close()


def test_a_closed_source_says_so(source: KeyedRows) -> None:
    source.close()
    source.close()
    with pytest.raises(AdapterError, match="closed"):
        source.rows("t", IDS)


def test_values_of_another_dtype_are_refused(source: KeyedRows, tmp_path: Path) -> None:
    source.close()
    with (
        open_rows(source.name, tmp_path / "db", dtype="complex128") as wrong,
        pytest.raises(FallbackError, match="24 bytes"),
    ):
        wrong.rows("t", IDS)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_not_there_is_an_error_and_leaves_nothing(engine: str, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        open_rows(engine, tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())
    build(engine, tmp_path / "db", KEY_CODECS["decimal"]("t", np.arange(50)), None)
    with pytest.raises(StoreNotFoundError, match="'other'"):
        open_rows(engine, tmp_path / "db", inner="other")


@pytest.mark.parametrize(
    "options", [{"key": "hex"}, {"key": 3}, {"dtype": "O"}, {"dtype": "no such"}]
)
def test_wrong_options_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_rows("lmdb", tmp_path, **options)
    with pytest.raises(InputError, match="sqlite"):
        open_rows("sqlite", tmp_path)


def test_a_value_that_pickles_stays_bytes(tmp_path: Path) -> None:
    build("rocksdb", tmp_path / "db", KEY_CODECS["decimal"]("t", np.arange(50)), None)
    database = rocksdict.Rdict(str(tmp_path / "db"), raw_options(), {"default": raw_options()})
    database[b"7"] = b"cos\nsystem\n(S'exit 3'\ntR.    "[: ROWS[0].nbytes]
    database.close()
    with open_rows("rocksdb", tmp_path / "db", key="decimal") as source:
        assert source.rows("t", np.array([7])).shape == (1, 6)
    assert issubclass(RowMissingError, BandanaError)
