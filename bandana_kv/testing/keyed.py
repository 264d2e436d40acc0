"""Processes killed while keys come and go: every acknowledged change must be there, and no other.

Which keys there are, and with which rows, is kept outside of the store. Children add, replace and
delete rows by key, flush, place anew, and load what there is as a new version, while threads look
keys up; they say through a pipe what they begin and what was acknowledged, and are killed at a
random time, or at a random change of a file. After every kill another process looks every key up.

Run it as ``python -m bandana_kv.testing.keyed --dir DIR --seconds 60 --seed 0 --adapter lmdb
--json``.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bandana_kv
from bandana_kv.errors import BandanaError
from bandana_kv.placement import Placement
from bandana_kv.rows.given import Rows
from bandana_kv.testing.oracle import Event
from bandana_kv.testing.torture import Torture, command, die_at_change, run_each
from bandana_kv.testing.tortured import Tell

__all__ = ["Keyed", "KeyedActor", "main", "run"]

TABLES = ("numbers", "words")
KEYS, DIM = 600, 48
_FIRST = KEYS // 2
_ABSENT = -1
# What is done, as often as it stands here.
_KINDS = (*("upsert",) * 4, *("delete",) * 2, "flush", "place", "load")
_MOST_CHANGES, _MOST_SECONDS = 60, 0.4

Stamps = NDArray[np.int64]


def keys_of(table: str, numbers: NDArray[np.int64]) -> Any:
    """Return the keys that numbers (n,) stand for in a table."""
    if table == "words":
        return [f"key {number}" for number in numbers.tolist()]
    return numbers * 0x9E3779B97F4A7C1 - (1 << 62)


def rows_of(table: str, numbers: NDArray[np.int64], stamps: Stamps) -> NDArray[np.int32]:
    """Return the rows (n, DIM) of keys, as changes `stamps` (n,) made them."""
    rows = np.empty((numbers.size, DIM), np.int32)
    rows[:] = (numbers * 977 + stamps * 31 + TABLES.index(table))[:, None] * np.arange(1, DIM + 1)
    rows[:, 0], rows[:, 1] = numbers, stamps
    return rows


class _Expected:
    """Which change each key was last in, and whether it is there."""

    def __init__(self) -> None:
        self.stamps = {table: np.full(KEYS, _ABSENT, np.int64) for table in TABLES}
        # The last change that a key was in, and the last that took it away, begun at least.
        self.last = {table: np.zeros(KEYS, np.int64) for table in TABLES}
        self.gone = {table: np.zeros(KEYS, np.int64) for table in TABLES}
        self.stamp = 0
        self.current = 0
        self.pending: Event | None = None

    def hear(self, event: Event) -> None:
        """Follow one event: something begins (``begin``), is ``done``, or ``failed``."""
        if "begin" in event:
            self.pending = event
            self.stamp = max(self.stamp, event.get("stamp", 0))
            if event["begin"] == "delete":
                self.gone[event["table"]][event["keys"]] = event["stamp"]
        elif "done" in event:
            self.current = 1
            if self.pending is not None:
                self.apply(self.stamps, self.pending)
                self.pending = None
        elif "failed" in event:
            self.pending = None

    def apply(self, stamps: dict[str, Stamps], event: Event) -> None:
        """Change `stamps` as an event does."""
        if event["begin"] == "begin":
            for table in TABLES:
                stamps[table][:_FIRST] = 0
        elif event["begin"] in ("upsert", "delete"):
            there = event["begin"] == "upsert"
            self.last[event["table"]][event["keys"]] = event["stamp"]
            stamps[event["table"]][event["keys"]] = event["stamp"] if there else _ABSENT

    def candidates(self) -> list[tuple[bool, dict[str, Stamps]]]:
        """Return what the store may hold, and whether the pending change happened then."""
        found = [(False, self.stamps)]
        if self.pending is not None:
            after = {table: held.copy() for table, held in self.stamps.items()}
            self.apply(after, self.pending)
            found.append((True, after))
        return found


class Keyed(Torture):
    """One run."""

    expected: _Expected  # type: ignore[assignment]

    def __init__(self, root: Path, seed: int, adapter: str) -> None:
        super().__init__(root, seed, adapter)
        self.expected = _Expected()

    def run_for(self, seconds: float) -> None:
        """Kill and look, round after round."""
        until = time.monotonic() + seconds
        self.child(lambda tell: KeyedActor(self, tell).begin())
        while time.monotonic() < until:
            self.round_of_kill()
            self.look()

    def round_of_kill(self) -> None:
        """Let a child change the store until it is killed."""
        by_time = self.rng.random() < 0.5
        seconds = self.rng.uniform(0, _MOST_SECONDS) if by_time else None
        kill_at = self.rng.randrange(_MOST_CHANGES)

        def work(tell: Tell) -> None:
            if not by_time:
                die_at_change(kill_at)
            KeyedActor(self, tell).go_on()

        if self.child(work, kill_after_s=seconds) == -signal.SIGKILL:
            self.counters.add("kills")

    def look(self) -> None:
        """Look every key up in a process of its own."""
        self.child(lambda tell: _check(self, tell))


def _check(keyed: Keyed, tell: Tell) -> None:
    """Compare all keys with what must be there; settle what was pending."""
    try:
        with bandana_kv.open(keyed.root, 0) as store:
            held = {table: _held(keyed, store, table) for table in TABLES}
        report = bandana_kv.verify(keyed.root)
    except BandanaError as error:
        keyed.bad("lost_versions", f"{type(error).__name__}: {error}")
        tell({"failed": ""})
        return
    if not report.sound:
        keyed.bad("unsound_stores", str(report.findings[:3]))
    wrong = [
        (sum(int((held[table] != stamps[table]).sum()) for table in TABLES), not happened)
        for happened, stamps in keyed.expected.candidates()
    ]
    differ, not_happened = min(wrong)
    if differ:
        why = f"{differ} keys after {keyed.expected.pending}"
        keyed.bad("wrong_rows", why, differ)
    tell({"failed": ""} if not_happened else {"done": 1})


def _held(keyed: Keyed, store: bandana_kv.EmbeddingStore, table: str) -> Stamps:
    """Return what change each key's row is of, -1 for those that are not there."""
    numbers = np.arange(KEYS)
    rows, there = store.multi_get(table, keys_of(table, numbers), missing="mask")
    stamps = np.where(there, rows[:, 1], _ABSENT).astype(np.int64)
    wrong = int((rows[there] != rows_of(table, numbers, stamps)[there]).any(axis=1).sum())
    if wrong:
        keyed.bad("wrong_rows", f"{wrong} rows of {table} are of no change", wrong)
    if store.shape(table)[0] != int(there.sum()):
        keyed.bad("wrong_rows", f"{table} has {store.shape(table)[0]} rows, not {there.sum()}")
    return stamps


