"""Random histories of loads, updates, flushes and re-placements, seen by two stores."""

from __future__ import annotations

import tempfile

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import bandana_kv
from bandana_kv import block_map, manifest, retention
from bandana_kv.placement import Placement
from bandana_kv.plan import PlannedPoint, TablePlan
from bandana_kv.policy import Admission, Policy

DIM = 200  # five rows a block
SIZES = {"user": 83, "item": 40}
TABLES = st.sampled_from(sorted(SIZES))
SEEDS = st.integers(0, 2**32 - 1)
POLICIES = st.sampled_from(
    [Policy(), Policy("clock", Admission("all")), Policy("tinylfu", Admission("online"))]
)
Tables = dict[str, np.ndarray]


class PlacingMachine(RuleBasedStateMachine):
    """`store` updates and places anew; `other` follows it, as another process would.

    `states` are the rows of the versions that may be gone back to, updates included: tables that
    versions share are the same arrays. `seen` is what `other` must answer.
    """

    @initialize(
        adapter=st.sampled_from(["blockfile", "lmdb"]),
        cache_bytes=st.sampled_from([0, 9_000, 1 << 20]),
        replicate=st.sampled_from([0.0, 0.4]),
    )
    def begin(self, adapter: str, cache_bytes: int, replicate: float) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.adapter, self.replicate = adapter, replicate
        self.cache_bytes = cache_bytes
        self.states: dict[int, Tables] = {}
        self.current = 0
        self._load(sorted(SIZES), 0)
        self.store = bandana_kv.open(self.directory.name, cache_bytes)
        self.other = bandana_kv.open(self.directory.name, cache_bytes)
        self.seen = self._copy()

    def _copy(self) -> Tables:
        return {name: rows.copy() for name, rows in self.states[self.current].items()}

    def _load(self, names: list[str], seed: int) -> None:
        rng = np.random.default_rng(seed)
        new = {name: rng.random((SIZES[name], DIM), np.float32) for name in names}
        logs = {
            name: bandana_kv.AccessLog.from_requests(rng.integers(0, SIZES[name], (40, 6)))
            for name in names
        }
        version = bandana_kv.load(
            self.directory.name,
            new,
            logs,
            adapter=self.adapter,
            replicate=self.replicate,
            policy=Policy(),
        )
        before = self.states.get(self.current, {})
        self.states = {number: held for number, held in self.states.items() if number == self.current}
        self.states[version] = before | new
        self.current = version

    @rule(names=st.lists(TABLES, min_size=1, unique=True), seed=SEEDS)
    def load(self, names: list[str], seed: int) -> None:
        self._load(names, seed)
        self.store.refresh()

    @rule(table=TABLES, seed=SEEDS, count=st.integers(1, 30))
    def update(self, table: str, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        ids = rng.choice(SIZES[table], count, replace=False)
        rows = rng.random((count, DIM), np.float32)
        self.store.update(table, ids, rows)
        self.states[self.current][table][ids] = rows

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule(
        table=TABLES,
        seed=SEEDS,
        blocks=st.integers(0, 17),
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
            replicas = rng.permutation(rows)[: rng.integers(0, 20)].astype(np.uint32)
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
        assert done.blocks_rewritten >= np.unique(places[to[places] != places] // per_block).size
        if copies == "stay":
            assert done.blocks_rewritten <= blocks
        self._follow_placing(table, done.version)

    def _follow_placing(self, table: str, version: int) -> None:
        """Forget the versions that share the table's rows, if its files are others now."""
        kept = retention.readable(manifest.Path(self.directory.name))
        old = retention.superseded(kept, version)
        rows = self.states[self.current]
        self.states = {
            number: held
            for number, held in self.states.items()
            if number <= self.current and number in kept and number not in old
        }
        self.states[version] = rows
        self.current = version

    @precondition(lambda self: len(self.states) > 1)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.states.keys() - {self.current})))
        assert bandana_kv.rollback(self.directory.name, version) == version
        self.current = version
        self.store.refresh()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = bandana_kv.open(self.directory.name, self.cache_bytes)

    @rule()
    def follow(self) -> None:
        assert self.other.refresh() == self.current
        self.seen = self._copy()

    @rule()
    def change_roles(self) -> None:
        """Let the other one update, which then serves what is current or what it had."""
        self.store.close()
        self.other.flush()
        self.other.refresh()
        self.store = self.other
        self.other = bandana_kv.open(self.directory.name, self.cache_bytes)
        self.seen = self._copy()

    @rule(seed=SEEDS)
    def ask(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ids = {name: rng.integers(0, rows, 9) for name, rows in SIZES.items()}
        answers = self.store.multi_get(ids)
        for name in SIZES:
            assert np.array_equal(answers[name], self.states[self.current][name][ids[name]])

    @invariant()
    def answers_are_right(self) -> None:
        for name, rows in self.states[self.current].items():
            assert np.array_equal(self.store.multi_get(name, np.arange(len(rows))), rows)
        # What it does not know of yet it may see in blocks that both placements have.
        for name, rows in self.seen.items():
            got = self.other.multi_get(name, np.arange(len(rows)))
            old = (got == rows).all(axis=1)
            known = [held[name] for held in self.states.values() if len(held[name]) == len(rows)]
            newer = np.any([(got == held).all(axis=1) for held in known], axis=0)
            assert (old | newer).all()

    @invariant()
    def stores_are_sound(self) -> None:
        self.store.check()
        report = bandana_kv.verify(self.directory.name)
        assert report.sound, report.findings
        offered = {version.number for version in bandana_kv.versions(self.directory.name)}
        assert offered >= self.states.keys()

    @invariant()
    def room_is_bounded(self) -> None:
        """Two readers keep two placements, and one is being written."""
        current = manifest.read_current(manifest.Path(self.directory.name))
        for table in current.tables.values():
            found = block_map.read_block_map(manifest.Path(self.directory.name), table)
            if found is not None:
                assert block_map.numbers_of(found).max() < 4 * (table.rows // 5 + 1 + 10)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.other.close()
            self.directory.cleanup()


TestPlacing = PlacingMachine.TestCase
TestPlacing.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
