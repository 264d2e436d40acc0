"""Random histories of loads, updates, flushes and re-placements, seen by two stores."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import bandana_kv
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.disk import block_map, manifest, retention
from bandana_kv.placement import Placement
from bandana_kv.plan import PlannedPoint, TablePlan
from bandana_kv.testing.oracle import rows_of, wrong_among

SIZES = {"user": 230, "item": 100}  # fifteen rows a block
STAMP, SEQUENCE = 0, 3  # columns of a row
TABLES = st.sampled_from(sorted(SIZES))
SEEDS = st.integers(0, 2**32 - 1)
POLICIES = st.sampled_from(
    [Policy(), Policy("clock", Admission("all")), Policy("tinylfu", Admission("online"))]
)
Stamps = dict[str, int]
Sequences = dict[str, np.ndarray]


class PlacingMachine(RuleBasedStateMachine):
    """`store` updates and places anew; `other` follows it, as another process would.

    `stamps` says which load the tables are of, by the versions that may be gone back to, and
    `sequences` the last update of each row, by table and load. `seen` is the least that `other`
    must answer.
    """

    @initialize(
        adapter=st.sampled_from(["blockfile", "lmdb"]),
        cache_bytes=st.sampled_from([0, 9_000, 1 << 20]),
        replicate=st.sampled_from([0.0, 0.4]),
    )
    def begin(self, adapter: str, cache_bytes: int, replicate: float) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.root = Path(self.directory.name, "store")
        self.adapter, self.replicate, self.cache_bytes = adapter, replicate, cache_bytes
        self.stamps: dict[int, Stamps] = {0: {}}
        self.sequences: dict[tuple[str, int], np.ndarray] = {}
        self.current = self.stamp = self.sequence = 0
        self._load(sorted(SIZES), 0)
        self.store, self.other = self._opened(), self._opened()
        self._look()

    def _opened(self) -> bandana_kv.EmbeddingStore:
        return bandana_kv.open(self.root, self.cache_bytes)

    def _now(self) -> Sequences:
        return {name: self.sequences[name, stamp] for name, stamp in self._stamps.items()}

    @property
    def _stamps(self) -> Stamps:
        return self.stamps[self.current]

    def _look(self) -> None:
        """Let `other` know what there is."""
        self.seen = {name: sequences.copy() for name, sequences in self._now().items()}
        self.seen_stamps = dict(self._stamps)

    def _load(self, names: list[str], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.stamp += 1
        new, logs = {}, {}
        for name in names:
            sequences = np.zeros(SIZES[name], np.int32)
            self.sequences[name, self.stamp] = sequences
            new[name] = rows_of(name, self.stamp, np.arange(SIZES[name]), sequences)
            logs[name] = bandana_kv.AccessLog.from_requests(rng.integers(0, SIZES[name], (40, 6)))
        version = bandana_kv.load(
            self.root,
            new,
            logs,
            adapter=self.adapter,
            replicate=self.replicate,
            policy=Policy(),
        )
        before = self._stamps
        self.stamps = {self.current: before} if before else {}
        self.stamps[version] = before | dict.fromkeys(names, self.stamp)
        self.current = version

    @rule(names=st.lists(TABLES, min_size=1, unique=True), seed=SEEDS)
    def load(self, names: list[str], seed: int) -> None:
        self._load(names, seed)
        self.store.refresh()

    @rule(table=TABLES, seed=SEEDS, count=st.integers(1, 30))
    def update(self, table: str, seed: int, count: int) -> None:
        ids = np.random.default_rng(seed).choice(SIZES[table], count, replace=False)
        self.sequence += 1
        sequences = np.full(count, self.sequence, np.int32)
        self.store.update(table, ids, rows_of(table, self._stamps[table], ids, sequences))
        self._now()[table][ids] = self.sequence

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule(
        table=TABLES,
        seed=SEEDS,
        blocks=st.integers(0, 16),
        copies=st.sampled_from(["stay", "stay", "none", "others"]),
        policy=st.one_of(st.none(), POLICIES),
        logged=st.booleans(),
    )
    def place_anew(
        self, table: str, seed: int, blocks: int, copies: str, policy: Policy | None, logged: bool
    ) -> None:
        rng = np.random.default_rng(seed)
        served = self.store.placement(table)
        per_block, rows = served.rows_per_block, SIZES[table]
        chosen = rng.permutation(served.blocks)[:blocks]
        places = np.flatnonzero(np.isin(np.arange(rows) // per_block, chosen))
        to = np.arange(rows, dtype=np.uint32)
        to[places] = rng.permutation(places)
        replicas = None
        if copies == "none":
            replicas = np.zeros(0, np.uint32)
        elif copies == "others":
            replicas = rng.permutation(rows)[: rng.integers(0, 40)].astype(np.uint32)
        new = Placement(to[served.position_of_id], per_block, "random", replicas)
        log = bandana_kv.AccessLog.from_requests(rng.integers(0, rows, (20, 3))) if logged else None
        plan = None if policy is None else TablePlan((PlannedPoint(rows, policy, None),))
        done = self.store.place_anew(table, new, plan=plan, log=log)

        now = self.store.placement(table)
        assert np.array_equal(now.position_of_id, new.position_of_id)
        wanted = served.replicas if copies == "stay" else replicas
        assert (now.replicas is None) == (wanted is None or not wanted.size)
        assert now.replicas is None or np.array_equal(now.replicas, wanted)
        assert done.version == self.store.version > self.current
        moved = np.unique(places[to[places] != places] // per_block).size
        assert done.blocks_rewritten == moved or (
            copies != "stay" and done.blocks_rewritten >= moved
        )
        kept = retention.readable(self.root)
        old = retention.superseded(kept, done.version)
        self.stamps = {
            number: stamps
            for number, stamps in self.stamps.items()
            if number <= self.current and number in kept and number not in old
        } | {done.version: self._stamps}
        self.current = done.version

    @precondition(lambda self: len(self.stamps) > 1)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.stamps.keys() - {self.current})))
        assert bandana_kv.rollback(self.root, version) == version
        self.current = version
        self.store.refresh()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self._opened()

    @rule()
    def follow(self) -> None:
        assert self.other.refresh() == self.current
        self._look()

    @rule()
    def change_roles(self) -> None:
        """Let the other one update, whatever it has served."""
        self.store.close()
        self.other.flush()
        assert self.other.refresh() == self.current
        self.store, self.other = self.other, self._opened()
        self._look()

    @invariant()
    def answers_are_right(self) -> None:
        for name, sequences in self._now().items():
            ids = np.arange(SIZES[name])
            rows = rows_of(name, self._stamps[name], ids, sequences)
            assert np.array_equal(self.store.multi_get(name, ids), rows)
        for name, sequences in self.seen.items():
            ids = np.arange(SIZES[name])
            rows = self.other.multi_get(name, ids)
            assert not wrong_among(name, ids, rows).any()
            assert set(rows[:, STAMP]) == {self.seen_stamps[name]}
            # What it was not told of it may know from a block that was flushed.
            assert (rows[:, SEQUENCE] >= sequences).all()

    @invariant()
    def stores_are_sound(self) -> None:
        self.store.check()
        report = bandana_kv.verify(self.root)
        assert report.sound, report.findings
        offered = {version.number for version in bandana_kv.versions(self.root)}
        assert offered >= self.stamps.keys()

    @invariant()
    def room_is_bounded(self) -> None:
        """Of the placement that is served, the one that `other` reads, and one being written."""
        for table in manifest.read_current(self.root).tables.values():
            found = block_map.read_block_map(self.root, table)
            if found is not None:
                most = -(-table.rows // table.rows_per_block) + -(-40 // table.rows_per_block)
                assert block_map.numbers_of(found).max() < 3 * max(most, table.blocks)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.other.close()
            self.directory.cleanup()


TestPlacing = PlacingMachine.TestCase
TestPlacing.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
