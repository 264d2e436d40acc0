"""Many threads and processes that ask while versions are loaded, switched and rolled back.

Every row says which load it is of and which id, so that a wrong row shows, and so does an
answer with rows of two versions.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import BandanaError
from bandana_kv.serve.version import ServedVersion

ROW_COUNT = 600
PATIENCE_S = 60.0


def rows_of(stamp: int) -> np.ndarray:
    rows = np.full((ROW_COUNT, 8), stamp, np.int32)
    rows[:, 1] = np.arange(ROW_COUNT)
    return rows


class Stamped:
    """Loads of two tables into a store; `pairs` are the stamps that belong together."""

    def __init__(self, path: Path, adapter: str) -> None:
        self.path = path
        self.adapter = adapter
        self.pairs: set[tuple[int, int]] = set()
        self.stamp = 0
        self.served: dict[int, tuple[int, int]] = {}
        self.load("user", "item")

    def load(self, *tables: str) -> int:
        self.stamp += 1
        user, item = (self.stamp, self.stamp)
        if len(tables) == 1:
            user = self.served[max(self.served)][0]
        self.pairs.add((user, item))
        rows = rows_of(self.stamp)
        version = bandana_kv.load(
            self.path,
            dict.fromkeys(tables, rows),
            adapter=self.adapter,
            placement="shuffled",
        )
        self.served[version] = (user, item)
        return version


class Traffic:
    """Threads that ask for rows of one and of both tables, and count what is not right."""

    def __init__(
        self, store: bandana_kv.EmbeddingStore, pairs: set[tuple[int, int]], threads: int
    ) -> None:
        self.found: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self._store = store
        self._pairs = pairs
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Self:
        self._ask_once(np.random.default_rng(0))  # kernels are there from now on
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self._over.is_set():
            try:
                self._ask_once(rng)
            except Exception as error:
                self.failures.append(error)

    def _ask_once(self, rng: np.random.Generator) -> None:
        ids = rng.integers(0, ROW_COUNT, rng.integers(1, 40))
        kind = rng.integers(4)
        if kind == 0:
            self._store.prefetch("user", ids)
        elif kind == 1:
            self._judge(("user", ids, self._store.multi_get("user", ids)))
        else:
            both = self._store.multi_get({"user": ids, "item": ids[::-1]})
            self._judge(("user", ids, both["user"]), ("item", ids[::-1], both["item"]))

    def _judge(self, *answers: tuple[str, np.ndarray, np.ndarray]) -> None:
        stamps = []
        for _, ids, rows in answers:
            self.found["answers"] += 1
            self.found["wrong"] += int((rows[:, 1] != ids).sum())
            stamps.append(set(rows[:, 0].tolist()))
        users = {user for user, _ in tuple(self._pairs)}  # loads add to them
        mixed = any(len(each) != 1 for each in stamps) or not stamps[0] <= users
        if not mixed and len(stamps) == 2:
            mixed = (stamps[0].pop(), stamps[1].pop()) not in self._pairs
        self.found["mixed"] += mixed


def switch_for(seconds: float, store: bandana_kv.EmbeddingStore, loads: Stamped) -> int:
    """Load, refresh and roll back again and again; return how many switches there were."""
    until, switches = time.monotonic() + seconds, 0
    while time.monotonic() < until or switches < 6:
        both = loads.load("user", "item")
        assert store.refresh(warm_seconds=0.2) == both
        item = loads.load("item")
        assert store.refresh() == item
        assert bandana_kv.rollback(loads.path) == both
        assert store.refresh(warm_seconds=0) == both
        bandana_kv.rollback(loads.path, item)
        switches += 3
    return switches


@pytest.fixture
def eager_switches() -> object:
    """Make threads take turns far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switches")
