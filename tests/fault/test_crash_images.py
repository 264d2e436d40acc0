"""The power is cut at any point of what changes a store: what is left is the old store or the new.

Every write, rename and sync below a store is seen while it is loaded, updated, flushed, placed
anew, rolled back or migrated into; :mod:`bandana_kv.testing.crashes` says what a power cut may
leave at each point. Such images of the directory are opened: all rows are those of the last call
that had returned, or all those of the call under way; and the store takes updates, flushes, loads
and new placements as ever.

Covered in full are manifests, ``CURRENT``, arrays, the journal, the ledger, what a migration stages
and the engine ``blockfile``. LMDB and RocksDB write without Python: what files of theirs hold when
a call into them has returned is taken for synced, and for RocksDB, which syncs its directories, the
names too. Not covered are a power cut in the midst of their calls; several processes or threads
that write at once; and a device that says of a sync what is not true.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters import rows as adapter_rows
from bandana_kv.adapters.blockfile_files import BlockFile
from bandana_kv.adapters.rows import open_rows
from bandana_kv.disk.journal import Journal
from bandana_kv.errors import BandanaError, StoreNotFoundError
from bandana_kv.migration import migrate, staging
from bandana_kv.placement import Placement
from bandana_kv.serve.updates import Updates
from bandana_kv.system import durable
from bandana_kv.testing.crashes import CUTS, Cut, Image, Point, Trace, image_of, write_image

SEED = 0
State = Mapping[str, np.ndarray] | None
"""Rows by table; None: no store."""
RNG = np.random.default_rng(SEED)
FIRST = {"t": RNG.random((300, 16), np.float32), "u": RNG.random((40, 4), np.float32)}
SECOND = {name: rows + 1 for name, rows in FIRST.items()}
THIRD = {name: rows + 2 for name, rows in FIRST.items()}
# Some in one sector of the journal, some across many pages of it.
FEW, MANY = np.arange(5, 8), np.arange(0, 300, 2)

# How many images are looked at, by engine; of how many first cuts or kills, and after each; and of
# migrations. All there are would take some minutes.
MOST = {"blockfile": 10, "lmdb": 10, "rocksdb": 2}
FIRSTS, SECONDS = 3, 2
OF_MIGRATIONS = 40
LEAST, SHOWN = Cut(0, 0), Cut(1, 1)


def updated(state: State, table: str, ids: np.ndarray, by: float) -> dict[str, np.ndarray]:
    assert state is not None
    rows = state[table].copy()
    rows[ids] += np.float32(by)
    return {**state, table: rows}


def is_same(left: State, right: State) -> bool:
    if left is None or right is None:
        return left is right
    return left.keys() == right.keys() and all(np.array_equal(left[t], right[t]) for t in left)


# -- what is done ------------------------------------------------------------------------------


@dataclass
class Work:
    """A store that changes under a trace, and every state of it that was acknowledged."""

    path: Path
    engine: str
    states: list[State]
    trace: Trace
    before: Sequence[State] = ()
    """What it may be as well until the first acknowledgement."""

    @property
    def state(self) -> State:
        return self.states[-1]

    def load(self, tables: Mapping[str, np.ndarray], **options: Any) -> None:
        bandana_kv.load(self.path, tables, adapter=self.engine, **options)
        self.now({**(self.state or {}), **tables})

    def update(
        self, store: bandana_kv.EmbeddingStore, table: str, ids: np.ndarray, by: float
    ) -> None:
        new = updated(self.state, table, ids, by)
        store.update(table, ids, new[table][ids])
        self.now(new)

    def flush(self, store: bandana_kv.EmbeddingStore) -> None:
        store.flush()
        self.now(self.state)

    def place_anew(self, store: bandana_kv.EmbeddingStore, seed: int) -> None:
        place_anew(store, seed)
        self.now(self.state)

    def now(self, state: State) -> None:
        """Note that a call has returned that made this of the store."""
        self.states.append(state)
        self.trace.acknowledge()

    def opened(self) -> contextlib.AbstractContextManager[bandana_kv.EmbeddingStore]:
        return bandana_kv.open(self.path, cache_bytes=0)


def place_anew(store: bandana_kv.EmbeddingStore, seed: int) -> None:
    served = store.placement("t")
    order = np.random.default_rng(seed).permutation(served.position_of_id)
    store.place_anew("t", Placement(order, served.rows_per_block, "given"))


def first_load(work: Work) -> None:
    work.load(FIRST)


def load(work: Work) -> None:
    work.load({"t": THIRD["t"]})
    work.load(THIRD, keep=1)


def failed_load(work: Work) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        work.load(THIRD, check=refuse)
    work.now(work.state)
    work.load(THIRD)


def update(work: Work) -> None:
    with work.opened() as store:
        work.update(store, "t", FEW, 10)
        work.update(store, "t", MANY, 20)
        work.update(store, "u", FEW, 30)
        work.update(store, "t", FEW, 40)
    with work.opened() as store:
        work.update(store, "t", FEW, 50)


def flush(work: Work) -> None:
    with work.opened() as store:
        work.update(store, "t", MANY, 10)
        work.update(store, "u", FEW, 20)
        work.flush(store)
        work.update(store, "t", FEW, 30)
        work.flush(store)


def place(work: Work) -> None:
    with work.opened() as store:
        work.update(store, "t", FEW, 10)
        work.place_anew(store, 1)
        work.update(store, "t", MANY, 20)
        work.place_anew(store, 2)
        work.flush(store)


def rollback(work: Work) -> None:
    with work.opened() as store:
        work.update(store, "t", MANY, 10)
    newer = work.state
    bandana_kv.rollback(work.path)
    work.now(FIRST)
    bandana_kv.rollback(work.path, 2)
    work.now(newer)
    bandana_kv.rollback(work.path)
    work.now(FIRST)
    work.load({"u": THIRD["u"]})


WORK: dict[str, Callable[[Work], None]] = {
    each.__name__: each for each in (first_load, load, failed_load, update, flush, place, rollback)
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return by engine a store with two versions."""
    made = {}
    for engine in ("blockfile", "lmdb", "rocksdb"):
        made[engine] = tmp_path_factory.mktemp("bases") / engine
        for tables in (FIRST, SECOND):
            bandana_kv.load(made[engine] / "s", tables, adapter=engine)
    return made


