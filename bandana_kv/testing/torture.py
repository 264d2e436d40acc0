"""Processes killed at random moments, and engines that fail: rows must stay right.

What the store must hold is kept outside of it. Children load, switch, roll back, update, flush,
place anew and collect garbage, and say through a pipe what they begin and what was acknowledged;
they are killed after a random time, at a random change of a file, or inside a random operation of
the engine. After every kill another process looks: the current version is the one before or the
new one, whole, every acknowledged update is there, and ``bandana_kv.verify`` finds nothing bad.
Between kills threads read, and loads, updates and re-placements go on, over engines with injected
faults: each answer is right, or a BandanaError.

Run it as ``python -m bandana_kv.testing.torture --dir DIR --seconds 60 --seed 0 --adapter lmdb
--json``. Children are forks of a process that has imported and compiled everything and holds no
engine, so that a kill costs a fraction of a second.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

import bandana_kv
from bandana_kv.disk import manifest
from bandana_kv.errors import BandanaError, StoreNotFoundError
from bandana_kv.placement import Placement
from bandana_kv.testing.faults import Faults, injecting
from bandana_kv.testing.oracle import (
    ROWS,
    TABLES,
    Candidate,
    Event,
    Expected,
    Floors,
    rows_of,
)

__all__ = ["BAD", "main", "run"]

BAD = (
    "wrong_rows",
    "lost_versions",
    "mixed_answers",
    "unexpected_exceptions",
    "failed_calls",
    "unsound_stores",
    "litter",
)
"""What must be zero. The last three: calls that failed though nothing was injected, stores in
which ``verify`` found something, and files that no load removed."""

_COUNTS = ("kills", "faults", "operations", *BAD)
_SHOWN = 20
_PATIENCE_S = 120.0
_CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "fcntl.flock")
_MOST_CHANGES, _MOST_ENGINE_OPERATIONS, _MOST_SECONDS = 120, 30, 0.25
_FAULTY_EVERY, _TIDY_EVERY = 3, 8
_READ_SECONDS, _WRITES = 0.25, 4
_UPDATES = hasattr(bandana_kv.EmbeddingStore, "update")
# What lies in a store that nobody writes to.
_OWN = {"CURRENT", "journal", "ledger.jsonl", "lock", "manifests", "segments"}

Tell = Callable[[Event], None]


class _Counters:
    """Counters that outlive the children that raise them."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * len(_COUNTS))
        self._values = np.frombuffer(self._memory, np.int64)
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._values[_COUNTS.index(name)] += count

    def as_dict(self) -> dict[str, int]:
        return dict(zip(_COUNTS, self._values.tolist(), strict=True))


