"""Loads killed at several moments: the old version serves, the next load clears up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bandana_kv

ROWS = np.random.default_rng(0).random((9000, 32), np.float32)

# Loads as a user would, and stops at a moment until it is killed.
SCRIPT = """
import pathlib, sys, time
import numpy as np
import bandana_kv
from bandana_kv.progress import Progress

path, rows, adapter, moment = sys.argv[1:]

def reached(now):
    if now == moment:
        print("reached", flush=True)
        time.sleep(600)

class Told(Progress):
    def start(self, label, total, unit):
        reached("begun")
    def advance(self, count):
        reached("between blocks")
    def finish(self):
        reached("blocks written")

replace = pathlib.Path.replace
def slow_replace(self, target):
    reached(f"before the rename of {pathlib.Path(target).suffix or target.name}")
    replace(self, target)
    reached(f"after the rename of {pathlib.Path(target).suffix or target.name}")
pathlib.Path.replace = slow_replace

bandana_kv.load(path, {"user": rows}, adapter=adapter, placement="shuffled", progress=Told())
"""

MOMENTS = {
    "begun": 1,
    "between blocks": 1,
    "blocks written": 1,
    "before the rename of .json": 1,
    "after the rename of .json": 1,
    "before the rename of CURRENT": 1,
    "after the rename of CURRENT": 2,
}


def load_and_kill(store: Path, rows: np.ndarray, adapter: str, moment: str) -> None:
    file = store.with_suffix(".npy")
    np.save(file, rows)
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store), str(file), adapter, moment],
        stdout=subprocess.PIPE,
        text=True,
        cwd=store.parent,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "reached\n"
    finally:
        child.kill()
        child.communicate()


def assert_serves(store: Path, version: int, rows: np.ndarray) -> None:
    with bandana_kv.open(store, cache_bytes=100_000) as opened:
        assert opened.version == version
        assert np.array_equal(opened.multi_get("user", np.arange(len(rows))), rows)


@pytest.mark.parametrize(
    ("adapter", "moments"),
    [("lmdb", list(MOMENTS)), ("rocksdb", ["between blocks", "after the rename of CURRENT"])],
)
def test_a_killed_load_changes_nothing_until_it_is_complete(
    adapter: str, moments: list[str], tmp_path: Path
) -> None:
    """All moments one after the other on one store, so that litter could pile up."""
    store = tmp_path / "store"
    bandana_kv.load(store, {"user": ROWS}, adapter=adapter)
    for number, moment in enumerate(moments):
        new = MOMENTS[moment]
        load_and_kill(store, ROWS + 1 + number, adapter, moment)
        assert_serves(store, new, ROWS + 1 + number if new == 2 else ROWS)
    bandana_kv.load(store, {"user": ROWS - 1}, adapter=adapter)
    assert_serves(store, 3, ROWS - 1)
    assert sorted(path.name for path in store.iterdir()) == [
        "CURRENT",
        "lock",
        "manifests",
        "segments",
    ]
    for what in ("manifests", "segments"):
        names = [path.name.removesuffix(".json") for path in (store / what).iterdir()]
        assert sorted(names) == ["000002", "000003"]


def test_a_killed_first_load_leaves_no_store_and_can_be_repeated(
    tmp_path: Path, everything_in: Callable[[Path], dict[str, bytes]]
) -> None:
    store = tmp_path / "store"
    for moment in ("between blocks", "before the rename of CURRENT"):
        load_and_kill(store, ROWS, "lmdb", moment)
        with pytest.raises(bandana_kv.errors.StoreNotFoundError, match="holds no store"):
            bandana_kv.open(store)
    assert bandana_kv.load(store, {"user": ROWS}, adapter="lmdb") == 1
    assert_serves(store, 1, ROWS)
    assert not [name for name in everything_in(store) if name.endswith(".new")]