@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb", "blockfile"])
def test_no_call_fails_and_no_answer_is_mixed_while_versions_switch(
    adapter: str, tmp_path: Path
) -> None:
    loads = Stamped(tmp_path / "s", adapter)
    with (
        bandana_kv.open(tmp_path / "s", cache_bytes=20_000, readers=4) as store,
        Traffic(store, loads.pairs, 16) as traffic,
    ):
        assert switch_for(2.0, store, loads) >= 6
    assert not traffic.failures
    assert traffic.found["answers"] > 50
    assert (traffic.found["wrong"], traffic.found["mixed"]) == (0, 0)


class Uncounted(list[None]):
    """Stays empty, whoever goes in and out."""

    def append(self, _: None) -> None:
        pass

    def pop(self, *_: object) -> None:
        pass


def close_at_once(patch: pytest.MonkeyPatch) -> None:
    """Calls are not counted: the switch closes the old version under them."""
    begin = ServedVersion._begin

    def uncounted(version: ServedVersion) -> None:
        begin(version)
        version.inside = Uncounted()

    patch.setattr(ServedVersion, "_begin", uncounted)


def table_by_table(patch: pytest.MonkeyPatch) -> None:
    """Each table of a request is asked for by itself, of whatever version serves then."""
    multi_get = bandana_kv.EmbeddingStore.multi_get

    def one_by_one(store: bandana_kv.EmbeddingStore, asked: object, *rest: object) -> object:
        if isinstance(asked, str):
            return multi_get(store, asked, *rest)
        answers = {}
        for name, ids in asked.items():
            answers[name] = multi_get(store, name, ids)
            time.sleep(0.001)
        return answers

    patch.setattr(bandana_kv.EmbeddingStore, "multi_get", one_by_one)


@pytest.mark.usefixtures("eager_switches")
@pytest.mark.parametrize("bug", [close_at_once, table_by_table])
def test_the_harness_notices_a_planted_bug(
    bug: Callable[[pytest.MonkeyPatch], None], tmp_path: Path
) -> None:
    loads = Stamped(tmp_path / "s", "blockfile")
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        with (
            bandana_kv.open(tmp_path / "s", cache_bytes=0, readers=2) as store,
            Traffic(store, loads.pairs, 16) as traffic,
        ):
            until = time.monotonic() + PATIENCE_S
            while not (traffic.failures or traffic.found["mixed"]):
                assert time.monotonic() < until
                switch_for(0.1, store, loads)
    assert bool(traffic.failures) == (bug is close_at_once)


def opened_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb", "blockfile"])
def test_thirty_refreshes_leave_no_file_thread_or_mapping(adapter: str, tmp_path: Path) -> None:
    loads = Stamped(tmp_path / "s", adapter)

    def used() -> tuple[int, int, int]:
        mapped = Path("/proc/self/maps").read_text().count(str(tmp_path))
        return opened_files(), threading.active_count(), mapped

    def refresh(times: int) -> tuple[int, int, int]:
        for _ in range(times):
            loads.load("user", "item")
            store.refresh()
            assert store.multi_get("user", ids)[0, 0] == loads.stamp
        return used()

    ids = np.arange(ROW_COUNT)
    gc.collect()
    # One thread that reads at most, and it is begun whenever reads seem slow.
    with bandana_kv.open(tmp_path / "s", cache_bytes=20_000, readers=1) as store:
        store._reader._block_us = 1e6
        before = refresh(3)
        gc.disable()  # what is retired goes by itself, not when cycles are looked for
        try:
            assert refresh(30) == before
        finally:
            gc.enable()


# -- processes -------------------------------------------------------------------------------

# Reads and refreshes for a while, and says what it found. Run in children of both kinds.
ASK = """
import json, sys, time
import numpy as np
import bandana_kv

def ask(store, rows, seconds, seed):
    rng = np.random.default_rng(seed)
    found = {"answers": 0, "wrong": 0, "mixed": 0, "failed": [], "versions": []}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ids = rng.integers(0, rows, 30)
        try:
            both = store.multi_get({"user": ids, "item": ids})
            if found["answers"] % 20 == 0:
                found["versions"].append(store.refresh())
        except bandana_kv.BandanaError as error:
            found["failed"].append(str(error))
            continue
        found["answers"] += 1
        stamps = set(both["user"][:, 0].tolist()) | set(both["item"][:, 0].tolist())
        found["mixed"] += len(stamps) != 1
        for each in both.values():
            found["wrong"] += int((each[:, 1] != ids).sum())
    found["versions"] = len(set(found["versions"]))
    return found
"""

