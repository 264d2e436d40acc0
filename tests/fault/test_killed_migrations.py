"""Migrations killed at several moments, and sources that change: identical rows, or none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters.rows import open_rows
from bandana_kv.errors import AdapterError, MigrationError
from bandana_kv.migration import Migrated, migrate
from bandana_kv.progress import Progress

ROWS = np.random.default_rng(0).random((3000, 32), np.float32)
OLD = np.zeros((9, 32), np.float32)
Put = Callable[..., None]

# Migrates in small steps, and kills itself when a moment is reached for the n-th time.
SCRIPT = """
import os, pathlib, signal, sys
from bandana_kv.adapters import rows
from bandana_kv.migration import migrate, staging
from bandana_kv.progress import Progress

engine, source, store, moment, times = sys.argv[1:]
rows._SCANNED_KEYS = 64
staging.CHECKPOINT_BYTES = 200 * 128
left = int(times)

def reached(now):
    global left
    left -= now == moment
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

class Told(Progress):
    def start(self, label, total, unit):
        self.stage = label.split()[0]
    def advance(self, count):
        reached(self.stage)

replace = pathlib.Path.replace
def told_replace(self, target):
    name = pathlib.Path(target).name
    reached("before " + name)
    replace(self, target)
    reached("after " + name)
pathlib.Path.replace = told_replace

with rows.open_rows(engine, source, key="decimal") as opened:
    migrate(opened, store, "user", progress=Told())
"""

# Each with how often it is reached, and how many rows are durable then: a process makes the first
# 257 so, then 256 at a time; and tells first of what was there before.
MOMENTS = [
    ("extract", 3, 0),
    ("before state.json", 1, 0),
    ("after state.json", 1, 257),
    ("extract", 4, 257),
    ("extract", 21, 1282),
    ("before state.json", 2, 1539),
    ("load", 1, 3000),
    ("compare", 9, 3000),
    ("check", 1, 3000),
    ("before CURRENT", 1, 3000),
]
FEWER = [("extract", 21, 1025), ("compare", 9, 3000)]


def by_key(rows: np.ndarray) -> dict[bytes, bytes]:
    return {b"%d" % row_id: row.tobytes() for row_id, row in enumerate(rows)}


def migrate_and_die(engine: str, source: Path, store: Path, moment: str, times: int) -> None:
    command = [sys.executable, "-c", SCRIPT, engine, str(source), str(store), moment, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=source.parent)
    assert done.returncode == -9, done.stderr


def served(store: Path, count: int) -> np.ndarray:
    with bandana_kv.open(store, cache_bytes=0) as opened:
        return opened.multi_get("user", np.arange(count))


def migrated(engine: str, source: Path, store: Path, **options: object) -> Migrated:
    with open_rows(engine, source, key="decimal") as opened:
        return migrate(opened, store, "user", **options)


class Resumed(Progress):
    """Sees how many rows were there before the first was read, then stops the migration."""

    class SeenError(Exception):
        """The number is known."""

    def advance(self, count: int) -> None:
        raise self.SeenError(count)


def durable_rows(engine: str, source: Path, store: Path) -> int:
    with pytest.raises(Resumed.SeenError) as seen:
        migrated(engine, source, store, progress=Resumed())
    return int(seen.value.args[0])


@pytest.mark.parametrize(("engine", "moments"), [("lmdb", MOMENTS), ("rocksdb", FEWER)])
def test_killed_again_and_again_it_goes_on_and_every_row_arrives(
    engine: str, moments: list[tuple[str, int, int]], tmp_path: Path, put_by_key: Put
) -> None:
    source, store = tmp_path / "db", tmp_path / "store"
    put_by_key(engine, source, by_key(ROWS))
    bandana_kv.load(store, {"user": OLD})
    for moment, times, durable in moments:
        migrate_and_die(engine, source, store, moment, times)
        assert np.array_equal(served(store, len(OLD)), OLD), moment
        if 0 < durable < 3000:
            assert durable_rows(engine, source, store) == durable
    done = migrated(engine, source, store)
    assert (done.rows, done.resumed_from) == (3000, 3000)
    assert np.array_equal(served(store, 3000), ROWS)
    assert not (store / "migrations").exists()
    assert bandana_kv.verify(store).sound


@pytest.mark.parametrize("engine", ["lmdb", "rocksdb"])
def test_what_changed_between_two_tries_is_refused_until_it_is_restarted(
    engine: str, tmp_path: Path, put_by_key: Put
) -> None:
    source, store = tmp_path / "db", tmp_path / "store"
    put_by_key(engine, source, by_key(ROWS))
    migrate_and_die(engine, source, store, "extract", 30)
    with (
        open_rows(engine, source, key="decimal", dtype="int32") as other,
        pytest.raises(MigrationError, match=r"dtype was '<f4' and is '<i4'.*--restart"),
    ):
        migrate(other, store, "user")
    put_by_key(engine, source, {b"0": ROWS[1].tobytes()})
    with pytest.raises(MigrationError, match=r"(transaction|sequence) was.*--restart"):
        migrated(engine, source, store)
    done = migrated(engine, source, store, restart=True)
    assert done.resumed_from == 0
    assert np.array_equal(served(store, 3000), np.vstack([ROWS[1:2], ROWS[1:]]))


# What somebody else writes while a migration runs, in a process of their own.
WRITER = """
import sys
engine, path, value = sys.argv[1:]
if engine == "lmdb":
    import lmdb
    with lmdb.open(path, map_size=1 << 26, max_dbs=4) as environment:
        with environment.begin(write=True) as txn:
            txn.put(b"0", bytes.fromhex(value)); txn.put(b"3000", bytes.fromhex(value))
