"""The torture run finds nothing in the library, and finds what was planted in it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.progress import Progress
from bandana_kv.testing import torture
from bandana_kv.testing.oracle import Expected, rows_of

Run = Callable[..., dict[str, Any]]
_PATIENCE_S = 35.0
ADAPTERS = ["blockfile", "lmdb", "rocksdb"]


@pytest.fixture(scope="module")
def tortured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    directory = tmp_path_factory.mktemp("torture")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("planted.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=directory,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run(
        adapter: str,
        bug: str = "",
        seconds: float = 2.0,
        seed: int = 0,
        harness: str = "torture",
    ) -> dict[str, Any]:
        asked = {"bug": bug, "directory": str(directory), "seconds": seconds, "seed": seed}
        asked["harness"] = harness
        print(json.dumps(asked | {"adapter": adapter}), file=process.stdin, flush=True)
        found: dict[str, Any] = json.loads(process.stdout.readline())
        return found

    yield run
    process.stdin.close()
    process.stdout.close()
    process.wait()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_nothing_is_found(tortured: Run, adapter: str) -> None:
    found = tortured(adapter, seconds=4.0)
    assert {name: found[name] for name in torture.BAD} == dict.fromkeys(torture.BAD, 0), found
    assert found["kills"] > 0
    assert found["faults"] > 0
    assert found["operations"] > 0


@pytest.mark.parametrize(
    ("bug", "shown_as"),
    [
        ("no checksums", {"wrong_rows"}),
        ("switch before the blocks", {"lost_versions"}),
        ("no snapshot", {"mixed_answers"}),
        ("no journal", {"wrong_rows"}),
        ("late journal", {"wrong_rows"}),
        # A block with other rows than its label says, whoever meets it first.
        ("place over blocks in use", {"failed_calls", "lost_versions", "unsound_stores"}),
        ("a foreign error", {"unexpected_exceptions"}),
    ],
)
def test_a_planted_bug_is_found(tortured: Run, bug: str, shown_as: set[str]) -> None:
    until = time.monotonic() + _PATIENCE_S  # on a busy machine little happens in a second
    seeds = itertools.count()
    while time.monotonic() < until:
        found = tortured("blockfile", bug, seconds=1.0, seed=next(seeds))
        if any(found[name] for name in shown_as):
            return
    raise AssertionError(f"not found: {found}")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_nothing_is_found_where_keys_come_and_go(tortured: Run, adapter: str) -> None:
    found = tortured(adapter, seconds=4.0, harness="keyed")
    assert {name: found[name] for name in torture.BAD} == dict.fromkeys(torture.BAD, 0), found
    assert found["kills"] > 0
    assert found["operations"] > 0


@pytest.mark.parametrize("bug", ["keys that are not kept", "keys before rows"])
def test_a_bug_that_is_planted_among_keys_is_found(tortured: Run, bug: str) -> None:
    until = time.monotonic() + _PATIENCE_S
    seeds = itertools.count()
    while time.monotonic() < until:
        found = tortured("blockfile", bug, seconds=2.0, seed=next(seeds), harness="keyed")
        if found["wrong_rows"]:
            return
    raise AssertionError(f"not found: {found}")


def test_rows_of_other_ids_loads_and_updates_are_wrong() -> None:
    expected = Expected()
    for stamp in (1, 2):
        tables = ["item", "user"]
        expected.hear({"begin": "load", "stamp": stamp, "tables": tables, "keep": 2})
        expected.hear({"done": stamp})
    update = {"table": "user", "stamp": 2, "ids": [5], "sequence": 1}
    expected.hear({"begin": "update"} | update)
    expected.hear({"done": 2})
    ids, none = np.array([4, 5]), np.zeros(2, np.int32)
    sound = rows_of("user", 2, ids, np.array([0, 1], np.int32))

    def judged(**rows: np.ndarray) -> tuple[int, int]:
        return expected.judge(dict.fromkeys(rows, ids), rows, expected.floors())

    assert judged(user=sound, item=rows_of("item", 2, ids, none)) == (0, 0)
    assert judged(user=sound, item=rows_of("item", 1, ids, none)) == (0, 1)
    assert judged(user=rows_of("user", 2, ids, none)) == (1, 0)
    assert judged(user=sound[::-1]) == (2, 0)
    sound[0, -1] ^= 1
    assert judged(user=sound) == (1, 0)


# -- what it has found -------------------------------------------------------------------------


def table(stamp: int) -> np.ndarray:
    return np.full((300, 16), stamp, np.float32)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_updates_that_went_into_blocks_are_there_after_a_rollback(
    adapter: str, tmp_path: Path
) -> None:
    """The engine was opened to read before they were written, and is still in use."""
    bandana_kv.load(tmp_path / "s", {"item": table(1), "user": table(1)}, adapter=adapter)
    with bandana_kv.open(tmp_path / "s") as store:
        store.update("item", [7], table(7)[:1])
        bandana_kv.load(tmp_path / "s", {"item": table(2)}, adapter=adapter)
        store.refresh()
        bandana_kv.rollback(tmp_path / "s")
        store.refresh()
        assert np.array_equal(store.get("item", 7), table(7)[0])


def test_updates_of_a_version_that_is_gone_are_not_those_of_the_next(tmp_path: Path) -> None:
    class Fails(Progress):
        def advance(self, count: int) -> None:
            raise KeyboardInterrupt

    bandana_kv.load(tmp_path / "s", {"item": table(1)})
    bandana_kv.load(tmp_path / "s", {"item": table(2)})
    with bandana_kv.open(tmp_path / "s") as store:
        store.update("item", [7], table(7)[:1])
    bandana_kv.rollback(tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        bandana_kv.load(tmp_path / "s", {"item": table(3)}, progress=Fails())
    bandana_kv.load(tmp_path / "s", {"item": table(4)})
    with bandana_kv.open(tmp_path / "s") as store:
        assert np.array_equal(store.multi_get("item", np.arange(300)), table(4))
