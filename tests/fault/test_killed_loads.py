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
renamed = set()
def slow_replace(self, target):
    what = pathlib.Path(target).suffix or target.name
    if what == "CURRENT" and ".json" not in renamed:
        return replace(self, target)  # at the beginning, what is current is made so again
    reached(f"before the rename of {what}")
    replace(self, target)
    renamed.add(what)
    reached(f"after the rename of {what}")
pathlib.Path.replace = slow_replace

bandana_kv.load(path, {"user": rows}, adapter=adapter, placement="shuffled", progress=Told())
"""

# Each with whether the new version is the one served.
MOMENTS = {
    "begun": False,
    "between blocks": False,
    "blocks written": False,
    "before the rename of .json": False,
    "after the rename of .json": False,
    "before the rename of CURRENT": False,
    "after the rename of CURRENT": True,
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


def assert_serves(store: Path, rows: np.ndarray) -> int:
    with bandana_kv.open(store, cache_bytes=100_000) as opened:
        assert np.array_equal(opened.multi_get("user", np.arange(len(rows))), rows)
        return opened.version


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
        load_and_kill(store, ROWS + 1 + number, adapter, moment)
        killed = assert_serves(store, ROWS + 1 + number if MOMENTS[moment] else ROWS)
        assert (killed > 1) == MOMENTS[moment]
    last = bandana_kv.load(store, {"user": ROWS - 1}, adapter=adapter)
    assert assert_serves(store, ROWS - 1) == last
    assert sorted(path.name for path in store.iterdir()) == [
        "CURRENT",
        "ledger.jsonl",
        "lock",
        "manifests",
        "segments",
    ]
    for what in ("manifests", "segments"):
        names = [path.name.removesuffix(".json") for path in (store / what).iterdir()]
        assert sorted(names) == [f"{killed:06d}", f"{last:06d}"]


def test_a_killed_first_load_leaves_no_store_and_can_be_repeated(
    tmp_path: Path, everything_in: Callable[[Path], dict[str, bytes]]
) -> None:
    store = tmp_path / "store"
    for moment in ("between blocks", "before the rename of CURRENT"):
        load_and_kill(store, ROWS, "lmdb", moment)
        with pytest.raises(bandana_kv.errors.StoreNotFoundError, match="holds no store"):
            bandana_kv.open(store)
    version = bandana_kv.load(store, {"user": ROWS}, adapter="lmdb")
    assert assert_serves(store, ROWS) == version
    assert not [name for name in everything_in(store) if name.endswith(".new")]
