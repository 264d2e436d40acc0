"""The offline check finds what was damaged, writes nothing, and repairs what it can."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv import adapters
from bandana_kv.adapters import block_keys
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.disk import manifest
from bandana_kv.disk.arrays import write_array
from bandana_kv.disk.lock import writer_lock
from bandana_kv.errors import (
    FallbackError,
    InputError,
    LoadInProgressError,
    RowMissingError,
    StoreNotFoundError,
)
from bandana_kv.kernels.bitpack import pack
from bandana_kv.tools.verify_store import main

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "verify_store.py"
ENGINES = ("lmdb", "rocksdb", "blockfile")
RNG = np.random.default_rng(0)
USER = RNG.random((500, 32), np.float32)
ITEM = RNG.random((333, 40), np.float32)
LOG = bandana_kv.AccessLog.from_requests(RNG.integers(0, 500, (300, 8)))


@pytest.fixture(scope="module", params=ENGINES)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions; the newer one shares table item, and its table user has copies."""
    root = tmp_path_factory.mktemp(request.param) / "store"
    bandana_kv.load(root, {"user": USER + 1, "item": ITEM}, adapter=request.param)
    bandana_kv.load(root, {"user": USER}, {"user": LOG}, adapter=request.param, replicate=0.3)
    return root


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "store"))


def damage(root: Path, table: str, blocks: list[int], version: int | None = None) -> None:
    held = manifest.read_current(root)
    if version is not None:
        held = manifest.read_version(root, version)
    entry = held.tables[table]
    path = manifest.engine_path(root, entry.segment, entry.pages)
    name = held.segments[entry.segment].adapter
    keys = block_keys(entry.space, blocks)
    with adapters.open_existing(name, path, read_only=False) as engine:
        payloads = engine.multi_get(keys)
        payloads[:, 100] ^= 1
        engine.put_many(keys, payloads)


def test_a_sound_store_is_sound_and_nothing_is_written(
    store: Path, everything_in: Callable[[Path], dict[str, bytes]]
) -> None:
    before = everything_in(store)
    with bandana_kv.open(store) as reader:
        report = bandana_kv.verify(store)
        assert np.array_equal(reader.multi_get("user", range(500)), USER)
    assert everything_in(store) == before
    assert (report.versions, report.current, report.tables) == ([1, 2], 2, 3)
    held = manifest.read_current(store).tables
    both = (held["user"], held["item"], manifest.read_version(store, 1).tables["user"])
    assert report.blocks == sum(table.blocks for table in both)
    assert held["user"].copies > 0
    assert (report.bad_blocks, report.problems, report.findings) == (0, 0, [])
    assert report.sound


def test_every_bad_block_is_named_in_every_version(store: Path) -> None:
    last = manifest.read_current(store).tables["user"].blocks - 1
    damage(store, "user", [3, last])
    damage(store, "item", [0])
    damage(store, "user", [7], version=1)
    report = bandana_kv.verify(store)
    found = {(each.kind, each.version, each.table, each.block) for each in report.findings}
    assert found == {
        ("block", 2, "user", 3),
        ("block", 2, "user", last),
        ("block", 2, "item", 0),
        ("block", 1, "user", 7),
    }
    assert (report.bad_blocks, report.problems) == (4, 4)


def test_a_repair_writes_the_bad_blocks_of_the_served_version_and_no_others(
    store: Path, tmp_path: Path
) -> None:
    last = manifest.read_current(store).tables["user"].blocks - 1  # copies
    damage(store, "user", [3, 5, last])
    damage(store, "item", [0])
    np.save(tmp_path / "user.npy", USER)
    np.save(tmp_path / "item.npy", ITEM)
    files = [f"--from-npy={name}={tmp_path / name}.npy" for name in ("user", "item")]
    done = CliRunner().invoke(main, [str(store), "--json", "--repair", *files])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["repaired_blocks"] == 4
    with bandana_kv.open(store) as opened:
        assert np.array_equal(opened.multi_get("user", range(500)), USER)
        assert np.array_equal(opened.multi_get("item", range(333)), ITEM)
    damage(store, "user", [7], version=1)
    report = bandana_kv.repair(store, {"user": lambda _, ids: USER[ids]})
    assert (report.repaired_blocks, report.bad_blocks) == (0, 1)


