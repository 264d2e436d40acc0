"""New keys and deletions under load, with the process killed meanwhile: what is there afterwards.

    python bench/upserts.py --dir DIR --json [--upserts 1000000] [--deletes 100000] [--kills 10]

A table of --keys 64-bit keys is served by a child process, in which threads look keys up while one
adds new keys, --batch at once, and deletes some of those that there are. The child says what was
acknowledged, is killed with SIGKILL at random times, and another one goes on. At the end all keys
that ever were are looked up in a process of their own.

lost
    Acknowledged upserts whose rows are not there, or not as they were.
back
    Acknowledged deletions whose keys are there.
others
    Keys that are there and nobody added: but for one batch a kill, which was begun, and may be.
wrong_lookups
    Answers to the threads of another key's row, or without a key that was there.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings
from numpy.typing import NDArray

import bandana_kv
from bandana_kv import Rows

DIM = 32
_AT_ONCE = 200_000
_READERS = 2

Numbers = NDArray[np.int64]


def keys_of(numbers: Numbers) -> Numbers:
    """Return keys that lie anywhere among 64 bits: an odd factor is a bijection."""
    with np.errstate(over="ignore"):
        return numbers * np.int64(-7046029254386353131)


def rows_of(numbers: Numbers) -> NDArray[np.float32]:
    """Return the rows of keys (n,): each tells its key."""
    return (numbers[:, None] % 65_537 + np.arange(DIM) / 64).astype(np.float32)


class _Work:
    """What there is to do, in an order that is known beforehand."""

    def __init__(self, keys: int, upserts: int, deletes: int, batch: int, seed: int) -> None:
        self.keys = keys
        new = np.split(np.arange(keys, keys + upserts), range(batch, upserts, batch))
        old = np.random.default_rng(seed).permutation(keys)[:deletes]
        each = max(1, batch * deletes // max(1, upserts))
        gone = np.split(old, range(each, deletes, each)) if deletes else []
        self.steps: list[tuple[str, Numbers]] = []
        for at, numbers in enumerate(new):
            self.steps.append(("upsert", numbers))
            if at < len(gone):
                self.steps.append(("delete", gone[at]))
        self.steps += [("delete", numbers) for numbers in gone[len(new) :]]

    def goes_on(self, store: bandana_kv.EmbeddingStore, first: int, into: int) -> None:
        """Do the steps from `first` on, and say of each that it is done."""
        for at in range(first, len(self.steps)):
            what, numbers = self.steps[at]
            if what == "upsert":
                store.upsert("t", keys_of(numbers), rows_of(numbers))
            else:
                store.delete("t", keys_of(numbers))
            os.write(into, at.to_bytes(8, "little"))


def _read(store: bandana_kv.EmbeddingStore, steady: Numbers, wrong: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    while True:
        numbers = rng.choice(steady, 34)
        rows, there = store.multi_get("t", keys_of(numbers), missing="mask")
        if not there.all() or not np.array_equal(rows, rows_of(numbers)):
            wrong.append(1)
            os._exit(3)


def _child(work: _Work, path: Path, steady: Numbers, first: int, into: int) -> None:
    store = bandana_kv.open(path, 8 << 20)
    wrong: list[int] = []
    for seed in range(_READERS):
        threading.Thread(target=_read, args=(store, steady, wrong, seed), daemon=True).start()
    work.goes_on(store, first, into)
    os._exit(3 if wrong else 0)


def _run(
    work: _Work, path: Path, steady: Numbers, kills: int, rng: random.Random
) -> dict[str, Any]:
    """Have the work done, by children that are killed; return how often, and what they saw."""
    done, killed, wrong, begun = 0, 0, 0, time.perf_counter()
    while done < len(work.steps):
        # So that the kills are spread over all of the work.
        left = kills - killed
        until = done + rng.randint(1, max(1, 2 * (len(work.steps) - done) // (left + 1)))
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(out)
            _child(work, path, steady, done, into)
        os.close(into)
        while said := os.read(out, 8):
            done = int.from_bytes(said, "little") + 1
            if left and done >= until:
                time.sleep(rng.uniform(0, 0.01))
                os.kill(child, signal.SIGKILL)
                left = 0
        os.close(out)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        killed += status == -signal.SIGKILL
        wrong += status == 3
    return {"kills": killed, "wrong_lookups": wrong, "seconds": time.perf_counter() - begun}


def _look(work: _Work, path: Path) -> dict[str, int]:
    """Look up all keys that ever were, and as many that never were."""
    last = max(int(numbers.max()) for _, numbers in work.steps) + 1
    wanted = np.zeros(2 * last, np.bool_)
    wanted[: work.keys] = True
    for what, numbers in work.steps:
        wanted[numbers] = what == "upsert"
    found = dict.fromkeys(("lost", "back", "others"), 0)
    with bandana_kv.open(path, 8 << 20) as store:
        for first in range(0, wanted.size, _AT_ONCE):
            numbers = np.arange(first, min(first + _AT_ONCE, wanted.size))
            rows, there = store.multi_get("t", keys_of(numbers), missing="mask")
            same = (rows == rows_of(numbers)).all(axis=1)
            mine = wanted[numbers]
            found["lost"] += int((mine & ~(there & same)).sum())
            found["back"] += int((~mine & there & (numbers < work.keys)).sum())
            found["others"] += int((~mine & there & (numbers >= work.keys)).sum())
        found["keys"] = store.shape("t")[0]
        found["versions_grown"] = store.version - 1
    return found


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--keys", default=1_000_000, show_default=True, help="That are loaded.")
@click.option("--upserts", default=1_000_000, show_default=True, help="Of new keys.")
@click.option("--deletes", default=100_000, show_default=True, help="Of keys that were loaded.")
@click.option("--batch", default=200, show_default=True, help="Keys that are added at once.")
@click.option("--kills", default=10, show_default=True)
@click.option("--adapter", default="blockfile", show_default=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(
    directory: Path,
    keys: int,
    upserts: int,
    deletes: int,
    batch: int,
    kills: int,
    adapter: str,
    _json: bool,
    keep: bool,
    seed: int,
) -> None:
    work = _Work(keys, upserts, deletes, batch, seed)
    folder = directory / f"upserts-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        numbers = np.arange(keys)
        table = Rows(rows_of(numbers), keys=keys_of(numbers))
        bandana_kv.load(folder / "s", {"t": table}, adapter=adapter)
        gone = np.concatenate([part for what, part in work.steps if what == "delete"] or [[]])
        steady = np.setdiff1d(numbers, gone)
        found = _run(work, folder / "s", steady, kills, random.Random(seed))
        result = {
            "bench": "upserts",
            "adapter": adapter,
            "keys": keys,
            "upserts": upserts,
            "deletes": deletes,
            "batch": batch,
            **found,
            "upserts_per_second": round(upserts / found["seconds"]),
            "found": _look(work, folder / "s"),
            "surroundings": surroundings(seed),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(result, f"upserts-{adapter}" if keep else None)


if __name__ == "__main__":
    main()