SPAWNED = (
    ASK
    + """
path, rows, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with bandana_kv.open(path, cache_bytes=20_000, readers=2) as store:
    store.multi_get("user", range(rows))  # kernels are there from now on
    print("ready", flush=True)
    print(json.dumps(ask(store, rows, seconds, 1)))
"""
)

LOADER = """
import sys
import numpy as np
import bandana_kv

path, rows, adapter = sys.argv[1:]
rows = np.ones((int(rows), 8), np.int32)
rows[:, 1] = np.arange(len(rows))
print("ready", flush=True)
while True:
    rows[:, 0] += 1
    bandana_kv.load(path, {"user": rows, "item": rows}, adapter=adapter, placement="shuffled")
    if rows[0, 0] % 4 == 0:
        bandana_kv.rollback(path)
"""


def in_forked_child(path: Path, ask: Callable[[], dict[str, int]]) -> int:
    """Fork a child that writes what `ask` answers to `path`."""
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE_S))
        with suppress(BaseException):
            path.write_text(json.dumps(ask()))
            os._exit(0)
        os._exit(1)
    return child


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb", "blockfile"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_processes_that_fork_and_spawn_follow_a_loader(adapter: str, tmp_path: Path) -> None:
    path, seconds = tmp_path / "s", 2.0
    Stamped(path, adapter)
    names: dict[str, Callable[..., dict[str, int]]] = {}
    exec(ASK, names)  # noqa: S102
    ask = names["ask"]

    def start(script: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(path), str(ROW_COUNT), *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    with bandana_kv.open(path, cache_bytes=20_000, readers=2, watch_seconds=0.05) as store:
        store.multi_get("user", np.arange(ROW_COUNT))
        loader = start(LOADER, adapter)
        spawned = [start(SPAWNED, seconds) for _ in range(2)]
        files = [tmp_path / f"forked-{number}" for number in range(2)]
        children = [
            in_forked_child(file, lambda number=number: ask(store, ROW_COUNT, seconds, number))
            for number, file in enumerate(files)
        ]
        found = [ask(store, ROW_COUNT, seconds, 9)]
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        found += [json.loads(file.read_text()) for file in files]
        for process in spawned:
            found.append(json.loads(process.communicate(timeout=PATIENCE_S)[0]))
        loader.kill()
        loader.communicate()
        assert store.refresh()
    for each in found:
        assert (each["failed"], each["wrong"], each["mixed"]) == ([], 0, 0)
        assert each["answers"] > 20
        assert each["versions"] > 1
    # nobody reads any more: the next load clears all up
    bandana_kv.load(path, {"user": rows_of(1), "item": rows_of(1)}, adapter=adapter, keep=1)
    assert len(list((path / "segments").iterdir())) == 1


def test_a_forked_child_holds_the_version_that_its_parent_left(tmp_path: Path) -> None:
    loads = Stamped(tmp_path / "s", "blockfile")
    go, done = os.pipe()
    with bandana_kv.open(tmp_path / "s", cache_bytes=0, readers=1) as store:
        child = os.fork()
        if child == 0:
            signal.alarm(int(PATIENCE_S))
            os.close(done)
            os.read(go, 1)  # until the parent has switched and loaded
            right = False
            with suppress(BandanaError):
                right = set(store.multi_get("user", range(ROW_COUNT))[:, 0].tolist()) == {1}
            os._exit(0 if right else 1)
        os.close(go)
        loads.load("user", "item")
        store.refresh()
        loads.load("user", "item")
        loads.load("user", "item")
        assert 1 in [version.number for version in bandana_kv.versions(tmp_path / "s")]
        os.close(done)
        assert os.waitpid(child, 0)[1] == 0
    loads.load("user", "item")
    assert 1 not in [version.number for version in bandana_kv.versions(tmp_path / "s")]
