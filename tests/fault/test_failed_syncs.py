"""Every sync fails once: what was written before it is lost then, and no later sync brings it back.

So the kernel does it: pages that could not be written are dropped, and the next sync is good.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import BandanaError, DurabilityError
from bandana_kv.placement import Placement

ROWS = np.random.default_rng(0).random((400, 16), np.float32)
NEW = ROWS[5:7] + 1
LATER = ROWS[9:11] + 2


class Device:
    """Counts syncs, and fails one: `fails` is its number from 0."""

    def __init__(self) -> None:
        self.fails = -1
        self.count = 0
        self._safe: dict[tuple[int, int], bytes] = {}
        self._syncs = {"fsync": os.fsync, "fdatasync": os.fdatasync}

    def sync(self, name: str, handle: int) -> None:
        number, self.count = self.count, self.count + 1
        found = os.fstat(handle)
        regular = stat.S_ISREG(found.st_mode)
        if number == self.fails:
            if regular:
                self._lose(handle, self._safe.get((found.st_dev, found.st_ino), b""))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._syncs[name](handle)
        if regular:
            self._safe[found.st_dev, found.st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()

    def _lose(self, handle: int, safe: bytes) -> None:
        """Take back what was written since the last good sync; how long it is stays."""
        with open(f"/proc/self/fd/{handle}", "r+b") as file:
            size = os.fstat(handle).st_size
            file.write(safe[:size].ljust(size, b"\0"))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda handle, name=name: found.sync(name, handle))
    return found


def rows_of(path: Path) -> np.ndarray:
    with bandana_kv.open(path, cache_bytes=0) as store:
        return store.multi_get("t", np.arange(len(ROWS)))


def place_anew(store: bandana_kv.EmbeddingStore) -> None:
    order = np.random.default_rng(3).permutation(len(ROWS)).astype(np.uint32)
    per_block = store._tables["t"].stored.rows_per_block
    store.place_anew("t", Placement(order, per_block, "given"))


def updated(rows: np.ndarray, ids: Any, new: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows[ids] = new
    return rows


def updating(then: Callable[[bandana_kv.EmbeddingStore], Any]) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        with bandana_kv.open(path, cache_bytes=0) as store:
            then(store)

    return work


# What is done, and what rows there are afterwards.
WORK: dict[str, tuple[Callable[[Path], Any], np.ndarray]] = {
    "load": (lambda path: bandana_kv.load(path, {"t": ROWS + 3}), ROWS + 3),
    "update": (updating(lambda s: s.update("t", [5, 6], NEW)), updated(ROWS, [5, 6], NEW)),
    "place anew": (updating(place_anew), ROWS),
    "rollback": (bandana_kv.rollback, ROWS - 1),
    "budget": (lambda path: bandana_kv.set_write_budget(path, 1 << 40), ROWS),
}


def failing_each(device: Device, work: Callable[[], Any]) -> Iterator[BandanaError | None]:
    """Do `work` with its first sync failing, its second, and so on; yield what it raised."""
    for number in itertools.count():
        device.count, device.fails = 0, number
        raised: BandanaError | None = None
        try:
            work()
        except BandanaError as error:
            raised = error
        done = device.count
        device.fails = -1
        if done <= number:
            assert raised is None
            return
        yield raised


@pytest.mark.parametrize("adapter", ["blockfile", "lmdb", "rocksdb"])
@pytest.mark.parametrize("what", WORK)
def test_what_is_done_to_a_store_is_done_or_not(
    device: Device, tmp_path: Path, what: str, adapter: str
) -> None:
    work, after = WORK[what]
    made = itertools.count()
    path = tmp_path

    def once() -> None:
        nonlocal path
        path = tmp_path / str(next(made))
        fails, device.fails = device.fails, -1
        for offset in (-1, 0):
            bandana_kv.load(path, {"t": ROWS + np.float32(offset)}, adapter=adapter)
        device.count, device.fails = 0, fails
        work(path)

    failed = 0
    for raised in failing_each(device, once):
        failed += 1
        found = rows_of(path)
        assert np.array_equal(found, after) or (raised and np.array_equal(found, ROWS)), raised
        if raised is not None:
            assert "made durable" in str(raised) or "Input/output" in str(raised), raised
        if isinstance(raised, DurabilityError) and "this update was not made" in str(raised):
            assert np.array_equal(found, ROWS)
        if what != "rollback":
            work(path)
            assert np.array_equal(rows_of(path), after)
        assert bandana_kv.verify(path).sound
    assert failed >= 1


def test_a_first_load_leaves_a_store_or_nothing(device: Device, tmp_path: Path) -> None:
    for raised in failing_each(device, lambda: bandana_kv.load(tmp_path / "a/s", {"t": ROWS})):
        if (tmp_path / "a/s/CURRENT").exists():
            assert np.array_equal(rows_of(tmp_path / "a/s"), ROWS)
            shutil.rmtree(tmp_path / "a")
        else:
            assert raised is not None
            assert not (tmp_path / "a").exists()


def test_nothing_is_acknowledged_behind_a_failed_sync(device: Device, tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter="blockfile")
    store = bandana_kv.open(tmp_path / "s", cache_bytes=0)
    store.update("t", [5, 6], NEW)
    device.count, device.fails = 0, 0
    with pytest.raises(DurabilityError, match="this update was not made"):
        store.update("t", [9, 10], LATER)
    for _ in range(3):
        with pytest.raises(DurabilityError, match="until this store is closed and opened again"):
            store.update("t", [9, 10], LATER)
    expected = updated(ROWS, [5, 6], NEW)
    assert np.array_equal(store.multi_get("t", np.arange(400)), expected)  # it goes on serving
    store.close()
    assert np.array_equal(rows_of(tmp_path / "s"), expected)
    with bandana_kv.open(tmp_path / "s", cache_bytes=0) as store:
        store.update("t", [9, 10], LATER)
    assert np.array_equal(rows_of(tmp_path / "s"), updated(expected, [9, 10], LATER))


@pytest.mark.parametrize("cut", [False, True], ids=["cut off", "cannot be cut off"])
def test_what_is_not_known_is_said(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter="blockfile")
    store = bandana_kv.open(tmp_path / "s", cache_bytes=0)
    store.update("t", [5, 6], NEW)

    def refuse(handle: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if cut:
        monkeypatch.setattr(os, "ftruncate", refuse)
    device.count, device.fails = 0, 0
    said = "is not known before then" if cut else "this update was not made"
    with pytest.raises(DurabilityError, match=said):
        store.update("t", [9, 10], LATER)
    monkeypatch.undo()
    store.close()
    before = updated(ROWS, [5, 6], NEW)
    possible = [before, updated(before, [9, 10], LATER)] if cut else [before]
    found = rows_of(tmp_path / "s")
    assert any(np.array_equal(found, each) for each in possible)
    with bandana_kv.open(tmp_path / "s", cache_bytes=0) as store:
        store.update("t", [399], ROWS[:1])
    assert np.array_equal(rows_of(tmp_path / "s"), updated(found, [399], ROWS[:1]))


def update_each(
    store: bandana_kv.EmbeddingStore, expected: np.ndarray, more: int, thread: int
) -> list[int]:
    """Update every eighth row; return those that were refused."""
    refused = []
    for row in range(thread, 400, 8):
        new = ROWS[row] + np.float32(more)
        try:
            store.update("t", [row], new[None])
            expected[row] = new
        except DurabilityError:
            refused.append(row)
    return refused


def test_updates_of_many_threads_are_all_acknowledged_or_refused(
    device: Device, tmp_path: Path
) -> None:
    bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter="blockfile")
    for fails in range(6):
        store = bandana_kv.open(tmp_path / "s", cache_bytes=0)
        expected = store.multi_get("t", np.arange(400))
        store.update("t", [0], expected[:1])
        device.count, device.fails = 0, fails

        with ThreadPoolExecutor(8) as pool:
            parts = pool.map(partial(update_each, store, expected, fails + 1), range(8))
            refused = [row for part in parts for row in part]
        device.fails = -1
        store.close()
        found = rows_of(tmp_path / "s")
        assert refused
        assert np.array_equal(np.delete(found, refused, 0), np.delete(expected, refused, 0))
        for row in refused:
            new = ROWS[row] + np.float32(fails + 1)
            assert np.array_equal(found[row], expected[row]) or np.array_equal(found[row], new)
