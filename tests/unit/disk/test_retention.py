"""Which versions stay: so many, the current one, and those that somebody reads."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.disk import retention
from bandana_kv.disk.lock import writer_lock
from bandana_kv.errors import (
    BandanaError,
    BlockMissingError,
    FormatError,
    InputError,
    LoadInProgressError,
    StoreNotFoundError,
)
from bandana_kv.load import loader
from bandana_kv.tools.versions import main

ROWS = np.arange(640, dtype=np.float32).reshape(20, 32)


def load(path: Path, add: int = 0, adapter: object = "blockfile", **options: object) -> int:
    return bandana_kv.load(path, {"user": ROWS + add}, adapter=adapter, **options)


def kept(path: Path) -> list[int]:
    numbers = [version.number for version in bandana_kv.versions(path)]
    found = sorted(int(each.name) for each in (path / "segments").iterdir())
    assert found == numbers  # each of these loads has a segment of its own
    return numbers


def serves(path: Path) -> int:
    """Return the version that a new reader gets; its rows say that they are of it."""
    with bandana_kv.open(path) as store:
        assert np.array_equal(store.multi_get("user", range(20)), ROWS + store.version)
        return store.version


def test_as_many_versions_stay_as_asked_for(tmp_path: Path) -> None:
    for version in range(1, 5):
        assert load(tmp_path, version, keep=3) == version
    assert kept(tmp_path) == [2, 3, 4]
    load(tmp_path, 5, keep=1)
    assert kept(tmp_path) == [5]
    for wrong in (0, -1, 1.5, "2", None):
        with pytest.raises(InputError, match="keep"):
            load(tmp_path, keep=wrong)


def test_versions_say_what_there_is(tmp_path: Path) -> None:
    load(tmp_path, 1)
    bandana_kv.load(tmp_path, {"item": ROWS}, adapter="blockfile")
    bandana_kv.rollback(tmp_path)
    first, second = bandana_kv.versions(tmp_path)
    assert (first.number, first.tables, first.current) == (1, ("user",), True)
    assert (second.number, second.tables, second.current) == (2, ("user", "item"), False)
    assert first.created.endswith("+00:00")
    (tmp_path / "manifests" / "000002.json").write_text("{}")
    assert [version.number for version in bandana_kv.versions(tmp_path)] == [1]
    with pytest.raises(StoreNotFoundError):
        bandana_kv.versions(tmp_path / "no")


def test_rolling_back_and_forth_and_loading_on(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        load(tmp_path, version, keep=3)
    assert bandana_kv.rollback(tmp_path) == 2
    assert serves(tmp_path) == 2
    assert bandana_kv.rollback(tmp_path) == 1
    assert bandana_kv.rollback(tmp_path, 3) == 3
    assert serves(tmp_path) == 3
    bandana_kv.rollback(tmp_path, 2)
    # a new number, and what was rolled back from goes before older ones do
    assert load(tmp_path, 4, keep=2) == 4
    assert kept(tmp_path) == [2, 4]
    assert bandana_kv.rollback(tmp_path) == 2
    assert serves(tmp_path) == 2


def test_a_load_that_fails_after_a_rollback_leaves_the_version_rolled_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tmp_path, 1)
    load(tmp_path, 2)
    bandana_kv.rollback(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loader, "_write_table", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load(tmp_path, 3)
    assert serves(tmp_path) == 1
    assert kept(tmp_path) == [1]


def test_rollback_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        bandana_kv.rollback(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    path = tmp_path / "s"
    load(path, 1)
    with pytest.raises(InputError, match="no version before the current one; it has 1"):
        bandana_kv.rollback(path)
    load(path, 2)
    with pytest.raises(InputError, match="no 7; it has 1, 2"):
        bandana_kv.rollback(path, 7)
    with writer_lock(path), pytest.raises(LoadInProgressError):
        bandana_kv.rollback(path)
    (path / "segments" / "000001").rename(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="lost its segment 1"):
        bandana_kv.rollback(path)
    (path / "manifests" / "000001.json").write_text("{}")
    with pytest.raises(FormatError, match="damaged"):
        bandana_kv.rollback(path)
    assert serves(path) == 2


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb", "blockfile"])
def test_what_is_read_stays_until_it_is_not(adapter: str, tmp_path: Path) -> None:
    load(tmp_path, 1, adapter)
    with bandana_kv.open(tmp_path, cache_bytes=0) as store:
        for version in (2, 3, 4):
            load(tmp_path, version, adapter, keep=1)
        assert kept(tmp_path) == [1, 4]
        assert np.array_equal(store.multi_get("user", range(20)), ROWS + 1)
        assert bandana_kv.rollback(tmp_path, 1) == 1  # still whole
        bandana_kv.rollback(tmp_path, 4)
        store.refresh()
        load(tmp_path, 5, adapter, keep=1)
        assert kept(tmp_path) == [4, 5]
    load(tmp_path, 6, adapter, keep=1)
    assert kept(tmp_path) == [6]


def test_another_process_that_reads_keeps_its_version_until_it_dies(tmp_path: Path) -> None:
    load(tmp_path, 1)
    script = (
        "import sys, time, bandana_kv; store = bandana_kv.open(sys.argv[1]);"
        "print('open', flush=True); time.sleep(600)"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    try:
        assert reader.stdout.readline() == "open\n"
        load(tmp_path, 2, keep=1)
        assert kept(tmp_path) == [1, 2]
    finally:
        reader.kill()
        reader.communicate()
    load(tmp_path, 3, keep=1)
    assert kept(tmp_path) == [3]


def test_without_the_lock_a_version_is_taken_from_its_reader(tmp_path: Path) -> None:
    """A planted bug: the tests above are able to fail."""
    load(tmp_path, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention.fcntl, "flock", lambda *_: None)
        with bandana_kv.open(tmp_path):
            load(tmp_path, 2, keep=1)
            assert kept(tmp_path) == [2]


@pytest.mark.parametrize("again", [False, True])
def test_a_manifest_that_goes_before_it_is_locked_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    path = tmp_path / "000001.json"
    path.write_text("held")
    flock = retention.fcntl.flock

    def late(handle: int, kind: int) -> None:
        path.unlink()
        if again:
            path.write_text("another of that number")
        flock(handle, kind)

    monkeypatch.setattr(retention.fcntl, "flock", late)
    assert retention._shared_lock(path) is None


def test_a_failed_open_holds_nothing(tmp_path: Path) -> None:
    load(tmp_path, 1)
    for _ in range(3):
        with pytest.raises(InputError):
            bandana_kv.open(tmp_path, cache_bytes={"no": 1})
    load(tmp_path, 2, keep=1)
    assert kept(tmp_path) == [2]


def test_spaces_in_a_held_engine_stay_as_long_as_they_are_read(tmp_path: Path) -> None:
    engine = MemoryAdapter()
    load(tmp_path, 1, engine)
    store = bandana_kv.open(tmp_path, adapter=engine, cache_bytes=0)
    load(tmp_path, 2, engine, keep=1)
    load(tmp_path, 3, engine, keep=1)
    assert np.array_equal(store.multi_get("user", range(20)), ROWS + 1)
    table = store._tables["user"].stored
    store.close()
    load(tmp_path, 4, engine, keep=1)
    with pytest.raises(BlockMissingError):
        engine.get(int(table.keys(np.array([0]))[0]))
    assert len(engine._blocks.of_key) == 1


def test_spaces_are_not_used_again_after_a_rollback(tmp_path: Path) -> None:
    """A reader of the version that was rolled back from keeps its blocks in the user's engine."""
    engine = MemoryAdapter()
    load(tmp_path, 1, engine)
    load(tmp_path, 2, engine)
    with bandana_kv.open(tmp_path, adapter=engine, cache_bytes=0) as store:
        bandana_kv.rollback(tmp_path)
        for version in (3, 4):
            assert load(tmp_path, version, engine, keep=1) == version
        assert np.array_equal(store.multi_get("user", range(20)), ROWS + 2)
        assert store.refresh() == 4
        assert np.array_equal(store.multi_get("user", range(20)), ROWS + 4)


