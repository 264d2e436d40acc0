"""What this user may not read or write is told as that: not as damage, not as missing."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters.rows import open_rows
from bandana_kv.care.inspection import inspect
from bandana_kv.device import DeviceProfile
from bandana_kv.errors import BandanaError, NoPermissionError
from bandana_kv.placement import Placement
from bandana_kv.plan import Plan

NOBODY = 65534
ROWS = np.random.default_rng(0).random((300, 8), np.float32)
ENGINES = ["blockfile", "lmdb", "rocksdb"]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that everybody may enter, which pytest's own are not."""
    directory = Path(tempfile.mkdtemp(prefix="bandana-kv-test-"))
    directory.chmod(0o755)
    yield directory
    for path in directory.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(directory)


def _told(work: Callable[[], Any], answer: Any) -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    try:
        work()
    except BandanaError as error:
        answer.put((type(error).__name__, str(error)))
    except BaseException as error:
        answer.put((f"raw {type(error).__name__}", str(error)))
    else:
        answer.put(("nothing", ""))


def told(work: Callable[[], Any]) -> tuple[str, str]:
    """Return the kind and message of the error that a user without permissions gets."""
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=_told, args=(work, answer))
    child.start()
    child.join()
    assert child.exitcode == 0
    return answer.get()


def serve(path: Path) -> None:
    with bandana_kv.open(path, cache_bytes=0) as store:
        assert np.array_equal(store.multi_get("t", [299, 3]), ROWS[[299, 3]])


def verify(path: Path) -> None:
    found = bandana_kv.verify(path)
    assert found.sound, found.findings


def made(path: Path, engine: str) -> Path:
    bandana_kv.load(path, {"t": ROWS}, adapter=engine)
    if engine == "lmdb":  # which readers write to
        for lock in path.rglob("lock.mdb"):
            lock.chmod(0o666)
    serve(path)
    verify(path)  # kernels are loaded by now: the child may not write to their cache
    return path


def test_who_may_read_reads(shared: Path) -> None:
    for engine in ENGINES:
        store = made(shared / engine, engine)
        for work in (serve, verify, inspect, bandana_kv.versions):
            assert told(lambda store=store, work=work: work(store)) == ("nothing", "")


# What is taken away, by a pattern below the store; and whether versions() needs it.
TAKEN = {
    "store": (".", True),
    "current": ("CURRENT", True),
    "manifests": ("manifests", True),
    "manifest": ("manifests/*", True),
    "segments": ("segments", False),
    "segment": ("segments/*", False),
    "positions": ("segments/*/*positions*", False),
    "heat": ("segments/*/*heat*", False),
    "engine": ("ENGINE", False),
    "blocks": ("BLOCKS", False),
}


def taken(store: Path, what: str) -> list[Path]:
    pattern = TAKEN[what][0]
    if pattern in ("ENGINE", "BLOCKS"):
        engines = {path.parent for path in store.rglob("*") if path.name in ENGINE_FILES}
        if pattern == "ENGINE":
            return sorted(engines)
        return [file for each in engines for file in each.iterdir() if file.name not in LOCKS]
    return [store] if pattern == "." else sorted(store.glob(pattern))