def traced(
    root: Path,
    engine: str,
    state: State,
    what: Callable[[Work], None],
    killed_at: Point | None = None,
    before: Sequence[State] = (),
) -> Work:
    """Do something to the store that lies at `root`/s, or to none, and see all that it writes."""
    trace = Trace(root, *engine_files(engine), killed_at)
    work = Work(root / "s", engine, [state], trace, before)
    with work.trace.running():
        what(work)
    return work


def engine_files(engine: str) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
    """Return what says of a path whether the engine syncs it, and whether it is no state at all."""

    def syncs_itself(path: str) -> bool:
        if engine == "lmdb":
            return path.endswith("/data.mdb")
        return engine == "rocksdb" and "/blocks-" in path

    def ignores(path: str) -> bool:
        return path.rpartition("/")[2].startswith(("lock.mdb", "LOCK", "LOG"))

    return syncs_itself, ignores


# -- what is left -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """An image, and what the store may be by it."""

    image: Image = field(repr=False)
    allowed: Sequence[State] = field(repr=False)
    seed: tuple[int, ...]
    """By which it was drawn: of all, of the point, of the cut."""


def images(work: Work, most: int) -> list[Left]:
    """Return different images: what is left at least when a call has returned, and a sample of so
    many of all others, of every point.
    """
    least: dict[Any, Left] = {}
    others: dict[Any, Left] = {}
    returned = -1
    for number, point in enumerate(work.trace.points):
        for which, cut in enumerate(CUTS):
            seed = (SEED, number, which)
            image = image_of(point.disk, cut, seed)
            key = point.acknowledged, frozenset(image.items())
            found = least if cut == LEAST and point.acknowledged > returned else others
            found.setdefault(key, Left(image, allowed(work, point), seed))
        returned = point.acknowledged
    different = [left for key, left in others.items() if key not in least]
    chosen = np.random.default_rng(SEED).permutation(len(different))[:most]
    print(
        f"seed {SEED}: {len(work.trace.points)} points, {len(least)} images of what is left at "
        f"least, {len(chosen)} of {len(different)} others"
    )
    return [*least.values(), *(different[each] for each in chosen)]