def test_an_unreadable_version_keeps_what_it_may_need(tmp_path: Path) -> None:
    load(tmp_path, 1)
    load(tmp_path, 2)
    file = tmp_path / "manifests" / "000001.json"
    whole = file.read_bytes()
    file.write_bytes(b"{}")
    retention.drop_unused(tmp_path, 2, lambda _: True)
    file.write_bytes(whole)
    assert bandana_kv.rollback(tmp_path) == 1
    assert serves(tmp_path) == 1
    file.write_bytes(b"{}")
    with pytest.raises(FormatError):
        load(tmp_path, 3)
    assert sorted(each.name for each in (tmp_path / "segments").iterdir()) == ["000001", "000002"]


def test_readers_and_removal_race_for_a_while(tmp_path: Path) -> None:
    """Readers that come just as their version goes get the next one, whole."""
    load(tmp_path, 1, keep=1)
    over = threading.Event()
    served: list[int] = []
    failures: list[BaseException] = []

    def read() -> None:
        while not over.is_set():
            try:
                served.append(serves(tmp_path))
            except (BandanaError, AssertionError) as error:
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for version in range(2, 22):
        load(tmp_path, version, keep=1)
    over.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert len(set(served)) > 3
    load(tmp_path, 22, keep=1)
    assert kept(tmp_path) == [22]


def test_the_command_lists_and_rolls_back(tmp_path: Path) -> None:
    path = str(tmp_path)
    load(tmp_path, 1)
    load(tmp_path, 2)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    assert "2  current" in run("list", path)
    assert "version 1" in run("rollback", path)
    listed = json.loads(run("list", path, "--json"))["versions"]
    assert [(each["number"], each["current"]) for each in listed] == [(1, True), (2, False)]
    assert "version 2" in run("rollback", path, "--to", "2")
    assert serves(tmp_path) == 2
    failed = CliRunner().invoke(main, ["rollback", path, "--to", "9"])
    assert failed.exit_code == 1
    assert "no 9" in failed.output
