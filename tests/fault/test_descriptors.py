"""Many tables take few file descriptors, and a store that is closed takes none."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters import rocksdb_open
from bandana_kv.adapters.rows import open_rows
from bandana_kv.errors import AdapterError

TABLES = 120
ROWS = np.random.default_rng(0).random((TABLES, 40, 8), np.float32)
ENGINES = ["blockfile", "lmdb", "rocksdb"]


def open_files() -> set[str]:
    """Return what is open, but for what comes and goes in other threads."""
    gc.collect()  # what other tests left would go meanwhile
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(each.readlink()))
    return {path for path in found if not path.startswith(("/proc", "pipe:", "socket:"))}


@contextlib.contextmanager
def limited(more: int) -> Iterator[None]:
    """Allow so many more descriptors than there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def tables(offset: int = 0) -> dict[str, np.ndarray]:
    return {f"t{each}": ROWS[each] + offset for each in range(TABLES)}


def check(store: bandana_kv.EmbeddingStore, offset: int = 0) -> None:
    for each in range(TABLES):
        assert np.array_equal(store.multi_get(f"t{each}", [3, 39]), ROWS[each, [3, 39]] + offset)


@pytest.fixture
def others() -> Iterator[None]:
    """Hold many descriptors, as the rest of a process does: what is left is less."""
    with contextlib.ExitStack() as held:
        for _ in range(300):
            held.enter_context(Path(os.devnull).open("rb"))
        yield


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("adapter", ENGINES)
def test_many_tables_open_refresh_and_close_at_a_low_limit(tmp_path: Path, adapter: str) -> None:
    before = open_files()
    path = tmp_path / "s"
    with limited(60):
        bandana_kv.load(path, tables(), adapter=adapter)
    with limited(60), bandana_kv.open(path, cache_bytes=0) as store:
        check(store)
        bandana_kv.load(path, tables(1), adapter=adapter)
        assert store.refresh() == 2
        check(store, 1)
        store.update("t7", [39], ROWS[7, [39]] + 1)
        store.flush()
        check(store, 1)
        assert bandana_kv.verify(path).sound
    assert open_files() == before


@pytest.mark.parametrize("adapter", ENGINES)
def test_of_many_loads_of_one_table_each_as_many_are_open_as_versions(
    tmp_path: Path, adapter: str
) -> None:
    before = open_files()
    for each in range(10):
        bandana_kv.load(tmp_path / "s", {f"t{each}": ROWS[each]}, adapter=adapter)
    with bandana_kv.open(tmp_path / "s", cache_bytes=0) as store:
        for each in range(10):
            assert np.array_equal(store.multi_get(f"t{each}", [39]), ROWS[each, [39]])
    assert open_files() == before


# -- links to a rocksdb's files -----------------------------------------------------------------


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, for links alone."""
    (tmp_path / "links").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "links"))
    return tmp_path / "links"


@pytest.fixture
def rocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rocksdb_open, "_most_open", lambda _: 20)
    bandana_kv.load(tmp_path / "s", {"t": ROWS[0]}, adapter="rocksdb")
    return tmp_path / "s"


def test_links_that_are_needed_stay_until_closing(rocks: Path, links: Path) -> None:
    with bandana_kv.open(rocks, cache_bytes=0) as store:
        assert len(list(links.iterdir())) == 1
        assert np.array_equal(store.multi_get("t", [3]), ROWS[0, [3]])
        if not (child := os.fork()):
            same = np.array_equal(store.multi_get("t", [4]), ROWS[0, [4]])
            store.close()
            os._exit(not same)
        assert os.waitpid(child, 0)[1] == 0
        assert len(list(links.iterdir())) == 1  # the child removed its own
        assert np.array_equal(store.multi_get("t", [5]), ROWS[0, [5]])
    assert not list(links.iterdir())


@pytest.mark.parametrize("when", ["before it is opened", "before it is locked"])
def test_links_that_another_process_took_for_left_are_made_again(
    rocks: Path, links: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    make, lock, taken = tempfile.mkdtemp, fcntl.flock, []

    def made(prefix: str) -> str:
        path = make(prefix=prefix)
        if when == "before it is opened" and not taken:
            taken.append(Path(path).rmdir())
        return path

    def locked(handle: int, how: int) -> None:
        if when == "before it is locked" and not taken and any(links.iterdir()):
            taken.append(next(links.iterdir()).rmdir())
        lock(handle, how)

    monkeypatch.setattr(tempfile, "mkdtemp", made)
    monkeypatch.setattr(fcntl, "flock", locked)
    with bandana_kv.open(rocks, cache_bytes=0) as store:
        assert np.array_equal(store.multi_get("t", [3]), ROWS[0, [3]])
    assert len(taken) == 1
    assert not list(links.iterdir())


_KILLED = """
import sys, tempfile
tempfile.tempdir = sys.argv[2]
import bandana_kv
from bandana_kv.adapters import rocksdb_open
rocksdb_open._most_open = lambda _: 20
store = bandana_kv.open(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_links_of_the_dead_go_and_those_of_the_living_stay(rocks: Path, links: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(rocks), str(links)]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe) as killed,
        subprocess.Popen(command, stdin=pipe, stdout=pipe) as living,
    ):
        for each in (killed, living):
            assert each.stdout is not None
            assert each.stdout.readline() == b"open\n"
        assert len(list(links.iterdir())) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        (links / "bandana-kv-links-of_others").write_text("a file")
        bandana_kv.open(rocks).close()
        assert len(list(links.iterdir())) == 2  # that of the living, and a file of somebody's
        living.communicate(b"")
    assert [each.name for each in links.iterdir()] == ["bandana-kv-links-of_others"]


def test_without_a_folder_for_temporary_files_the_way_out_is_said(
    rocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(rocks / "nowhere"))
    with pytest.raises(AdapterError, match="set TMPDIR to one that can be written to"):
        bandana_kv.open(rocks)
    with pytest.raises(AdapterError, match="set TMPDIR"):
        open_rows("rocksdb", rocks / "segments/000001/blocks-1")