else:
    import rocksdict
    options = rocksdict.Options(raw_mode=True)
    database = rocksdict.Rdict(path, options, {"default": options})
    database[b"0"] = bytes.fromhex(value); database[b"3000"] = bytes.fromhex(value)
    database.flush(); database.compact_range(None, None); database.close()
"""


class Writes(Progress):
    """Lets somebody write into the source at several moments."""

    def __init__(self, engine: str, source: Path) -> None:
        self._command = [sys.executable, "-c", WRITER, engine, str(source), ROWS[7].tobytes().hex()]
        self.stages: list[str] = []

    def start(self, label: str, _total: int, _unit: str) -> None:
        """Write."""
        subprocess.run(self._command, check=True, cwd=Path(self._command[-2]).parent)
        self.stages.append(label.split(maxsplit=1)[0])


@pytest.mark.parametrize("engine", ["lmdb", "rocksdb"])
def test_whoever_writes_meanwhile_the_rows_are_those_of_one_moment(
    engine: str, tmp_path: Path, put_by_key: Put
) -> None:
    source, store = tmp_path / "db", tmp_path / "store"
    put_by_key(engine, source, by_key(ROWS))
    writes = Writes(engine, source)
    done = migrated(engine, source, store, progress=writes)
    assert writes.stages == ["extract", "load", "compare", "check"]
    assert done.rows == 3000
    assert np.array_equal(served(store, 3000), ROWS)
    again = migrated(engine, source, store)
    assert again.rows == 3001
    assert np.array_equal(served(store, 3001)[[0, 3000]], ROWS[[7, 7]])


def test_a_scan_behind_a_fork_and_a_write_says_that_its_rows_are_gone(
    tmp_path: Path, put_by_key: Put
) -> None:
    put_by_key("lmdb", tmp_path / "db", by_key(ROWS[:50]))
    with open_rows("lmdb", tmp_path / "db", key="decimal") as source:
        first = list(source.scan("user"))
        assert list(source.scan("user")) == first
        child = os.fork()
        if child == 0:
            os._exit(0 if list(source.scan("user")) == first else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert list(source.scan("user")) == first
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        Writes("lmdb", tmp_path / "db").start("extract", 0, "rows")
        with pytest.raises(AdapterError, match="rows of the first scan are gone"):
            list(source.scan("user"))
