"""A table written back to a file: the rows that are served, in the order of their ids."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import (
    BlockCorruptError,
    DiskFullError,
    InputError,
    StoreNotFoundError,
    TableNotFoundError,
)
from bandana_kv.migration import export as module
from bandana_kv.migration.export import Exported

ROWS = np.random.default_rng(0).random((5000, 16), np.float32)
ITEMS = np.random.default_rng(1).integers(-100, 100, (37, 3), np.int8)
LOG = bandana_kv.AccessLog.from_requests(np.random.default_rng(2).integers(0, 5000, (400, 9)))


@pytest.fixture(params=["blockfile", "lmdb", "rocksdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tables: dict[str, Any] = {"user": ROWS, "item": ITEMS}
    bandana_kv.load(tmp_path / "s", tables, {"user": LOG}, adapter=request.param, replicate=0.2)
    return tmp_path / "s"


@pytest.fixture(autouse=True)
def nothing_half_done(tmp_path: Path) -> Iterator[None]:
    yield
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []


def test_all_rows_come_back_whatever_their_order_and_type(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 9000)
    done = bandana_kv.export(store, "user", tmp_path / "user.npy")
    path = str(tmp_path / "user.npy")
    assert done == Exported("user", 1, 5000, 16, "<f4", 320_000, path)
    bandana_kv.export(store, "item", tmp_path / "item.npy")
    assert np.array_equal(np.load(tmp_path / "user.npy"), ROWS)
    assert np.array_equal(np.load(tmp_path / "item.npy"), ITEMS)
    assert np.load(tmp_path / "item.npy").dtype == np.int8


@pytest.mark.parametrize("flushed", [False, True])
def test_updates_are_in_it_and_each_version_has_its_own(
    store: Path, tmp_path: Path, flushed: bool
) -> None:
    bandana_kv.load(store, {"user": ROWS + 1}, {"user": LOG}, adapter="blockfile")
    expected = ROWS + 1
    expected[[3, 4999]] = 7
    with bandana_kv.open(store) as served:
        served.update("user", [3, 4999], expected[[3, 4999]])
        if flushed:
            served.flush()
        bandana_kv.export(store, "user", tmp_path / "new.npy")
    bandana_kv.export(store, "user", tmp_path / "old.npy", 1)
    assert np.array_equal(np.load(tmp_path / "new.npy"), expected)
    assert np.array_equal(np.load(tmp_path / "old.npy"), ROWS)


def test_a_file_is_replaced_only_if_that_is_asked_for(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    out.write_bytes(b"mine")
    with pytest.raises(InputError, match="is there already"):
        bandana_kv.export(store, "user", out)
    assert out.read_bytes() == b"mine"
    bandana_kv.export(store, "user", out, overwrite=True)
    assert np.array_equal(np.load(out), ROWS)
    assert out.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("nowhere", "user", "out.npy"), StoreNotFoundError, "does not exist"),
        (("s", "usr", "out.npy"), TableNotFoundError, "no table 'usr' in version 1; it has user"),
        (("s", "user", "out.npy", 7), InputError, "keeps no version 7; it has 1"),
        (("s", "user", "out.csv"), InputError, "only .npy, .safetensors, .parquet files are"),
        (("s", "user", "no/out.npy"), InputError, "there is no directory"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[Any, ...],
    error: type[Exception],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    bandana_kv.load("s", {"user": ROWS}, placement="identity")
    with pytest.raises(error, match=said):
        bandana_kv.export(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_block_that_is_torn_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, placement="identity", adapter="blockfile")
    for path in (tmp_path / "s" / "segments").rglob("*"):
        if path.is_file() and ROWS[300].tobytes() in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(ROWS[300].tobytes(), ROWS[301].tobytes()))
    with pytest.raises(BlockCorruptError, match="user"):
        bandana_kv.export(tmp_path / "s", "user", tmp_path / "out.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_a_full_disk_and_ctrl_c_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, placement="identity")

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "write_rows", fails)
    with pytest.raises(DiskFullError if isinstance(error, OSError) else KeyboardInterrupt):
        bandana_kv.export(tmp_path / "s", "user", tmp_path / "out.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
