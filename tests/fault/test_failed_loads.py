"""Loads that fail: the old version serves on, and not a file is more or other than before."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import BandanaError, DiskFullError, InputError
from bandana_kv.progress import Progress

ROWS = np.random.default_rng(0).random((9000, 32), np.float32)
ENGINES = ["lmdb", "rocksdb"]

Listing = Callable[[Path], dict[str, bytes]]


class Failing(Progress):
    """Raises in the middle of writing blocks."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def advance(self, count: int) -> None:
        raise self.error


def assert_serves(path: Path, rows: np.ndarray) -> None:
    with bandana_kv.open(path, cache_bytes=100_000) as store:
        assert np.array_equal(store.multi_get("user", np.arange(len(rows))), rows)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), ValueError("a bug")])
@pytest.mark.parametrize("adapter", ENGINES)
@pytest.mark.parametrize("first", [True, False])
def test_a_load_that_raises_leaves_everything_as_it_was(
    tmp_path: Path, everything_in: Listing, adapter: str, error: BaseException, first: bool
) -> None:
    path = tmp_path / "a" / "store"
    if not first:
        bandana_kv.load(path, {"user": ROWS}, adapter=adapter)
    before = everything_in(tmp_path)
    with pytest.raises(type(error)):
        bandana_kv.load(path, {"user": ROWS + 1}, adapter=adapter, progress=Failing(error))
    assert everything_in(tmp_path) == before
    assert bandana_kv.load(path, {"user": ROWS + 2}, adapter=adapter) == (1 if first else 2)
    assert_serves(path, ROWS + 2)


def test_the_old_version_is_served_while_a_load_runs(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter="lmdb")
    opened = []

    class Opens(Progress):
        def advance(self, count: int) -> None:
            assert_serves(tmp_path, ROWS)
            opened.append(count)

    bandana_kv.load(tmp_path, {"user": ROWS + 1}, adapter="lmdb", progress=Opens())
    assert opened
    assert_serves(tmp_path, ROWS + 1)


@pytest.mark.parametrize("file", ["positions", "heat", ".json.new", "CURRENT.new"])
@pytest.mark.parametrize("first", [True, False])
def test_no_room_for_any_of_the_files_leaves_everything_as_it_was(
    tmp_path: Path,
    everything_in: Listing,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    first: bool,
) -> None:
    path = tmp_path / "store"
    if not first:
        bandana_kv.load(path, {"user": ROWS}, adapter="lmdb")
    before = everything_in(tmp_path)
    fsync = os.fsync

    def full(handle: int) -> None:
        if file in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="free some and load again, nothing was lost"):
            bandana_kv.load(path, {"user": ROWS + 1}, adapter="lmdb")
    assert everything_in(tmp_path) == before


def test_a_failure_after_the_switch_keeps_the_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter="lmdb")
    sync = bandana_kv.system.durable.sync_directory

    def fails_at_last(path: Path) -> None:
        sync(path)
        if path == tmp_path and (tmp_path / "CURRENT").read_text() == "2\n":
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(bandana_kv.system.durable, "sync_directory", fails_at_last)
        with pytest.raises(OSError, match="Input/output"):
            bandana_kv.load(tmp_path, {"user": ROWS + 1}, adapter="lmdb")
    assert_serves(tmp_path, ROWS + 1)


def test_what_cannot_be_cleared_away_does_not_fail_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for add in range(2):
        bandana_kv.load(tmp_path, {"user": ROWS + add}, adapter="lmdb")

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        assert bandana_kv.load(tmp_path, {"user": ROWS + 2}, adapter="lmdb") == 3
    assert_serves(tmp_path, ROWS + 2)
    bandana_kv.load(tmp_path, {"user": ROWS + 3}, adapter="lmdb")
    assert len(list((tmp_path / "segments").iterdir())) == 2


def mount(*arguments: str) -> None:
    if shutil.which("mount") is None:
        pytest.skip("this system has no mount command")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give the root of a file system of 24 MiB."""
    (tmp_path / "disk").mkdir()
    mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path / "disk"))
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize("adapter", ENGINES)
@pytest.mark.parametrize("noticed", ["before writing", "in the middle"])
def test_a_full_disk_leaves_everything_as_it_was(
    disk: Path,
    everything_in: Listing,
    monkeypatch: pytest.MonkeyPatch,
    adapter: str,
    noticed: str,
) -> None:
    bandana_kv.load(disk / "store", {"user": ROWS}, adapter=adapter)
    before = everything_in(disk)
    large = np.zeros((200_000, 32), np.float32)
    if noticed == "in the middle":
        usage = shutil.disk_usage(disk)._replace(free=1 << 40)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for path in (disk / "store", disk / "new"):
        with pytest.raises(DiskFullError, match=r"free|no room"):
            bandana_kv.load(path, {"user": large}, adapter=adapter)
        assert everything_in(disk) == before
    assert_serves(disk / "store", ROWS)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Give a directory on a file system that is mounted read-only once a store is in it."""
    (tmp_path / "media").mkdir()
    bandana_kv.load(tmp_path / "media" / "store", {"user": ROWS}, adapter="lmdb")
    bandana_kv.load(tmp_path / "media" / "rocks", {"user": ROWS}, adapter="rocksdb")
    mount("--bind", str(tmp_path / "media"), str(tmp_path / "media"))
    mount("-o", "remount,bind,ro", str(tmp_path / "media"))
    yield tmp_path / "media"
    subprocess.run(["umount", "--lazy", str(tmp_path / "media")], check=True)


def test_read_only_media_serve_and_refuse_loads(read_only: Path, everything_in: Listing) -> None:
    before = everything_in(read_only)
    for name in ("store", "rocks", "new"):
        with pytest.raises(InputError, match=r"cannot be made a store .*\(Read-only"):
            bandana_kv.load(read_only / name, {"user": ROWS})
    for name in ("store", "rocks"):
        assert_serves(read_only / name, ROWS)
    with pytest.raises(BandanaError, match="not there does not exist"):
        bandana_kv.open(read_only / "not there")
    assert everything_in(read_only) == before