def allowed(work: Work, point: Point) -> Sequence[State]:
    """Return the last state that was acknowledged, and that of the call under way."""
    last = point.acknowledged
    return [*work.states[last : last + 2], *(work.before if last == 0 else ())]


def opened(path: Path) -> bandana_kv.EmbeddingStore:
    return bandana_kv.open(path, cache_bytes=0)


def rows_of(store: bandana_kv.EmbeddingStore) -> State:
    return {name: store.multi_get(name, np.arange(len(FIRST[name]))) for name in store.tables}


def check(path: Path, left: Left, engine: str) -> None:
    """See that the store at `path` is what it may be, and can be worked with."""
    allowed = left.allowed
    if not (path / "CURRENT").exists():
        assert any(each is None for each in allowed), "the store is gone"
        with pytest.raises(StoreNotFoundError):
            opened(path)
        bandana_kv.load(path, FIRST, adapter=engine)
        allowed = [FIRST]
    with opened(path) as store:
        found = rows_of(store)
        assert any(is_same(found, each) for each in allowed), "rows are of no state there was"
        found = updates_are_taken(store, found)
    with opened(path) as store:
        assert is_same(rows_of(store), found), "an update after the power cut is lost"
        found = AFTERWARDS[sum(left.seed) % len(AFTERWARDS)](store, path, found, engine)
    with opened(path) as store:
        assert is_same(rows_of(store), found), "what was done after the power cut is lost"


def updates_are_taken(store: bandana_kv.EmbeddingStore, found: State) -> State:
    new = updated(updated(found, "t", FEW, 3), "u", FEW, 4)
    for name, rows in new.items():
        store.update(name, FEW, rows[FEW])
    return new


def then_verify(store: bandana_kv.EmbeddingStore, path: Path, found: State, engine: str) -> State:
    assert bandana_kv.verify(path).sound
    return found


def then_flush(store: bandana_kv.EmbeddingStore, path: Path, found: State, engine: str) -> State:
    store.flush()
    return found


def then_place(store: bandana_kv.EmbeddingStore, path: Path, found: State, engine: str) -> State:
    place_anew(store, 9)
    store.flush()
    return found


def then_load(store: bandana_kv.EmbeddingStore, path: Path, found: State, engine: str) -> State:
    assert found is not None
    bandana_kv.load(path, {"t": THIRD["t"] + 5}, adapter=engine)
    return {**found, "t": THIRD["t"] + 5}


Look = Callable[[Path, Left, str], None]
AFTERWARDS = [then_flush, then_load, then_place, then_verify]


def no_sync(*_: object) -> None:
    """Leave a sync out."""


@contextlib.contextmanager
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever only looks at what is left need not wait for the device."""
    with monkeypatch.context() as patched:
        for name in ("fsync", "fdatasync"):
            patched.setattr(os, name, no_sync)
        yield


def failures(
    work: Work, most: int, monkeypatch: pytest.MonkeyPatch, look: Look = check
) -> Iterator[str]:
    """Yield what is wrong with images, of so many at most."""
    root = work.path.parent.with_name("left")
    for left in images(work, most):
        with no_syncs(monkeypatch):
            write_image(left.image, root)
            try:
                look(root / work.path.name, left, work.engine)
            except (AssertionError, BandanaError) as error:
                yield f"{left}: {type(error).__name__}: {error}"


@pytest.fixture
def place_for_it(tmp_path: Path) -> Iterator[Path]:
    """Return a directory in memory, where there is one: nothing here is about a device."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as made:
        yield Path(made)


def done(root: Path, bases: Mapping[str, Path], what: str, engine: str) -> Work:
    if what == "first_load":
        (root / "traced").mkdir()
        return traced(root / "traced", engine, None, WORK[what])
    shutil.copytree(bases[engine], root / "traced")
    return traced(root / "traced", engine, SECOND, WORK[what])


@pytest.mark.parametrize("what", WORK)
@pytest.mark.parametrize("engine", ["blockfile", "lmdb", "rocksdb"])
def test_a_power_cut_leaves_the_old_store_or_the_new(
    bases: dict[str, Path],
    place_for_it: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    engine: str,
) -> None:
    work = done(place_for_it, bases, what, engine)
    assert list(failures(work, MOST[engine], monkeypatch)) == []


# -- a second time -----------------------------------------------------------------------------


