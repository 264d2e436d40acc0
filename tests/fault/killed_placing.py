"""Kills a re-placement before each of its changes in turn, and looks at the store after each.

Prints a line of JSON: how many kills there were, in how many of them the new version was served,
and what was wrong. Children are forks of this process, which holds no engine.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bandana_kv
from bandana_kv.disk import manifest
from bandana_kv.placement import Placement
from bandana_kv.serve import replacement
from bandana_kv.testing.faults import Faults, injecting

ROWS = np.random.default_rng(0).random((200, 64), np.float32)
UPDATED = np.arange(0, 200, 7)
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def in_fork(work: Callable[[], None]) -> int:
    """Run `work` in a child, and return how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def expected() -> np.ndarray:
    rows = ROWS.copy()
    rows[UPDATED] += 1
    return rows


def place(path: Path, seed: int, die: Callable[[], None] = lambda: None) -> None:
    """Place some rows anew, some of which are updated and not in their blocks yet."""
    with bandana_kv.open(path, 20_000) as store:
        store.multi_get("t", np.arange(200))
        store.update("t", UPDATED, expected()[UPDATED])
        served = store.placement("t")
        ids = np.random.default_rng(seed).choice(200, 60, replace=False)
        positions = served.position_of_id.copy()
        positions[ids] = positions[np.roll(ids, 1)]
        die()
        store.place_anew("t", Placement(positions, served.rows_per_block, "shuffled"))
        check_rows(store)
        store.flush()
        check_rows(store)


def check_rows(store: bandana_kv.EmbeddingStore) -> None:
    assert np.array_equal(store.multi_get("t", np.arange(200)), expected())
    store.check()


def check(path: Path) -> None:
    with bandana_kv.open(path, 20_000) as store:
        check_rows(store)
        store.flush()
        check_rows(store)
    report = bandana_kv.verify(path)
    assert report.sound, report.findings
    # Whichever is offered can be gone to, and has no rows of before the flush.
    current = manifest.current_number(path)
    for version in bandana_kv.versions(path):
        bandana_kv.rollback(path, version.number)
        with bandana_kv.open(path, 0) as store:
            check_rows(store)
    bandana_kv.rollback(path, current)


def kill_at_change(path: Path, number: int) -> None:
    """Place anew, and die just before the `number`-th change of a file or directory."""
    seen = -1

    def watch(event: str, given: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and bool(given[2] & (os.O_WRONLY | os.O_RDWR))
        if writes or event in CHANGES:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    place(path, number, lambda: sys.addaudithook(watch))


def kill_in_engine(path: Path, number: int) -> None:
    """Place anew, and die inside of the `number`-th operation of the engine."""
    faults = Faults(0)
    with injecting(faults):
        place(path, number, lambda: faults.schedule(number, "kill"))


def main() -> None:
    path, adapter = Path(sys.argv[1]), sys.argv[2]
    replacement._WRITTEN_AT_ONCE = 3
    # Here, so that children need not compile, and without an engine that has threads.
    in_memory = path.with_name("in-memory")
    bandana_kv.load(in_memory, {"t": ROWS}, adapter="memory", placement="shuffled")
    place(in_memory, 0)
    check(in_memory)

    def load() -> None:
        bandana_kv.load(path, {"t": ROWS}, adapter=adapter, placement="shuffled")

    kills, switched, wrong = 0, 0, in_fork(load)
    in_fork(partial(place, path, 0))
    for killed in (kill_at_change, kill_in_engine):
        for number in itertools.count():
            before = manifest.current_number(path)
            ended = in_fork(partial(killed, path, number))
            wrong += ended not in (0, -signal.SIGKILL)
            wrong += in_fork(partial(check, path))
            if ended != -signal.SIGKILL:
                break
            kills += 1
            switched += manifest.current_number(path) != before
    print(json.dumps({"kills": kills, "switched": switched, "wrong": wrong}))


if __name__ == "__main__":
    main()