class _Torture:
    """One run: the state that the store must be in, and the children that change it."""

    def __init__(self, root: Path, seed: int, adapter: str) -> None:
        self.root = root
        self.adapter = adapter
        self.rng = random.Random(seed)
        self.expected = Expected()
        self.counters = _Counters()
        self.reasons: list[str] = []
        self.acknowledged: Counter[str] = Counter()
        self._tell: Tell | None = None

    # -- the parent -------------------------------------------------------------------------

    def run_for(self, seconds: float) -> None:
        """Kill and inject, round after round."""
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            self.round_of_kill()
            self.look()
            if number % _FAULTY_EVERY == 0 and self.expected.current:
                self.child(self.round_of_faults)
                self.look()
            if number % _TIDY_EVERY == 0:
                self.child(self.tidy)
            number += 1

    def round_of_kill(self) -> None:
        """Let a child change the store until it is killed."""
        how = self.rng.choice(("time", "time", "change", "engine"))
        seconds = self.rng.uniform(0, _MOST_SECONDS) if how == "time" else None
        kill_at = self.rng.randrange(_MOST_CHANGES if how == "change" else _MOST_ENGINE_OPERATIONS)

        def work(tell: Tell) -> None:
            with contextlib.ExitStack() as stack:
                if how == "change":
                    _die_at_change(kill_at)
                elif how == "engine":
                    faults = Faults(0, scheduled={kill_at: "kill"})
                    stack.enter_context(injecting(faults))
                _Actor(self, tell).go_on()

        if self.child(work, kill_after_s=seconds) == -signal.SIGKILL:
            self.counters.add("kills")

    def child(self, work: Callable[[Tell], None], kill_after_s: float | None = None) -> int:
        """Run `work` in a child, heed what it tells, and return how it ended.

        `kill_after_s` counts from the moment that it is ready.
        """
        out, into = os.pipe()
        seed = self.rng.randrange(1 << 32)
        pid = os.fork()
        if pid == 0:
            os.close(out)
            self.rng = random.Random(seed)
            self._be_child(into, work)
        os.close(into)
        self._heed(out, pid, kill_after_s)
        os.close(out)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status not in (0, -signal.SIGKILL):
            self.bad("unexpected_exceptions", f"a child ended with {status}")
        return status

    def _be_child(self, into: int, work: Callable[[Tell], None]) -> None:
        lock = threading.Lock()

        def tell(event: Event) -> None:
            with lock:
                os.write(into, json.dumps(event).encode() + b"\n")

        self._tell = tell
        try:
            work(tell)
        except BaseException:
            self.bad("unexpected_exceptions", traceback.format_exc())
        finally:
            os._exit(0)

    def _heed(self, out: int, pid: int, kill_after_s: float | None) -> None:
        """Follow what the child tells until it has ended."""
        held = b""
        until = time.monotonic() + _PATIENCE_S
        killing = False
        while True:
            left = max(0.0, until - time.monotonic())
            if not select.select([out], [], [], left)[0]:
                os.kill(pid, signal.SIGKILL)
                if not killing:
                    self.bad("unexpected_exceptions", "a child hung")
                until, killing = time.monotonic() + _PATIENCE_S, True
            part = os.read(out, 1 << 16) if select.select([out], [], [], 0)[0] else None
            if part == b"":
                return
            *lines, held = (held + (part or b"")).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if "ready" in event and kill_after_s is not None:
                    until, killing = time.monotonic() + kill_after_s, True
                self._hear(event)

    def _hear(self, event: Event) -> None:
        if "bad" in event:
            self.bad(event["bad"], event["why"], event["count"])
        if "done" in event and self.expected.pending is not None:
            self.acknowledged[self.expected.pending["begin"]] += 1
        self.expected.hear(event)

    def bad(self, what: str, why: str, count: int = 1) -> None:
        """Count what must not be; in a child, by telling the parent."""
        if self._tell is not None:
            self._tell({"bad": what, "why": why[-600:], "count": count})
            return
        self.counters.add(what, count)
        shown = sum(reason.startswith(what) for reason in self.reasons)
        if count and shown < _SHOWN:
            self.reasons.append(f"{what}: {why}")

    def look(self) -> None:
        """Look at the store in a process of its own, and take what it holds as what happened."""
        self.child(self.check)

    # -- children ---------------------------------------------------------------------------

    def check(self, tell: Tell) -> None:
        """Compare the store with what it must hold; settle what was pending."""
        candidates = self.expected.candidates()
        try:
            current = manifest.current_number(self.root)
            fitting = [each for each in candidates if _fits(each, current, self.expected)]
            if not fitting:
                allowed = [each.version for each in candidates]
                self.bad("lost_versions", f"current is {current}, not one of {allowed}")
                fitting = candidates
            found = _everything(self.root)
            fits = self._judge(fitting, found)
            tell({"done": current} if fits.happened else {"failed": ""})
            self._look_for_lost(fits, current)
            report = bandana_kv.verify(self.root)
            if not report.sound:
                self.bad("unsound_stores", str(report.findings[:3]))
        except StoreNotFoundError as error:
            if self.expected.current:
                self.bad("lost_versions", str(error))
            tell({"failed": ""})
        except BandanaError as error:
            self.bad("lost_versions", f"{type(error).__name__}: {error}")
            tell({"failed": ""})

    def _judge(self, candidates: list[Candidate], found: dict[str, np.ndarray]) -> Candidate:
        """Return the state that the rows are of; count what is wrong if they are of none."""
        wrong: list[int] = []
        for each in candidates:
            sound = self.expected.tables_of(each)
            if found.keys() != sound.keys():
                wrong.append(ROWS * len(TABLES))
            else:
                differ = (found[table] != sound[table] for table in sound)
                wrong.append(sum(int(rows.any(axis=1).sum()) for rows in differ))
        # What is seen to have happened did.
        best = min(range(len(wrong)), key=lambda at: (wrong[at], not candidates[at].happened))
        if wrong[best]:
            asked = dict.fromkeys(found, np.arange(ROWS))
            mixed = self.expected.judge(asked, found, {})[1]
            self.bad("mixed_answers", "after a kill", mixed)
            why = f"{wrong[best]} rows after {self.expected.pending}"
            self.bad("wrong_rows", why, wrong[best])
        return candidates[best]

    def _look_for_lost(self, state: Candidate, current: int) -> None:
        """Check that the versions are there that a load had to leave."""
        pending = self.expected.pending
        wanted = set(self.expected.held)
        if state.happened and pending is not None:
            if pending["begin"] == "load":
                wanted = {current}
            elif pending["begin"] == "place":
                wanted = self.expected.held_after(pending) | {current}
        there = {version.number for version in bandana_kv.versions(self.root)}
        # One that was rolled back from, and stayed because it was read, takes another's place.
        others = sum(number <= current for number in there - wanted)
        for number in sorted(wanted - there)[others:]:
            self.bad("lost_versions", f"version {number} is gone, there are {sorted(there)}")

    def tidy(self, tell: Tell) -> None:
        """Load once more; what dead processes left behind must be gone."""
        if not _Actor(self, tell, readers=0).load():
            return
        there = {path.name for path in self.root.iterdir()}
        # What an engine left in a segment that is in use goes when that is next written to.
        litter = [str(path) for path in self.root.glob("manifests/*.new")] + sorted(there - _OWN)
        kept = {f"{version.number:06d}.json" for version in bandana_kv.versions(self.root)}
        litter += sorted({path.name for path in (self.root / "manifests").iterdir()} - kept)
        used = {
            f"{segment:06d}"
            for version in bandana_kv.versions(self.root)
            for segment in manifest.read_version(self.root, version.number).directories
        }
        litter += sorted({path.name for path in (self.root / "segments").iterdir()} - used)
        if litter:
            self.bad("litter", ", ".join(litter), len(litter))

    def round_of_faults(self, tell: Tell) -> None:
        """Read with many threads, then change the store, over engines that fail."""
        faults = Faults(self.rng.randrange(1 << 32))
        with injecting(faults):
            self._read_faulty(faults)
            faults.probability = self.rng.choice((0.02, 0.1, 0.3))
            actor = _Actor(self, tell, readers=4, failing=True)
            with contextlib.suppress(BandanaError), actor.opened():
                for _ in range(_WRITES):
                    if not actor.step():
                        break
        self.counters.add("faults", faults.injected.total())

    def _read_faulty(self, faults: Faults) -> None:
        """Ask two stores, one of them with a fallback, with eight threads."""
        deadline_ms = self.rng.choice((None, None, 20.0))
        with contextlib.ExitStack() as stack:
            for fallback, deadline in ((None, None), (self._source, deadline_ms)):
                cache_bytes = self.rng.choice((0, 30_000))
                store = bandana_kv.open(
                    self.root, cache_bytes, readers=8, fallback=fallback, deadline_ms=deadline
                )
                stack.enter_context(store)
                stack.enter_context(_Readers(self, store, 4, failing=True))
            faults.probability = self.rng.choice((0.1, 0.3, 0.6))
            time.sleep(_READ_SECONDS)
            faults.probability = 0.0

    def _source(self, table: str, ids: np.ndarray) -> np.ndarray:
        """Answer as the store must."""
        stamp = self.expected.stamps[table]
        return rows_of(table, stamp, ids, self.expected.of(table, stamp)[ids])


