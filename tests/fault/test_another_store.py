"""Another store comes to lie where one is open: it is neither followed nor written to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.disk import manifest
from bandana_kv.errors import StoreChangedError
from bandana_kv.placement import Placement
from bandana_kv.progress import Progress

OLD, NEW = np.zeros((200, 8), np.float32), np.ones((100, 16), np.float32)
ENGINES = ["blockfile", "lmdb", "rocksdb"]


def load(path: Path, rows: np.ndarray, adapter: str) -> None:
    bandana_kv.load(path, {"t": rows}, adapter=adapter)


def delete_and_load(path: Path, rows: np.ndarray, adapter: str) -> None:
    shutil.rmtree(path)
    load(path, rows, adapter)


def empty_and_load(path: Path, rows: np.ndarray, adapter: str) -> None:
    for inside in path.iterdir():
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    load(path, rows, adapter)


def rename_and_load(path: Path, rows: np.ndarray, adapter: str) -> None:
    path.rename(path.with_name("elsewhere"))
    load(path, rows, adapter)


def rename_over(path: Path, rows: np.ndarray, adapter: str) -> None:
    load(path.with_name("next"), rows, adapter)
    path.rename(path.with_name("before"))
    path.with_name("next").rename(path)


WAYS = [delete_and_load, empty_and_load, rename_and_load, rename_over]


@pytest.mark.parametrize("adapter", ENGINES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [NEW, OLD + 1, OLD], ids=["shape", "values", "equal"])
def test_nothing_of_another_store_is_served_or_changed(
    tmp_path: Path, adapter: str, way: Callable[..., None], rows: np.ndarray
) -> None:
    path = tmp_path / "s"
    load(path, OLD, adapter)
    with bandana_kv.open(path) as store:
        store.multi_get("t", np.arange(50))
        store.update("t", [3], OLD[:1] + 7)
        way(path, rows, adapter)
        for follow_or_write in (
            store.refresh,
            lambda: store.update("t", [150], OLD[:1]),
            store.flush,
            lambda: store.place_anew("t", store.placement("t")),
        ):
            with pytest.raises(StoreChangedError, match="open the path again"):
                follow_or_write()
        assert store.shape("t") == OLD.shape
        assert np.array_equal(store.get("t", 3), OLD[3] + 7)
    with bandana_kv.open(path) as fresh:
        assert np.array_equal(fresh.multi_get("t", np.arange(len(rows))), rows)
        fresh.update("t", [5], rows[:1] + 2)
        fresh.flush()
        assert np.array_equal(fresh.get("t", 5), rows[0] + 2)
        fresh.check()


def test_a_link_that_is_flipped_is_noticed(tmp_path: Path) -> None:
    for name, rows in (("a", OLD), ("b", OLD + 1)):
        load(tmp_path / name, rows, "blockfile")
    link = tmp_path / "current"
    link.symlink_to("a")
    with bandana_kv.open(link) as store:
        assert store.refresh() == 1
        link.unlink()
        link.symlink_to("b")
        with pytest.raises(StoreChangedError, match="current"):
            store.refresh()
        link.unlink()
        link.symlink_to(tmp_path / "a")
        assert store.refresh() == 1


def test_a_backup_that_is_put_back_is_noticed(tmp_path: Path) -> None:
    path, backup = tmp_path / "s", tmp_path / "backup"
    load(path, OLD, "blockfile")
    shutil.copytree(path, backup)
    load(path, OLD + 1, "blockfile")
    with bandana_kv.open(path) as store:
        shutil.rmtree(path)
        shutil.copytree(backup, path)
        with pytest.raises(StoreChangedError):
            store.refresh()
        with pytest.raises(StoreChangedError):
            store.update("t", [1], OLD[:1])


def test_a_store_that_is_gone_is_told_apart_from_one_that_was_never_there(tmp_path: Path) -> None:
    load(tmp_path / "s", OLD, "blockfile")
    with bandana_kv.open(tmp_path / "s") as store:
        shutil.rmtree(tmp_path / "s")
        with pytest.raises(StoreChangedError):
            store.refresh()
        assert not (tmp_path / "s").exists()


def test_a_relative_path_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (("a", OLD), ("b", OLD + 5)):
        load(tmp_path / name / "s", rows, "lmdb")
    monkeypatch.chdir(tmp_path / "a")
    with bandana_kv.open("s") as store:
        monkeypatch.chdir(tmp_path / "b")
        store.update("t", [1], OLD[:1] + 9)
        store.flush()
        load(tmp_path / "a" / "s", OLD + 2, "lmdb")
        assert store.refresh() == 2
        assert np.array_equal(store.get("t", 0), OLD[0] + 2)
    with bandana_kv.open(tmp_path / "b" / "s") as other:
        assert np.array_equal(other.multi_get("t", np.arange(200)), OLD + 5)


def test_the_watch_says_so_and_other_versions_of_the_store_are_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    load(path, OLD, "blockfile")
    with bandana_kv.open(path, watch_seconds=0.02) as store:
        load(path, OLD + 1, "blockfile")
        until = time.monotonic() + 20
        while store.version != 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert store.version == 2
        delete_and_load(path, NEW, "blockfile")
        while "open the path again" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)
        assert "open the path again" in caplog.text
        assert store.shape("t") == OLD.shape


def test_a_forked_child_notices_too(tmp_path: Path) -> None:
    load(tmp_path / "s", OLD, "blockfile")
    with bandana_kv.open(tmp_path / "s") as store:
        delete_and_load(tmp_path / "s", NEW, "blockfile")
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                store.refresh()
            except StoreChangedError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_manifest_that_is_written_over_in_place_is_noticed(tmp_path: Path) -> None:
    for name in ("s", "other"):
        load(tmp_path / name, OLD, "blockfile")
    with bandana_kv.open(tmp_path / "s") as store:
        manifest.manifest_path(tmp_path / "s", 1).chmod(0o600)  # the same, but touched
        assert store.refresh() == 1
        shutil.copyfile(
            manifest.manifest_path(tmp_path / "other", 1),
            manifest.manifest_path(tmp_path / "s", 1),
        )
        with pytest.raises(StoreChangedError):
            store.refresh()
        with pytest.raises(StoreChangedError):
            store.update("t", [1], OLD[:1])


def test_a_version_of_another_store_is_not_followed(tmp_path: Path) -> None:
    load(tmp_path / "s", OLD, "blockfile")
    for rows in (NEW, NEW + 1):
        load(tmp_path / "other", rows, "blockfile")
    with bandana_kv.open(tmp_path / "s") as store:
        shutil.copytree(
            tmp_path / "other" / "segments", tmp_path / "s" / "segments", dirs_exist_ok=True
        )
        shutil.copy(manifest.manifest_path(tmp_path / "other", 2), tmp_path / "s" / "manifests")
        shutil.copy(manifest.current_path(tmp_path / "other"), tmp_path / "s")
        with pytest.raises(StoreChangedError, match="another store"):
            store.refresh()
        assert store.version == 1


def test_all_versions_of_a_store_know_it_and_each_is_known_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "s"
    load(path, OLD, "blockfile")
    load(path, OLD + 1, "blockfile")
    with bandana_kv.open(path) as store:
        store.place_anew(
            "t", Placement(np.random.default_rng(0).permutation(200).astype(np.uint32), 127, "test")
        )
    found = [manifest.read_version(path, number) for number in (1, 3)]
    load(tmp_path / "other", OLD, "blockfile")
    found.append(manifest.read_current(tmp_path / "other"))
    assert len({each.identity for each in found}) == 3
    assert [each.store == found[0].store for each in found] == [True, True, False]
    assert all(re.fullmatch("[0-9a-f]{16}", each.store) for each in found)


@pytest.mark.parametrize("adapter", ENGINES)
def test_a_load_whose_directory_is_replaced_meanwhile_takes_no_effect(
    tmp_path: Path, adapter: str
) -> None:
    path = tmp_path / "s"
    load(path, OLD, adapter)

    class Replaced(Progress):
        def start(self, label: str, total: int, unit: str) -> None:
            if path.exists() and not path.with_name("elsewhere").exists():
                path.rename(path.with_name("elsewhere"))
                load(path, NEW, adapter)

    with pytest.raises(StoreChangedError, match="nothing of it takes effect"):
        bandana_kv.load(path, {"t": OLD + 3}, adapter=adapter, progress=Replaced())
    assert manifest.numbers_in(path / "manifests") == [1]
    for where, rows in ((path, NEW), (path.with_name("elsewhere"), OLD)):
        with bandana_kv.open(where) as store:
            assert store.version == 1
            assert np.array_equal(store.multi_get("t", np.arange(len(rows))), rows)


def test_a_table_that_is_placed_anew_while_its_directory_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    load(path, OLD, "blockfile")
    other = Placement(np.random.default_rng(0).permutation(200).astype(np.uint32), 127, "test")

    class Replaced(Progress):
        def start(self, label: str, total: int, unit: str) -> None:
            delete_and_load(path, NEW, "blockfile")

    with bandana_kv.open(path) as store:
        with pytest.raises(StoreChangedError):
            store.place_anew("t", other, progress=Replaced())
        assert np.array_equal(store.multi_get("t", np.arange(200)), OLD)
    assert manifest.numbers_in(path / "manifests") == [1]
    assert manifest.numbers_in(path / "segments") == [1]
    with bandana_kv.open(path) as fresh:
        assert np.array_equal(fresh.multi_get("t", np.arange(100)), NEW)