def test_repaired_blocks_are_those_that_were_loaded(store: Path) -> None:
    entry = manifest.read_current(store).tables["user"]
    path = manifest.engine_path(store, entry.segment, entry.pages)
    name = manifest.read_current(store).segments[entry.segment].adapter
    keys = block_keys(entry.space, np.arange(entry.blocks))
    with adapters.open_existing(name, path) as engine:
        before = engine.multi_get(keys)
    damage(store, "user", list(range(1, entry.blocks)))
    assert bandana_kv.repair(store, lambda _, ids: USER[ids]).sound
    with adapters.open_existing(name, path) as engine:
        assert np.array_equal(engine.multi_get(keys), before)


def test_a_source_with_other_rows_is_refused(
    store: Path, everything_in: Callable[[Path], dict[str, bytes]]
) -> None:
    damage(store, "user", [3])
    before = everything_in(store)
    with pytest.raises(FallbackError, match=r"'user'.*other rows than block 0"):
        bandana_kv.repair(store, lambda _, ids: USER[ids] + 1)
    with pytest.raises(RowMissingError, match="'user'"):
        bandana_kv.repair(store, rows_of(store, 100))
    with (
        writer_lock(store),
        pytest.raises(LoadInProgressError),
    ):
        bandana_kv.repair(store, lambda _, ids: USER[ids])
    assert everything_in(store) == before


def rows_of(root: Path, count: int) -> Any:
    class Few:
        def rows(self, table: str, ids: np.ndarray) -> np.ndarray:
            if int(ids.max()) >= count:
                raise RowMissingError(f"table {table!r}: no row of id {ids.max()}")
            return USER[ids]

        def close(self) -> None:
            pass

    return Few()


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("positions", pack(np.zeros(500, np.uint32)), "no permutation"),
        ("heat", None, "checksum"),
        ("original-of", np.full(1, 7, np.uint32), "no distinct rows"),
        ("by-position", np.full(1, 7, np.uint32), "no permutation"),
    ],
)
def test_damaged_files_beside_the_blocks_are_found(
    store: Path, kind: str, content: np.ndarray | None, said: str
) -> None:
    entry = manifest.read_current(store).tables["user"]
    path = manifest.table_file(store, entry.segment, entry.space, kind)
    if content is None:
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    else:
        write_array(
            path, kind, content if kind == "positions" else np.resize(content, entry.copies)
        )
    report = bandana_kv.verify(store)
    assert [each.table for each in report.findings] == ["user"]
    assert said in report.findings[0].message
    assert report.bad_blocks == 0


def test_damaged_manifests_and_current_are_found(store: Path) -> None:
    old = store / "manifests" / "000001.json"
    old.write_bytes(old.read_bytes()[:-9])
    (store / "CURRENT").write_text("two\n")
    report = bandana_kv.verify(store)
    assert {(each.kind, each.version) for each in report.findings} == {
        ("current", None),
        ("manifest", 1),
    }
    assert report.blocks > 0  # the other version was checked all the same


def test_an_engine_that_does_not_open_is_found_and_others_are_checked(store: Path) -> None:
    entry = manifest.read_current(store).tables["user"]
    shutil.rmtree(manifest.engine_path(store, entry.segment, entry.pages))
    report = bandana_kv.verify(store)
    assert [each.kind for each in report.findings] == ["engine"]
    assert report.bad_blocks == entry.blocks
    assert report.blocks > 0


