"""Who changes a store while it is tortured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

import bandana_kv
from bandana_kv.errors import BandanaError
from bandana_kv.placement import Placement
from bandana_kv.testing.oracle import ROWS, TABLES, Event, rows_of
from bandana_kv.testing.torture_readers import Readers
from bandana_kv.testing.tortured import Tell, Tortured

__all__ = ["Actor"]

_UPDATES = hasattr(bandana_kv.EmbeddingStore, "update")


class Actor:
    """Changes the store at random, and says so before and after."""

    kinds: ClassVar[tuple[str, ...]] = ("load", "rollback")
    """What it does, as often as it stands here."""
    if _UPDATES:
        kinds += ("update", "update", "update", "flush", "place", "place")

    def __init__(
        self, tortured: Tortured, tell: Tell, readers: int = 2, *, failing: bool = False
    ) -> None:
        self._tortured = tortured
        self._root = tortured.root
        self._rng = tortured.rng
        self._expected = tortured.expected
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

    def do_each(self) -> None:
        """Do everything once, whether or not it changes anything."""
        self.load()
        with self.opened():
            self.load()
            self._refresh()
            if _UPDATES:
                self._update()
                self._flush()
                self._place()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Serve the store with some threads reading meanwhile."""
        cache_bytes = self._rng.choice((0, 30_000, 1 << 20))
        with (
            bandana_kv.open(self._root, cache_bytes, readers=4) as self._store,
            Readers(self._tortured, self._store, self._readers, failing=self._failing),
        ):
            yield

    def step(self) -> bool:
        """Do one thing; False: whether it happened is not known."""
        self._tortured.counters.add("operations")
        match self._rng.choice(self.kinds):
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
                adapter=self._tortured.adapter,
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
            self._tortured.bad("failed_calls", f"{what}: {type(error).__name__}: {error}")
