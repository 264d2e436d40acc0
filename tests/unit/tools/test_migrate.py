"""The command that moves a table out of an engine, run as its documentation says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.migration import Migrated
from bandana_kv.tools.migrate import main

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "migrate.py"
ROWS = np.random.default_rng(0).random((300, 8), np.float32)
LOG = bandana_kv.AccessLog.from_requests(np.random.default_rng(1).integers(0, 300, (50, 6)))


@pytest.fixture
def inputs(tmp_path: Path, put_by_key: Callable[..., None]) -> Path:
    rows = {b"emb:user:%d" % row_id: row.tobytes() for row_id, row in enumerate(ROWS)}
    put_by_key("rocksdb", tmp_path / "rocks", rows | {b"emb:item:0": b"else"}, "features")
    put_by_key("lmdb", tmp_path / "lmdb", rows | {b"emb:user:": b"else"}, "features")
    LOG.write(tmp_path / "log.npz")
    return tmp_path


def served(store: Path) -> np.ndarray:
    with bandana_kv.open(store, cache_bytes=9000) as opened:
        return opened.multi_get("user", np.arange(300))


def test_run_by_path_it_moves_what_is_served(inputs: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--from", "rocksdb", "rocks", "DIR", "--table", "user"]
    options = ["--column-family", "features", "--key", "decimal", "--prefix", "emb:user:"]
    more = ["--dim", "8", "--rows", "300", "--log", "log.npz", "--adapter", "blockfile"]
    done = subprocess.run(
        [*command, *options, *more], cwd=inputs, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DIR: version 1 is served, with user new\n300 rows of 8 <f4")
    assert np.array_equal(served(inputs / "DIR"), ROWS)


def test_as_json_it_tells_what_the_library_returns(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    command = ["--from", "lmdb", "lmdb", "DIR", "--table", "user", "--database", "features"]
    options = ["--key", "decimal", "--prefix-hex", b"emb:user:".hex(), "--skip-others", "--json"]
    done = CliRunner().invoke(main, [*command, *options])
    assert done.exit_code == 0, done.stderr
    found = msgspec.convert(json.loads(done.stdout), Migrated)
    assert (found.rows, found.skipped, found.version) == (300, 1, 1)
    assert found.checksum_source == found.checksum_store
    assert np.array_equal(served(inputs / "DIR"), ROWS)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["rocksdb", "nowhere"], 1, "/nowhere"),
        (["lmdb", "rocks"], 1, "/rocks"),
        (["lmdb", "lmdb", "--database", "other"], 1, "no database 'other'"),
        (["rocksdb", "rocks", "--column-family", "features"], 1, "is of no id by the key codec"),
        (["lmdb", "lmdb", "--column-family", "x"], 2, "--column-family is for RocksDB"),
        (["lmdb", "lmdb", "--prefix", "a", "--prefix-hex", "61"], 2, "say the same"),
        (["lmdb", "lmdb", "--prefix-hex", "xy"], 2, "--prefix-hex xy"),
        (["sqlite", "lmdb"], 2, "'sqlite' is not one of"),
    ],
)
def test_a_failure_is_said_and_leaves_nothing_behind(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, said: str
) -> None:
    monkeypatch.chdir(inputs)
    before = {path for path in inputs.rglob("*") if path.name != "lock.mdb"}
    engine, *rest = arguments
    done = CliRunner().invoke(main, ["--from", engine, *rest, "DIR", "--table", "user"])
    assert done.exit_code == status
    assert said in done.stderr
    if status == 1:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert {path for path in inputs.rglob("*") if path.name != "lock.mdb"} == before