def test_blocks_in_an_engine_that_the_user_holds(tmp_path: Path) -> None:
    engine = MemoryAdapter()
    bandana_kv.load(tmp_path, {"user": USER}, adapter=engine)
    with pytest.raises(InputError, match="engine that you hold"):
        bandana_kv.verify(tmp_path)
    assert bandana_kv.verify(tmp_path, adapter=engine).sound
    keys = block_keys(manifest.read_current(tmp_path).tables["user"].space, [2])
    engine.put_many(keys, engine.multi_get(keys) ^ 1)
    assert bandana_kv.verify(tmp_path, adapter=engine).bad_blocks == 1
    assert bandana_kv.repair(tmp_path, lambda _, ids: USER[ids], adapter=engine).sound


@pytest.mark.parametrize("sound", ["blockfile"], indirect=True)
def test_the_command_says_what_is_bad_and_ends_with_1(store: Path, tmp_path: Path) -> None:
    run = [sys.executable, str(SCRIPT), str(store)]
    done = subprocess.run([*run, "--json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["versions"], found["bad_blocks"]) == ([1, 2], 0)
    damage(store, "item", list(range(5)))
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "bad block: table 'item', block 4" in done.stdout
    assert "5 problems" in done.stdout
    rows = {"item": ITEM, "user": USER}
    with (
        lmdb.open(str(tmp_path / "rows"), map_size=1 << 24) as environment,
        environment.begin(write=True) as txn,
    ):
        for name, table in rows.items():
            for row_id, row in enumerate(table):
                txn.put(f"{name}:{row_id}".encode(), row.tobytes())
    repair = ["--repair", "--from-lmdb", str(tmp_path / "rows"), "--key", "table:decimal"]
    done = subprocess.run([*run, *repair], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 blocks were written anew" in done.stdout


def test_a_mistyped_path_is_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(tmp_path / "nowhere")])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    with pytest.raises(StoreNotFoundError):
        bandana_kv.repair(tmp_path / "nowhere", lambda _, ids: USER[ids])
    assert not list(tmp_path.iterdir())
    done = CliRunner().invoke(main, [str(tmp_path), "--repair"])
    assert done.exit_code == 2


def test_findings_are_listed_up_to_a_hundred(tmp_path: Path) -> None:
    rows = np.zeros((31 * 150, 32), np.float32)
    bandana_kv.load(tmp_path, {"t": rows}, adapter="blockfile")
    damage(tmp_path, "t", list(range(120)))
    report = bandana_kv.verify(tmp_path)
    assert (report.bad_blocks, report.problems, len(report.findings)) == (120, 120, 100)


def test_blocks_with_spare_rows_are_repaired_and_those_with_added_rows_if_they_are_known(
    tmp_path: Path,
) -> None:
    root, keys = tmp_path / "store", np.arange(500) * 7
    rows = {"user": bandana_kv.Rows(USER, keys=keys)}
    bandana_kv.load(root, rows, adapter="lmdb", placement="shuffled", spare=0.5)
    entry = manifest.read_current(root).tables["user"]
    mixed = 500 // entry.rows_per_block  # has the last rows that were loaded, and spare ones
    damage(root, "user", [3, mixed, entry.blocks - 1])
    report = bandana_kv.repair(root, lambda _, ids: USER[ids])
    assert report.sound
    assert report.repaired_blocks == 3
    with bandana_kv.open(root) as store:
        store.upsert("user", [1], USER[:1] + 1)
        store.flush()
    damage(root, "user", [3, mixed])
    with pytest.raises(RowMissingError, match="'user'"):
        bandana_kv.repair(root, {"user": rows_of(root, 500)})
    assert bandana_kv.verify(root).bad_blocks == 2  # nothing was written
    added = np.concatenate([USER, USER[:1] + 1])
    assert bandana_kv.repair(root, lambda _, ids: added[ids]).sound
    with bandana_kv.open(root, 0) as store:
        assert np.array_equal(store.multi_get("user", [*keys, 1]), added)
