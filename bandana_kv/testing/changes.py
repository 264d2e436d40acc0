"""Threads that look up while rows, versions and placements change in the same process.

    python -m bandana_kv.testing.changes --adapter blockfile --threads 16 --seconds 60 --json

Each row says its version, its id, and the update that it is of, in every number behind; so an
answer tells what it is made of:

wrong
    A row of another id, or of a version or an update before those that were acknowledged when the
    lookup began.
torn
    A row that is of two updates.
mixed
    An answer with rows of two versions, over all its tables.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import bandana_kv
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.placement import Placement

__all__ = ["POLICIES", "run"]

ROWS, DIM = 3000, 32
TABLES = ("user", "item")
# Hits of the first two take turns, those of the last go together; the first admits whole blocks.
POLICIES = {
    "lru": Policy("lru", Admission("all")),
    "s3-fifo": Policy("s3-fifo", Admission("shadow")),
    "tinylfu": Policy("tinylfu", Admission("online"), half_life=2.0),
}
_CACHED_ROWS = 300
_UPDATED_AT_ONCE, _UPDATES_BETWEEN = 20, 30
_VERSION, _ID, _UPDATE = 0, 1, 2

Numbers = NDArray[np.int32]


def _rows_of(version: int, ids: NDArray[np.int64], update: int) -> Numbers:
    rows = np.full((ids.size, DIM), update, np.int32)
    rows[:, _VERSION], rows[:, _ID] = version, ids
    return rows


class _Run:
    """One store, what was acknowledged, and what answers turned out to be."""

    def __init__(self, root: Path, adapter: str, policy: Policy) -> None:
        self.root, self.adapter, self.policy = root, adapter, policy
        self.load(1)
        self.store = bandana_kv.open(root, _CACHED_ROWS * 4 * DIM * len(TABLES), policy=policy)
        self.version = 1
        # By version: of each row of "user", the last update that was acknowledged.
        self.acknowledged = {1: np.zeros(ROWS, np.int32)}
        self.ended = threading.Event()
        self.failures: list[BaseException] = []

    def load(self, version: int) -> None:
        rows = _rows_of(version, np.arange(ROWS), 0)
        tables = dict.fromkeys(TABLES, rows)
        bandana_kv.load(self.root, tables, adapter=self.adapter, placement="shuffled")

    def change(self, seed: int, made: dict[str, int]) -> None:
        """Update rows, and now and then flush, place anew, or switch to another version."""
        rng = np.random.default_rng(seed)
        update = 0
        while not self.ended.is_set():
            for _ in range(_UPDATES_BETWEEN):
                update += 1
                ids = rng.choice(ROWS, _UPDATED_AT_ONCE, replace=False)
                self.store.update("user", ids, _rows_of(self.version, ids, update))
                self.acknowledged[self.version][ids] = update
            made["updates"] += _UPDATES_BETWEEN
            what = str(rng.choice(["flushes", "placements", "switches"]))
            if what == "flushes":
                self.store.flush()
            elif what == "placements":
                self._place(rng)
            else:
                self.load(self.version + 1)
                self.acknowledged[self.version + 1] = np.zeros(ROWS, np.int32)
                self.store.refresh()
                self.version += 1
            made[what] += 1

    def _place(self, rng: np.random.Generator) -> None:
        served = self.store.placement("user")
        positions = served.position_of_id.copy()
        ids = rng.choice(ROWS, 200, replace=False)
        positions[ids] = positions[np.roll(ids, 1)]
        self.store.place_anew("user", Placement(positions, served.rows_per_block, "shuffled"))

    def look_up(self, seed: int) -> dict[str, int]:
        """Ask until it has ended; return what answers turned out to be."""
        rng = np.random.default_rng(seed)
        found = dict.fromkeys(("lookups", "wrong", "torn", "mixed"), 0)
        while not self.ended.is_set():
            ids = rng.integers(0, ROWS, int(rng.choice([1, 8, 40, 300])))
            least = self.version
            before = {version: known[ids] for version, known in list(self.acknowledged.items())}
            if rng.random() < 0.5:
                answer = {"user": self.store.multi_get("user", ids)}
            else:
                answer = self.store.multi_get(dict.fromkeys(TABLES, ids))
            versions = {int(v) for rows in answer.values() for v in np.unique(rows[:, _VERSION])}
            found["lookups"] += 1
            found["mixed"] += len(versions) != 1
            for name, rows in answer.items():
                updates = rows[:, _UPDATE:]
                torn = (updates != updates[:, :1]).any(axis=1)
                wrong = (rows[:, _ID] != ids) | (rows[:, _VERSION] < least)
                if name == "user" and len(versions) == 1:
                    wrong |= updates[:, 0] < before.get(versions.pop(), 0)
                found["torn"] += int(torn.sum())
                found["wrong"] += int(wrong.sum())
        return found

    def in_thread(self, work: Any, *arguments: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self.failures.append(error)
                self.ended.set()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread


def run(
    root: Path,
    adapter: str,
    *,
    policy: str = "tinylfu",
    threads: int = 16,
    seconds: float = 60.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Look up in so many threads while one changes everything; return what was found.

    Parameters
    ----------
    root
        Where the store is to be; it must not exist.
    policy
        A name of `POLICIES`.

    Returns
    -------
    dict
        How many lookups, updates, flushes, placements and switches there were, and how many
        rows were `wrong` and `torn`, and answers `mixed`; `failures` of calls, as text.
    """
    running = _Run(root, adapter, POLICIES[policy])
    made = dict.fromkeys(("updates", "flushes", "placements", "switches"), 0)
    found: list[dict[str, int]] = []
    with running.store:
        started = [running.in_thread(running.change, seed, made)]
        started += [
            running.in_thread(lambda number=number: found.append(running.look_up(number)))
            for number in range(seed + 1, seed + 1 + threads)
        ]
        until = time.monotonic() + seconds
        while time.monotonic() < until and not running.ended.is_set():
            time.sleep(0.05)
        running.ended.set()
        for thread in started:
            thread.join()
        if not running.failures:
            running.store.check()
    sums = {name: sum(each[name] for each in found) for name in found[0]} if found else {}
    failures = [f"{type(error).__name__}: {error}" for error in running.failures]
    return {"adapter": adapter, "policy": policy, **made, **sums, "failures": failures}


@click.command()
@click.option("--adapter", default="blockfile", show_default=True)
@click.option("--policy", default="tinylfu", show_default=True, type=click.Choice(list(POLICIES)))
@click.option("--threads", default=16, show_default=True)
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
def main(adapter: str, policy: str, threads: int, seconds: float, seed: int, _json: bool) -> None:
    """Look up in threads while rows, versions and placements change; exit 1 if it finds a fault."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "store"
        found = run(root, adapter, policy=policy, threads=threads, seconds=seconds, seed=seed)
    click.echo(json.dumps(found))
    if found["failures"] or any(found[name] for name in ("wrong", "torn", "mixed")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