ENGINE_FILES = {"data.mdb", "CURRENT", "index"}
LOCKS = {"lock", "LOCK", "lock.mdb", "LOG"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", TAKEN)
def test_a_store_that_may_not_be_read_is_not_called_damaged(
    shared: Path, engine: str, what: str
) -> None:
    store = made(shared / "s", engine)
    paths = taken(store, what)
    assert paths
    for path in paths:
        path.chmod(0)
    asked = [serve, verify, inspect] + [bandana_kv.versions] * TAKEN[what][1]
    if what in ("segment", "positions", "heat", "engine", "blocks"):
        asked.remove(inspect)  # which reads neither
    for work in asked:
        kind, message = told(lambda work=work: work(store))
        assert kind == "NoPermissionError", (work, message)
        assert "no permission to " in message
        assert str(store) in message
    for path in paths:
        path.chmod(0o755)


@pytest.mark.parametrize("name", ["ledger.jsonl", "write-budget.json"])
def test_of_what_was_written(shared: Path, name: str) -> None:
    store = made(shared / "s", "blockfile")
    bandana_kv.set_write_budget(store, 1 << 40)
    (store / name).chmod(0)
    kind, message = told(lambda: inspect(store))
    assert (kind, message.count(f"read {store / name}")) == ("NoPermissionError", 1)
    assert told(lambda: serve(store)) == ("nothing", "")


def test_of_a_journal(shared: Path) -> None:
    store = made(shared / "s", "blockfile")
    with bandana_kv.open(store, cache_bytes=0) as opened:
        opened.update("t", [3], ROWS[3:4])
    for file in (store / "journal").glob("*.log"):
        file.chmod(0)
    for work in (serve, told_of_update):
        kind, message = told(lambda work=work: work(store))
        assert kind == "NoPermissionError", message
        assert "journal" in message


def told_of_update(store: Path) -> None:
    with bandana_kv.open(store, cache_bytes=0) as opened:
        opened.update("t", [3], ROWS[3:4])


@pytest.mark.parametrize(
    "write",
    [
        told_of_update,
        lambda store: bandana_kv.load(store, {"t": ROWS}),
        lambda store: bandana_kv.load(store.parent / "new", {"t": ROWS}),
        bandana_kv.rollback,
        lambda store: bandana_kv.set_write_budget(store, 1 << 40),
        lambda store: bandana_kv.repair(store, lambda _, ids: ROWS[ids]),
    ],
)
def test_who_may_not_write_is_told_and_leaves_nothing(
    shared: Path, write: Callable[[Path], Any]
) -> None:
    store = made(shared / "s", "blockfile")
    made(store, "blockfile")
    before = sorted(shared.rglob("*"))
    kind, message = told(lambda: write(store))
    assert kind == "NoPermissionError", message
    assert "no permission to write to " in message
    assert sorted(shared.rglob("*")) == before
    serve(store)


READ: dict[str, Callable[[Path], Any]] = {
    "log.npz": bandana_kv.AccessLog.read,
    "log.csv": bandana_kv.AccessLog.read,
    "log.parquet": bandana_kv.AccessLog.read,
    "rows.npy": lambda path: bandana_kv.load(path.parent / "out/s", {"t": path}),
    "plan.json": Plan.read,
    "placed": Placement.load,
    "device.json": DeviceProfile.read,
}


@pytest.mark.parametrize("below", [False, True], ids=["file", "directory"])
@pytest.mark.parametrize("name", READ)
def test_inputs(shared: Path, name: str, below: bool) -> None:
    (shared / "out").mkdir()
    (shared / "out").chmod(0o777)
    path = shared / "in" / name
    path.parent.mkdir()
    path.write_bytes(b"x")
    (path.parent if below else path).chmod(0)
    kind, message = told(lambda: READ[name](path))
    assert kind == "NoPermissionError", message
    assert f"no permission to {'enter' if below else 'read'} " in message
    assert not list((shared / "out").iterdir())


def test_a_database_of_others(shared: Path) -> None:
    import rocksdict

    rocks = rocksdict.Rdict(str(shared / "rocks"), rocksdict.Options(raw_mode=True))
    rocks[bytes(8)] = ROWS[0].tobytes()
    rocks.close()
    for file in (shared / "rocks").iterdir():
        file.chmod(0)
    kind, message = told(lambda: open_rows("rocksdb", shared / "rocks"))
    assert kind == "NoPermissionError", message


def test_it_is_a_permission_error_of_python(shared: Path) -> None:
    assert issubclass(NoPermissionError, PermissionError)


def test_readers_of_lmdb_are_told_what_they_need(shared: Path) -> None:
    import lmdb

    store = made(shared / "s", "lmdb")
    with lmdb.open(str(shared / "rows"), map_size=1 << 20) as rows, rows.begin(write=True) as txn:
        txn.put(bytes(8), ROWS[0].tobytes())
    for lock in shared.rglob("lock.mdb"):
        lock.chmod(0o644)
    for work in (lambda: serve(store), lambda: open_rows("lmdb", shared / "rows")):
        kind, message = told(work)
        assert kind == "NoPermissionError", message
        assert "lock.mdb, the table that readers enter themselves in" in message
        assert "chmod a+rw" in message
