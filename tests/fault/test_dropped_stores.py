"""Stores that nobody closes: dropped, or open when the interpreter ends."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv

ROWS = np.random.default_rng(0).random((3000, 32), np.float32)
IDS = np.random.default_rng(1).permutation(3000)[:500]
ENGINES = ["blockfile", "lmdb", "rocksdb"]


@pytest.fixture(params=ENGINES)
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter=request.param)
    return tmp_path / "s"


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=40)


_DAEMONS = """
    import sys, threading, time
    import numpy as np
    import bandana_kv
    from bandana_kv.adapters import open_existing
    from bandana_kv.adapters.rows import open_rows

    store = bandana_kv.open(sys.argv[1], cache_bytes=0, **eval(sys.argv[2]))
    begun = threading.Barrier(9)

    def serve():
        begun.wait()
        try:
            while True:
                store.multi_get("t", np.random.randint(0, 3000, 40))
        except bandana_kv.errors.InputError as error:
            assert "closed" in str(error)

    for _ in range(8):
        threading.Thread(target=serve, daemon=True).start()
    begun.wait()
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("options", "runs"), [({}, 2), ({"deadline_ms": 1000.0, "watch_seconds": 0.01}, 1)], ids=str
)
def test_the_interpreter_ends_under_threads_of_the_user(
    path: Path, options: dict[str, Any], runs: int
) -> None:
    for _ in range(runs):
        done = run(_DAEMONS, path, options)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


_ROWS_BY_KEY = """
    import sys, threading, time
    import numpy as np
    from bandana_kv.adapters.rows import open_rows

    source = open_rows("rocksdb", sys.argv[1], key="uint64-be")
    begun = threading.Barrier(9)

    def serve():
        begun.wait()
        try:
            while True:
                source.rows("t", np.arange(50))
        except Exception as error:
            assert "closed" in str(error)

    for _ in range(8):
        threading.Thread(target=serve, daemon=True).start()
    begun.wait()
    time.sleep(0.1)
"""


def test_of_rows_by_key(tmp_path: Path) -> None:
    import rocksdict

    rocks = rocksdict.Rdict(str(tmp_path / "rocks"), rocksdict.Options(raw_mode=True))
    for each in range(50):
        rocks[each.to_bytes(8, "big")] = ROWS[each].tobytes()
    rocks.close()
    for _ in range(3):
        done = run(_ROWS_BY_KEY, tmp_path / "rocks")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


_ADAPTER = """
    import sys, threading, time
    from bandana_kv.adapters import block_keys, open_existing

    adapter = open_existing("rocksdb", sys.argv[1])
    keys = block_keys(int(sys.argv[2]), range(20))
    begun = threading.Barrier(9)

    def serve():
        begun.wait()
        try:
            while True:
                adapter.multi_get(keys)
        except Exception as error:
            assert "closed" in str(error)

    for _ in range(8):
        threading.Thread(target=serve, daemon=True).start()
    begun.wait()
    time.sleep(0.1)
"""


def test_of_an_adapter(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter="rocksdb")
    with bandana_kv.open(tmp_path / "s") as store:
        space = store._tables["t"].stored.space
    for _ in range(3):
        done = run(_ADAPTER, tmp_path / "s/segments/000001/blocks-1", space)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_device_that_hangs_does_not_keep_the_interpreter(tmp_path: Path) -> None:
    code = """
        import sys, threading, time
        import bandana_kv
        from bandana_kv.adapters.memory import MemoryAdapter
        import numpy as np

        class Hung(MemoryAdapter):
            def _read(self, keys, out):
                begun.set()
                time.sleep(1000)

        begun = threading.Event()
        bandana_kv.system.ending.PATIENCE_S = 0.2
        from bandana_kv.serve import store as module
        module.PATIENCE_S = 0.2
        from bandana_kv.adapters import contract
        contract.PATIENCE_S = 0.2
        engine = Hung()
        bandana_kv.load(sys.argv[1], {"t": np.zeros((99, 8), np.float32)}, adapter=engine)
        store = bandana_kv.open(sys.argv[1], adapter=engine, cache_bytes=0)
        threading.Thread(target=store.multi_get, args=("t", [1]), daemon=True).start()
        begun.wait()
    """
    begun = time.monotonic()
    done = run(code, tmp_path / "s")
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("how", ["return", "sys.exit(0)", "raise SystemExit(0)"])
def test_a_recorder_loses_nothing_at_a_clean_exit(tmp_path: Path, how: str) -> None:
    bandana_kv.load(tmp_path / "s", {"t": ROWS})
    code = f"""
        import sys
        import bandana_kv

        def main():
            store = bandana_kv.open(sys.argv[1])
            kept.extend([store, store.record(sys.argv[2])])
            for each in range(1000):
                store.multi_get("t", [each, each + 1])
            {how}

        kept = []
        main()
    """
    done = run(code, tmp_path / "s", tmp_path / "recorded")
    assert (done.returncode, done.stderr) == (0, "")
    assert bandana_kv.AccessLog.read(tmp_path / "recorded").lookups == 2000


# -- dropped ------------------------------------------------------------------------------------


def ours(path: Path) -> tuple[list[str], set[str]]:
    """Return the names of our threads, and the files that are open beside the store at `path`."""
    threads = sorted(t.name for t in threading.enumerate() if t.name.startswith("bandana"))
    files = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            files.add(str(each.readlink()))
    return threads, {file for file in files if file.startswith(str(path.parent))}


def used(path: Path, **options: Any) -> bandana_kv.EmbeddingStore:
    store = bandana_kv.open(path, cache_bytes=0, readers=4, **options)
    assert np.array_equal(store.multi_get("t", IDS), ROWS[IDS])
    return store


def drop(held: list[bandana_kv.EmbeddingStore], path: Path, before: object) -> None:
    """Drop a store, which a thread of its own may be about to use, until all is as `before`."""
    held.clear()
    begun = time.monotonic()
    while ours(path) != before:
        gc.collect()
        time.sleep(0.01)
        assert time.monotonic() - begun < 20, ours(path)


@pytest.mark.parametrize(
    "options", [{}, {"deadline_ms": 10_000.0}, {"watch_seconds": 0.01}], ids=str
)
@pytest.mark.parametrize("also", ["nothing", "updates", "records", "refreshes", "waits"])
def test_a_dropped_store_leaves_nothing(path: Path, options: dict[str, Any], also: str) -> None:
    before = ours(path)
    store = used(path, **options)
    if also == "updates":
        store.update("t", [3], ROWS[3:4])
    elif also == "records":
        store.record(path.parent / "recorded")
    elif also == "refreshes":
        bandana_kv.load(path, {"t": ROWS})
        store.refresh()
    elif also == "waits":
        import asyncio

        asyncio.run(store.multi_get_async("t", IDS))
    held = [store]
    del store
    with pytest.warns(ResourceWarning, match=f"the store at {path} was dropped while it was open"):
        drop(held, path, before)
    for _ in range(3):
        bandana_kv.load(path, {"t": ROWS}, keep=1)
    assert len(bandana_kv.versions(path)) == 1  # none is held any more
    bandana_kv.open(path).close()


def test_a_store_that_was_closed_is_dropped_in_silence(path: Path) -> None:
    with warnings.catch_warnings(action="error"):
        store = used(path)
        store.close()
        store.close()
        del store
        gc.collect()


def test_a_child_drops_its_parents_store_in_silence(path: Path) -> None:
    store = used(path)
    if not (child := os.fork()):
        with warnings.catch_warnings(action="error"):
            del store
            gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(store.multi_get("t", IDS), ROWS[IDS])
    store.close()