class KeyedActor:
    """Changes the store at random, and says so before and after."""

    def __init__(self, keyed: Keyed, tell: Tell) -> None:
        self._keyed, self._tell = keyed, tell
        self._rng = keyed.rng
        self._expected = keyed.expected

    def begin(self) -> None:
        """Load the first keys."""
        self._do({"begin": "begin"}, self._load)

    def go_on(self) -> None:
        """Change the store until killed."""
        with self._opened() as store:
            self._tell({"ready": ""})
            while True:
                self.step(store)

    def do_each(self) -> None:
        """Do everything once."""
        self.begin()
        with self._opened() as store:
            for what in ("upsert", "delete", "flush", "place", "load"):
                self.step(store, what)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[bandana_kv.EmbeddingStore]:
        """Serve the store with two threads reading meanwhile."""
        ended = threading.Event()
        with bandana_kv.open(self._keyed.root, self._rng.choice((0, 1 << 16)), readers=2) as store:
            threads = [
                threading.Thread(target=self._read, args=(store, seed, ended)) for seed in (1, 2)
            ]
            for thread in threads:
                thread.start()
            try:
                yield store
            finally:
                ended.set()
                for thread in threads:
                    thread.join()

    def step(self, store: bandana_kv.EmbeddingStore, what: str = "") -> None:
        """Do one thing."""
        self._keyed.counters.add("operations")
        kinds = (
            "upsert",
            "upsert",
            "upsert",
            "upsert",
            "delete",
            "delete",
            "flush",
            "place",
            "load",
        )
        what = what or self._rng.choice(kinds)
        table = self._rng.choice(TABLES)
        if what in ("upsert", "delete"):
            self._change(store, what, table)
        elif what == "flush":
            self._do({"begin": what}, store.flush)
        elif what == "place":
            served = store.placement(table)
            few = np.array(self._rng.sample(range(served.rows), 40))
            positions = served.position_of_id.copy()
            positions[few] = positions[np.roll(few, 1)]
            placement = Placement(positions, served.rows_per_block, "shuffled")
            self._do({"begin": what}, lambda: store.place_anew(table, placement))
        else:
            self._do({"begin": what}, self._load)
            store.refresh()

    def _change(self, store: bandana_kv.EmbeddingStore, what: str, table: str) -> None:
        numbers = np.array(self._rng.sample(range(KEYS), self._rng.choice((1, 1, 5, 60))))
        stamp = self._expected.stamp + 1
        event = {"begin": what, "table": table, "keys": numbers.tolist(), "stamp": stamp}
        if what == "upsert":
            rows = rows_of(table, numbers, np.full(numbers.size, stamp))
            self._do(event, lambda: store.upsert(table, keys_of(table, numbers), rows))
        else:
            self._do(event, lambda: store.delete(table, keys_of(table, numbers)))

    def _load(self) -> None:
        """Load the keys that are there, with their rows: the same content in a new version."""
        tables = {}
        for table, held in self._expected.stamps.items():
            stamps = held.copy()
            if not self._expected.current:
                stamps[:_FIRST] = 0
            numbers = np.flatnonzero(stamps != _ABSENT)
            rows = rows_of(table, numbers, stamps[numbers])
            tables[table] = Rows(rows, keys=keys_of(table, numbers))
        spare = self._rng.choice((0.0, 0.1, 0.5))
        bandana_kv.load(self._keyed.root, tables, adapter=self._keyed.adapter, spare=spare)

    def _do(self, event: Event, work: Any) -> None:
        self._say(event)
        try:
            work()
        except BandanaError as error:
            self._say({"failed": str(error)})
            self._keyed.bad("failed_calls", f"{event['begin']}: {type(error).__name__}: {error}")
        else:
            self._say({"done": 1})

    def _say(self, event: Event) -> None:
        self._expected.hear(event)
        self._tell(event)

    def _read(self, store: bandana_kv.EmbeddingStore, seed: int, ended: threading.Event) -> None:
        """Look keys up, and compare with what was acknowledged before."""
        rng = np.random.default_rng(seed)
        try:
            while not ended.is_set():
                table = str(rng.choice(TABLES))
                numbers = rng.choice(KEYS, int(rng.choice((1, 8, 150))), replace=False)
                self._judge(store, table, numbers)
        except BaseException as error:
            self._keyed.bad("unexpected_exceptions", f"a reader: {type(error).__name__}: {error}")

    def _judge(
        self, store: bandana_kv.EmbeddingStore, table: str, numbers: NDArray[np.int64]
    ) -> None:
        expected = self._expected
        last = expected.last[table][numbers]  # before what it left: a later one is as good
        before = expected.stamps[table][numbers]
        rows, there = store.multi_get(table, keys_of(table, numbers), missing="mask")
        stamps = rows[:, 1].astype(np.int64)
        wrong = there & (rows != rows_of(table, numbers, stamps)).any(axis=1)
        wrong |= there & (stamps < np.where(before == _ABSENT, last + 1, before))
        wrong |= ~there & (before != _ABSENT) & (expected.gone[table][numbers] <= before)
        if wrong.any():
            at = int(wrong.argmax())
            why = (
                f"{table} {numbers[at]}: {stamps[at] if there[at] else 'missing'}, was {before[at]}"
            )
            self._keyed.bad("wrong_rows", why, int(wrong.sum()))


def _warm_up(adapter: str) -> None:
    """Import and compile all that children need, without an engine that has threads."""
    bandana_kv.adapters.adapter_class(adapter)
    with tempfile.TemporaryDirectory(prefix="bandana-kv-keyed-") as directory:
        keyed = Keyed(Path(directory) / "store", 0, "memory" if adapter != "blockfile" else adapter)
        KeyedActor(keyed, lambda _: None).do_each()


def run(directory: Path, seconds: float, seed: int, adapter: str) -> dict[str, Any]:
    """Change keys of a store, and kill who does, for some time.

    Parameters and what is returned are those of :func:`bandana_kv.testing.torture.run`.
    """
    return run_each(Keyed, _warm_up, directory, seconds, seed, adapter)


main = command(run, "Let keys come and go, and kill who does it; the status is 1 if any was wrong.")

if __name__ == "__main__":
    main()
