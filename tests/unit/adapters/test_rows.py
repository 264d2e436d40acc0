"""Rows by key in engines that somebody else writes: found, named when missing, never changed."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandana_kv.adapters import rows as rows_module
from bandana_kv.adapters.rows import KEY_CODECS, Codec, KeyedRows, open_rows
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


Put = Callable[..., None]


def by_key(keys: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(keys, (row.tobytes() for row in ROWS), strict=True))


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != "lock.mdb"}


@pytest.mark.parametrize("inner", [None, "emb"])
@pytest.mark.parametrize("codec", KEY_CODECS)
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_found_by_every_codec_and_nothing_is_changed(
    engine: str, codec: str, inner: str | None, tmp_path: Path, put_by_key: Put
) -> None:
    keys = KEY_CODECS[codec]("user", np.arange(50))
    put_by_key(engine, tmp_path / "db", by_key(keys), inner)
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
def source(request: pytest.FixtureRequest, tmp_path: Path, put_by_key: Put) -> KeyedRows:
    rows = by_key(KEY_CODECS["uint64-be"]("t", np.arange(50)))
    put_by_key(request.param, tmp_path / "db", rows)
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
def test_what_is_not_there_is_an_error_and_leaves_nothing(
    engine: str, tmp_path: Path, put_by_key: Put
) -> None:
    with pytest.raises(StoreNotFoundError):
        open_rows(engine, tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())
    put_by_key(engine, tmp_path / "db", by_key(KEY_CODECS["decimal"]("t", np.arange(50))))
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


def test_a_value_that_pickles_stays_bytes(tmp_path: Path, put_by_key: Put) -> None:
    rows = by_key(KEY_CODECS["decimal"]("t", np.arange(50)))
    rows[b"7"] = b"cos\nsystem\n(S'exit 3'\ntR.    "[: ROWS[0].nbytes]
    put_by_key("rocksdb", tmp_path / "db", rows)
    with open_rows("rocksdb", tmp_path / "db", key="decimal") as source:
        assert source.rows("t", np.array([7])).shape == (1, 6)
    assert issubclass(RowMissingError, BandanaError)


@given(st.lists(st.integers(0, (1 << 32) - 1)), st.sampled_from(list(KEY_CODECS)))
def test_every_codec_reads_back_the_ids_that_it_writes(ids: list[int], name: str) -> None:
    codec = KEY_CODECS[name]
    skip = len(codec.prefix("user"))
    keys = [key[skip:] for key in codec("user", np.array(ids, np.int64))]
    assert codec.decode(keys).tolist() == ids


@given(st.lists(st.binary(max_size=9)), st.sampled_from(list(KEY_CODECS)))
def test_what_is_no_key_of_a_codec_is_of_no_id(keys: list[bytes], name: str) -> None:
    codec = KEY_CODECS[name]
    for key, row_id in zip(keys, codec.decode(keys).tolist(), strict=True):
        assert row_id >= -1
        if row_id >= 0:
            again = codec.encode("user", np.array([row_id]))[0]
            assert again == (key.lstrip(b"0") or b"0" if "decimal" in name else key)


@pytest.mark.parametrize("key", [b"", b"-1", b"+7", b" 7", b"7_0", b"9" * 20, b"9" * 9999])
def test_odd_text_is_of_no_id(key: bytes) -> None:
    assert KEY_CODECS["decimal"].decode([b"7", key, b"007"]).tolist() == [7, -1, 7]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_scan_goes_through_one_prefix_in_order_and_on_behind_any_key(
    engine: str, tmp_path: Path, put_by_key: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_SCANNED_KEYS", 7)
    others = dict.fromkeys((b"emb:item:3", b"emb:users:4", b"a", b"z"), b"else")
    own = {b"emb:user:%d" % row_id: ROWS[row_id].tobytes() for row_id in range(50)}
    put_by_key(engine, tmp_path / "db", own | others)
    with open_rows(engine, tmp_path / "db", key="decimal", prefix=b"emb:user:") as source:
        batches = list(source.scan("any"))
        assert {len(keys) for keys, _ in batches} == {1, 7}
        keys = [key for found, _ in batches for key in found]
        assert keys == sorted(own)
        assert [value for _, found in batches for value in found] == [own[key] for key in keys]
        assert [b"emb:user:%d" % row_id for row_id in source.ids_of("any", keys)] == keys
        for after in (keys[0], keys[30], keys[-1], b"emb:user:1x"):
            behind = [key for found, _ in source.scan("any", after) for key in found]
            assert behind == [key for key in keys if key > after]
        assert np.array_equal(source.rows("any", IDS), ROWS[IDS])
        assert source.count() >= len(own)


def test_a_scan_needs_a_way_back_from_keys_to_ids(source: KeyedRows, tmp_path: Path) -> None:
    source.close()
    with (
        open_rows(source.name, tmp_path / "db", key=lambda _, ids: [b""] * ids.size) as own,
        pytest.raises(InputError, match=r"Codec\(encode, decode\)"),
    ):
        own.ids_of("t", [b""])
    wrong = Codec(lambda _, ids: [b""] * ids.size, lambda keys: np.zeros(len(keys)))
    with (
        open_rows(source.name, tmp_path / "db", key=wrong) as own,
        pytest.raises(InputError, match="float64"),
    ):
        own.ids_of("t", [b""])


@pytest.mark.parametrize(
    ("flags", "prefix"), [({"dupsort": True}, b""), ({"reverse_key": True}, b"u")]
)
def test_databases_in_another_order_are_refused(
    flags: dict[str, bool], prefix: bytes, tmp_path: Path
) -> None:
    with lmdb.open(str(tmp_path / "db"), max_dbs=1) as environment:
        environment.open_db(b"odd", **flags)
    with (
        open_rows("lmdb", tmp_path / "db", inner="odd", prefix=prefix) as source,
        pytest.raises(InputError, match="database"),
    ):
        list(source.scan("t"))
