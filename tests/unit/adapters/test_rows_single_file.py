"""LMDB environments that are a single file: read beside their writer, by any name of theirs."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters.rows import KEY_CODECS, KeyedRows, open_rows
from bandana_kv.errors import AdapterError, StoreNotFoundError
from bandana_kv.migration import migrate

ROWS = np.random.default_rng(0).random((50, 6), np.float32)
IDS = np.arange(50)


def put(environment: lmdb.Environment, rows: np.ndarray, inner: bytes | None = None) -> None:
    database = environment.open_db(inner)
    with environment.begin(write=True, db=database) as txn:
        for key, row in zip(KEY_CODECS["uint64-be"]("t", IDS), rows, strict=True):
            txn.put(key, row.tobytes())


def made(path: Path, *, subdir: bool = False, inner: bytes | None = None) -> Path:
    with lmdb.open(str(path), subdir=subdir, map_size=1 << 24, max_dbs=4) as environment:
        put(environment, ROWS, inner)
    return path


def assert_reads(source: KeyedRows, rows: np.ndarray = ROWS) -> None:
    assert np.array_equal(source.rows("t", IDS[::-1]), rows[::-1])


@pytest.mark.parametrize("name", ["emb.lmdb", "data.mdb", "with space"])
@pytest.mark.parametrize("inner", [None, "inner"])
def test_a_single_file_is_read_moved_and_fallen_back_to(
    name: str, inner: str | None, tmp_path: Path
) -> None:
    path = made(tmp_path / name, inner=None if inner is None else inner.encode())
    before = path.read_bytes()
    with open_rows("lmdb", path, inner=inner) as source:
        assert_reads(source)
        assert source.count() == 50
        migrate(source, tmp_path / "store", "t")
        with bandana_kv.open(tmp_path / "store", fallback=source) as store:
            assert np.array_equal(store.multi_get("t", IDS), ROWS)
    assert path.read_bytes() == before
    assert not (tmp_path / "lock.mdb").exists()


@pytest.mark.parametrize("named", ["file", "link", "relative"])
def test_it_follows_its_writer_and_uses_its_lock_file(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "emb.lmdb")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(path)
    child = {"file": path, "link": tmp_path / "link", "relative": Path("emb.lmdb")}[named]
    with open_rows("lmdb", child) as source:
        assert_reads(source)
        writer = os.fork()
        if writer == 0:
            with lmdb.open(str(path), subdir=False, map_size=1 << 24, max_dbs=4) as environment:
                put(environment, ROWS + 1)
                # The reader of the parent is in the table that the writer looks at.
                os._exit(0 if environment.info()["num_readers"] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == 0
        assert_reads(source, ROWS + 1)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["emb.lmdb", "emb.lmdb-lock", "link"]


def test_two_sources_on_one_file_share_it(tmp_path: Path) -> None:
    path = made(tmp_path / "emb.lmdb")
    with open_rows("lmdb", path) as one:
        with open_rows("lmdb", path) as other:
            assert_reads(other)
        assert_reads(one)


def test_the_file_of_a_directory_is_that_directory(tmp_path: Path) -> None:
    path = made(tmp_path / "db", subdir=True)
    with open_rows("lmdb", path / "data.mdb") as by_file, open_rows("lmdb", path) as source:
        assert_reads(by_file)
        assert_reads(source)
    assert sorted(each.name for each in path.iterdir()) == ["data.mdb", "lock.mdb"]


def test_a_copy_without_a_lock_file_is_read(tmp_path: Path) -> None:
    path = made(tmp_path / "emb.lmdb")
    (tmp_path / "copy").write_bytes(path.read_bytes())
    with open_rows("lmdb", tmp_path / "copy") as source:
        assert_reads(source)


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 8192, b"SQLite format 3\0" + bytes(4080)])
def test_another_file_is_refused_and_nothing_is_left(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(AdapterError, match="other cannot be opened: it is no environment's file"):
        open_rows("lmdb", tmp_path / "other")
    assert [each.name for each in tmp_path.iterdir()] == ["other"]
    with pytest.raises(StoreNotFoundError):
        open_rows("lmdb", tmp_path / "nowhere")