def go_on(work: Work) -> None:
    """Do what a new process does, whatever it finds."""
    if work.state is None:
        work.load(FIRST)
    with work.opened() as store:
        work.update(store, "t", FEW, 10)
        work.flush(store)
        work.update(store, "u", FEW, 20)
    work.load({"t": THIRD["t"]})


def found_at(path: Path) -> State:
    """Return what the store at `path` serves, if there is one."""
    if not (path / "CURRENT").exists():
        return None
    with opened(path) as store:
        return rows_of(store)


@pytest.mark.parametrize("what", ["update", "flush"])
def test_a_power_cut_while_the_one_before_is_overcome(
    bases: dict[str, Path], place_for_it: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    first = done(place_for_it, bases, what, "blockfile")
    found = []
    for number, left in enumerate(images(first, FIRSTS)[-FIRSTS:]):
        root = place_for_it / str(number) / "traced"
        write_image(left.image, root)
        again = traced(root, "blockfile", found_at(root / "s"), go_on)
        found += failures(again, SECONDS, monkeypatch)
    assert found == []


@pytest.mark.parametrize("what", ["first_load", "update", "place"])
def test_a_power_cut_after_another_process_was_killed(
    bases: dict[str, Path], place_for_it: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What the killed one did not sync is shown to the next one, and may go nevertheless."""
    first = done(place_for_it, bases, what, "blockfile")
    found = []
    for number in np.linspace(1, len(first.trace.points) - 1, FIRSTS, dtype=int):
        point = first.trace.points[number]
        root = place_for_it / str(number) / "traced"
        write_image(image_of(point.disk, SHOWN, ()), root)
        state = found_at(root / "s")
        again = traced(root, "blockfile", state, go_on, point, allowed(first, point))
        found += [f"killed at {number}: {each}" for each in failures(again, SECONDS, monkeypatch)]
    assert found == []


# -- migrations --------------------------------------------------------------------------------


MOVED = RNG.random((300, 16), np.float32)


def test_a_power_cut_during_a_migration_leaves_the_old_table_or_the_new(
    bases: dict[str, Path],
    place_for_it: Path,
    monkeypatch: pytest.MonkeyPatch,
    put_by_key: Callable[..., None],
) -> None:
    engine = "blockfile"
    source = place_for_it / "source"
    put_by_key("lmdb", source, {b"%d" % each: row.tobytes() for each, row in enumerate(MOVED)})
    monkeypatch.setattr(adapter_rows, "_SCANNED_KEYS", 64)
    monkeypatch.setattr(staging, "CHECKPOINT_BYTES", 100 * MOVED[0].nbytes)

    def move(path: Path) -> None:
        with open_rows("lmdb", source, key="decimal") as rows:
            migrate(rows, path, "t", adapter=engine)

    def move_traced(work: Work) -> None:
        move(work.path)
        work.now({**SECOND, "t": MOVED})

    def check_migration(path: Path, left: Left, engine: str) -> None:
        assert any(is_same(found_at(path), each) for each in left.allowed)
        move(path)
        assert is_same(found_at(path), {**SECOND, "t": MOVED})
        assert not (path / "migrations").exists()

    shutil.copytree(bases[engine], place_for_it / "traced")
    work = traced(place_for_it / "traced", engine, SECOND, move_traced)
    assert list(failures(work, OF_MIGRATIONS, monkeypatch, check_migration)) == []


# -- what is found if it is there --------------------------------------------------------------


PLANTED: dict[str, tuple[Any, str, str, str]] = {
    "names are not synced": (durable, "sync_directory", "load", "rows are of no state"),
    "files are not synced": (durable, "sync_file", "load", "FormatError"),
    "the journal is not synced": (Journal, "_sync", "update", "rows are of no state"),
    "blocks are not synced": (BlockFile, "sync", "flush", "Corrupt"),
    "the journal goes before the blocks": (Updates, "_flush_table", "flush", "rows are of no"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_sync_that_is_left_out_is_found(
    bases: dict[str, Path], place_for_it: Path, monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    owner, name, what, shown_as = PLANTED[bug]
    with monkeypatch.context() as planted:
        planted.setattr(owner, name, no_sync)
        work = done(place_for_it, bases, what, "blockfile")
    assert any(shown_as in each for each in failures(work, 200, monkeypatch))