def _fits(candidate: Candidate, current: int, expected: Expected) -> bool:
    if candidate.version is None:
        # A load that died may have removed a version that was rolled back from, and with it
        # the memory of its number.
        return current > expected.current
    return candidate.version == current


def _everything(root: Path) -> dict[str, np.ndarray]:
    with bandana_kv.open(root, cache_bytes=30_000) as store:
        return {table: store.multi_get(table, np.arange(ROWS)) for table in store.tables}


def _die_at_change(number: int) -> None:
    """Kill this process just before its `number`-th change of a file or directory."""
    seen = 0

    def watch(event: str, _: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _CHANGES:
            seen += 1
            if seen > number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


class _Readers:
    """Threads that ask a store for rows of one and of both tables, and judge the answers.

    `failing` says that calls may raise a BandanaError.
    """

    def __init__(
        self, torture: _Torture, store: bandana_kv.EmbeddingStore, threads: int, *, failing: bool
    ) -> None:
        self._torture = torture
        self._store = store
        self._failing = failing
        self._over = threading.Event()
        seeds = [torture.rng.randrange(1 << 32) for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in seeds
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self._over.is_set():
            self._torture.counters.add("operations")
            try:
                self._ask_once(rng)
            except BandanaError as error:
                if not self._failing:
                    self._torture.bad("failed_calls", f"{type(error).__name__}: {error}")
            except Exception:
                self._torture.bad("unexpected_exceptions", traceback.format_exc())

    def _ask_once(self, rng: np.random.Generator) -> None:
        expected = self._torture.expected
        tables = TABLES if rng.random() < 0.7 else (TABLES[rng.integers(2)],)
        asked = {table: rng.integers(0, ROWS, rng.integers(1, 30)) for table in tables}
        floors = expected.floors()
        answers = self._store.multi_get(asked)
        wrong, mixed = expected.judge(asked, answers, floors)
        if wrong or mixed:
            why = self._why(asked, answers, floors)
            self._torture.bad("wrong_rows", why, wrong)
            self._torture.bad("mixed_answers", why, mixed)

    def _why(
        self, asked: dict[str, np.ndarray], answers: dict[str, np.ndarray], floors: Floors
    ) -> str:
        """Return what was answered, and what was acknowledged before."""
        said = [f"asked by a thread, of {'a failing' if self._failing else 'a sound'} engine:"]
        for table, rows in answers.items():
            wrong = self._torture.expected.wrong_rows(table, asked[table], rows, floors)
            for at in np.flatnonzero(wrong)[:3]:
                stamp = int(rows[at, 0])
                floor = floors.get((table, stamp), {asked[table][at]: None})[asked[table][at]]
                said.append(f"{table} {rows[at, :5].tolist()} for id {asked[table][at]} >= {floor}")
            said.append(f"{table} has rows of loads {sorted(set(rows[:, 0].tolist()))}")
        return "; ".join(said)


class _Actor:
    """Changes the store at random, and says so before and after."""

    def __init__(
        self, torture: _Torture, tell: Tell, readers: int = 2, *, failing: bool = False
    ) -> None:
        self._torture = torture
        self._root = torture.root
        self._rng = torture.rng
        self._expected = torture.expected
        self._tell = tell
        self._readers = readers
        self._failing = failing
        self._store: bandana_kv.EmbeddingStore | None = None

    def go_on(self) -> None:
        """Change the store until killed."""
        if self._rng.random() < 0.2 or not self._expected.current:
            self._tell({"ready": ""})
        while not self._expected.current:
            self.load()
        with self.opened():
            self._tell({"ready": ""})
            while True:
                self.step()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Serve the store with some threads reading meanwhile."""
        cache_bytes = self._rng.choice((0, 30_000, 1 << 20))
        with (
            bandana_kv.open(self._root, cache_bytes, readers=4) as self._store,
            _Readers(self._torture, self._store, self._readers, failing=self._failing),
        ):
            yield

    def step(self) -> bool:
        """Do one thing; False: whether it happened is not known."""
        self._torture.counters.add("operations")
        kinds = ["load", "rollback"]
        if _UPDATES:
            kinds += ["update", "update", "update", "flush", "place", "place"]
        match self._rng.choice(kinds):
            case "load":
                self.load()
                self._refresh()
            case "rollback":
                self._roll_back()
                self._refresh()
            case "update":
                return self._update()
            case "flush":
                self._doing({"begin": "flush"}, self._flush)
            case "place":
                self._place()
        return True

    def load(self) -> bool:
        """Load one or both tables, as a new version."""
        stamp = self._expected.stamp + 1
        both = not self._expected.current or self._rng.random() < 0.5
        tables = TABLES if both else (self._rng.choice(TABLES),)
        keep = self._rng.choice((1, 2, 2))
        ids, zeros = np.arange(ROWS), np.zeros(ROWS, np.int32)
        rows = {table: rows_of(table, stamp, ids, zeros) for table in tables}
        event = {"begin": "load", "stamp": stamp, "tables": tables, "keep": keep}
        return self._doing(
            event,
            lambda: bandana_kv.load(
                self._root,
                rows,
                adapter=self._torture.adapter,
                placement="shuffled",
                seed=stamp,
                keep=keep,
            ),
        )

    def _roll_back(self) -> None:
        kept = [version.number for version in bandana_kv.versions(self._root)]
        others = sorted(set(kept) & set(self._expected.versions) - {self._expected.current})
        if others:
            version = self._rng.choice(others)
            event = {"begin": "rollback", "version": version}
            self._doing(event, lambda: bandana_kv.rollback(self._root, version))

    def _refresh(self) -> None:
        assert self._store is not None
        try:
            self._store.refresh(warm_seconds=self._rng.choice((0.0, 0.1)))
        except BandanaError as error:
            self._refused("refresh", error)

    def _update(self) -> bool:
        store: Any = self._store
        if store.version != self._expected.current:
            return True
        table = self._rng.choice(TABLES)
        ids = self._rng.sample(range(ROWS), self._rng.choice((1, 1, 5, 40)))
        sequence, stamp = self._expected.sequence + 1, self._expected.stamps[table]
        rows = rows_of(table, stamp, np.array(ids), np.full(len(ids), sequence, np.int32))
        event = {
            "begin": "update",
            "table": table,
            "stamp": stamp,
            "ids": ids,
            "sequence": sequence,
        }
        self._say(event)
        try:
            store.update(table, ids, rows)
        except BandanaError as error:
            # It may have been written before that which failed; whoever looks next will see.
            self._refused("update", error)
            return False
        self._say({"done": self._expected.current})
        return True

    def _place(self) -> None:
        """Let some rows of a table change their places, in few blocks or in all."""
        store: Any = self._store
        if store.version != self._expected.current:
            return
        table = self._rng.choice(TABLES)
        served = store.placement(table)
        new = self._shuffled(served)
        moves = not np.array_equal(new.position_of_id, served.position_of_id)
        event = {"begin": "place", "table": table, "moves": moves}
        self._doing(event, lambda: store.place_anew(table, new).version)

    def _shuffled(self, served: Placement) -> Placement:
        few = self._rng.sample(range(ROWS), self._rng.choice((0, 3, 30, ROWS)))
        positions = served.position_of_id.copy()
        positions[few] = positions[self._rng.sample(few, len(few))]
        return Placement(positions, served.rows_per_block, "shuffled")

    def _flush(self) -> int:
        store: Any = self._store
        store.flush()
        return self._expected.current

    def _doing(self, event: Event, work: Callable[[], int]) -> bool:
        """Do what either happens or raises; say how it went."""
        self._say(event)
        try:
            version = work()
        except BandanaError as error:
            self._say({"failed": str(error)})
            self._refused(event["begin"], error)
            return False
        self._say({"done": version})
        return True

    def _say(self, event: Event) -> None:
        self._expected.hear(event)
        self._tell(event)

    def _refused(self, what: str, error: BandanaError) -> None:
        if not self._failing:
            self._torture.bad("failed_calls", f"{what}: {type(error).__name__}: {error}")


def _warm_up(adapter: str) -> None:
    """Import and compile all that children need, without an engine that has threads."""
    bandana_kv.adapters.adapter_class(adapter)
    with tempfile.TemporaryDirectory(prefix="bandana-kv-torture-") as directory:
        if adapter != "blockfile":
            adapter = "memory"
        torture = _Torture(Path(directory), 0, adapter)
        actor = _Actor(torture, lambda _: None, readers=1)
        actor.load()
        with actor.opened():
            actor.load()
            actor._refresh()
            if _UPDATES:
                actor._update()
                actor._flush()
                actor._place()
        _everything(torture.root)
        bandana_kv.verify(torture.root)


def run(directory: Path, seconds: float, seed: int, adapter: str) -> dict[str, Any]:
    """Torture a store for some time.

    Parameters
    ----------
    directory
        Where to put it; what is in there is removed at the end if nothing was wrong.
    seconds
        How long, without the time to get ready.
    seed
        Of what is done and injected; when a child dies also depends on the machine.
    adapter
        The engine.

    Returns
    -------
    dict
        ``kills``, ``faults``, ``operations``, and what must be 0, see :data:`BAD`;
        ``acknowledged`` by kind; up to 20 ``reasons``.
    """
    logging.getLogger("bandana_kv").setLevel(logging.CRITICAL)
    _warm_up(adapter)
    directory.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f"{adapter}-", dir=directory))
    torture = _Torture(root, seed, adapter)
    begun = time.monotonic()
    torture.run_for(seconds)
    found = torture.counters.as_dict()
    if not any(found[name] for name in BAD):
        shutil.rmtree(root)
    return {
        "adapter": adapter,
        "seed": seed,
        "seconds": round(time.monotonic() - begun, 1),
        **found,
        "acknowledged": dict(torture.acknowledged),
        "reasons": torture.reasons,
    }


@click.command()
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path))
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--seed", default=0, show_default=True)
@click.option("--adapter", default="lmdb", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def main(directory: Path, seconds: float, seed: int, adapter: str, as_json: bool) -> None:
    """Kill and damage a store for some time; the status is 1 if anything was wrong."""
    found = run(directory, seconds, seed, adapter)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for reason in found["reasons"]:
            click.echo(reason)
        click.echo(", ".join(f"{found[name]} {name.replace('_', ' ')}" for name in _COUNTS))
    sys.exit(1 if any(found[name] for name in BAD) else 0)


if __name__ == "__main__":
    main()
