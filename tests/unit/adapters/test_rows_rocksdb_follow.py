"""Rows by key in a RocksDB that somebody goes on writing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rocksdict

import bandana_kv
from bandana_kv.adapters import rows_rocksdb
from bandana_kv.adapters.rows import KEY_CODECS, open_rows
from bandana_kv.errors import InputError, RowMissingError, StoreNotFoundError
from bandana_kv.migration import migrate

ROWS = np.random.default_rng(0).random((80, 6), np.float32)
IDS = np.arange(80)
KEYS = KEY_CODECS["uint64-be"]("t", IDS)


class Writer:
    """A database that is open to write, and what should be in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()

    def open(self) -> None:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        self.database = rocksdict.Rdict(str(self.path), options, {"default": options})

    def write(self, rows: np.ndarray) -> None:
        for key, row in zip(KEYS, rows, strict=True):
            self.database[key] = row.tobytes()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    found = Writer(tmp_path / "db")
    found.write(ROWS)
    yield found
    found.database.close()


def rows_of(source: Any) -> np.ndarray:
    return source.rows("t", IDS)


@pytest.mark.parametrize("how", ["log", "flush", "compact", "delete", "restart"])
def test_lookups_see_what_was_written(writer: Writer, how: str) -> None:
    with open_rows("rocksdb", writer.path, max_age_s=0) as source:
        for version in range(1, 4):
            writer.write(ROWS + version)
            if how == "flush":
                writer.database.flush()
            elif how == "compact":
                writer.database.compact_range(None, None)
            elif how == "delete":
                del writer.database[KEYS[3]]
            elif how == "restart":
                writer.database.close()
                writer.open()
            ids = np.delete(IDS, 3)
            assert np.array_equal(source.rows("t", ids), (ROWS + version)[ids])
            assert np.array_equal(source.rows("t", ids), (ROWS + version)[ids])


def test_of_another_process(tmp_path: Path, writer: Writer) -> None:
    writer.database.close()
    code = """
import sys, rocksdict
options = rocksdict.Options(raw_mode=True)
database = rocksdict.Rdict(sys.argv[1], options, {"default": options})
for line in sys.stdin:
    database[bytes(8)] = bytes.fromhex(line)
    print("written", flush=True)
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(writer.path)]
    with (
        open_rows("rocksdb", writer.path, max_age_s=0) as source,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        for version in range(3):
            row = ROWS[5] + version
            process.stdin.write(row.tobytes().hex() + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "written\n"
            assert np.array_equal(source.rows("t", np.array([0])), row[None])
        process.communicate("")
    writer.open()


def test_it_is_looked_for_no_more_often_than_asked(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(rows_rocksdb.time, "monotonic", lambda: now[0])
    with open_rows("rocksdb", writer.path) as source:
        writer.write(ROWS + 1)
        assert np.array_equal(rows_of(source), ROWS)
        now[0] += 4.9
        assert np.array_equal(rows_of(source), ROWS)
        now[0] += 0.2
        assert np.array_equal(rows_of(source), ROWS + 1)
        monkeypatch.setattr(rows_rocksdb, "open_to_read", None)  # nothing changed: not opened
        now[0] += 6
        assert np.array_equal(rows_of(source), ROWS + 1)


def test_scans_and_migrations_see_one_state(writer: Writer, tmp_path: Path) -> None:
    with open_rows("rocksdb", writer.path, max_age_s=0) as source:
        before = source.state()
        scan = source.scan("t")
        first = next(scan)
        for version in range(3):
            writer.write(ROWS + 1 + version)
            writer.database.flush()
            assert np.array_equal(rows_of(source), ROWS + 1 + version)
        keys, values = first
        for more_keys, more_values in scan:
            keys, values = keys + more_keys, values + more_values
        assert keys == list(KEYS)
        assert b"".join(values) == ROWS.tobytes()
        assert source.state() == before
        migrate(source, tmp_path / "store", "t")
    with bandana_kv.open(tmp_path / "store") as store:
        assert np.array_equal(store.multi_get("t", IDS), ROWS)


def test_one_that_is_gone_is_an_error_until_it_is_back(writer: Writer, tmp_path: Path) -> None:
    writer.database.close()
    with open_rows("rocksdb", writer.path, max_age_s=0) as source:
        writer.path.rename(tmp_path / "away")
        with pytest.raises(StoreNotFoundError, match="no rocksdb database at"):
            rows_of(source)
        shutil.copytree(tmp_path / "away", writer.path)
        assert np.array_equal(rows_of(source), ROWS)
        shutil.rmtree(writer.path)
        Writer(writer.path).database.close()
        with pytest.raises(RowMissingError):
            rows_of(source)
        writer.open()
        writer.write(ROWS + 9)
        assert np.array_equal(rows_of(source), ROWS + 9)


def test_threads_and_forks_beside_a_writer(writer: Writer, tmp_path: Path) -> None:
    stop = threading.Event()
    wrong: list[object] = []

    def look(source: Any) -> None:
        last = 0.0
        while not stop.is_set():
            found = source.rows("t", np.array([7]))[0]
            version = float(found[0] - ROWS[7, 0])
            if round(version) < last or not np.allclose(found - ROWS[7], version, atol=1e-4):
                wrong.append(found)
            last = round(version)

    with open_rows("rocksdb", writer.path, max_age_s=0) as source:
        threads = [threading.Thread(target=look, args=(source,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for version in range(1, 30):
            writer.write(ROWS + np.float32(version))
            if version % 5 == 0:
                writer.database.flush()
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        if not (child := os.fork()):
            os._exit(not np.array_equal(rows_of(source), ROWS + np.float32(29)))
        assert os.waitpid(child, 0)[1] == 0
    assert not list(Path(tempfile.gettempdir()).glob(f"bandana-kv-links-*{os.getpid()}"))


def test_as_the_fallback_of_a_store(writer: Writer, tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter="blockfile")
    with (
        open_rows("rocksdb", writer.path, max_age_s=0) as source,
        bandana_kv.open(tmp_path / "s", fallback=source, cache_bytes=0) as store,
    ):
        file = next((tmp_path / "s").rglob("*.blocks"))
        file.write_bytes(bytes(file.stat().st_size))
        writer.write(ROWS + 5)
        assert np.array_equal(store.multi_get("t", IDS), ROWS + 5)


@pytest.mark.parametrize("age", [-1, float("nan")])
def test_an_age_that_is_none(writer: Writer, age: float) -> None:
    with pytest.raises(InputError, match="max_age_s"):
        open_rows("rocksdb", writer.path, max_age_s=age)
