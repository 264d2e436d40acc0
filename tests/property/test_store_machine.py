"""Random histories of loads, openings and lookups against a plain dictionary of arrays."""

from __future__ import annotations

import tempfile
from typing import get_args

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import bandana_kv
from bandana_kv.cache.policy import Admission, Eviction, Policy, Rule

NAMES = ["user", "item", "Straße 7"]
SHAPES = {
    "user": ("<f4", 32),
    "item": ("<f2", 3000),
    "Straße 7": ("i1", 5),
}
PLACEMENTS = ["identity", "shuffled", "shp"]
POLICIES = st.builds(
    lambda evicted, rule, threshold, half_life, weight: Policy(
        evicted, Admission(rule, threshold if rule == "threshold" else None), half_life, weight
    ),
    st.sampled_from(get_args(Eviction)),
    st.sampled_from(get_args(Rule)),
    st.integers(0, 3),
    st.sampled_from([0.5, 20.0]),
    st.sampled_from([0.0, 1.0]),
)


class StoreMachine(RuleBasedStateMachine):
    """`loaded` is what the newest version holds, `served` what the open store does."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.loaded: dict[str, np.ndarray] = {}
        self.served: dict[str, np.ndarray] = {}
        self.store: bandana_kv.EmbeddingStore | None = None
        self.version = 0

    @initialize(seed=st.integers(0, 99))
    def first_load(self, seed: int) -> None:
        self.load(["user"], seed, "identity", 20)

    @rule(
        names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
        seed=st.integers(0, 99),
        placement=st.sampled_from(PLACEMENTS),
        rows=st.sampled_from([1, 2, 100, 300]),
    )
    def load(self, names: list[str], seed: int, placement: str, rows: int) -> None:
        rng = np.random.default_rng(seed)
        new, logs = {}, {}
        for name in names:
            dtype, dim = SHAPES[name]
            new[name] = rng.integers(-100, 100, (rows, dim)).astype(dtype)
            requests = [rng.integers(0, rows, 5) for _ in range(30)]
            logs[name] = bandana_kv.AccessLog.from_requests(requests)
        version = bandana_kv.load(
            self.directory.name, new, logs, adapter="memory", placement=placement
        )
        assert version > self.version
        self.version = version
        self.loaded = self.loaded | new

    @rule(
        cache_bytes=st.sampled_from([0, 700, 50_000, 1 << 24]),
        readers=st.sampled_from([1, 16]),
        coalesce=st.booleans(),
        policy=st.one_of(st.none(), POLICIES),
    )
    def open(self, cache_bytes: int, readers: int, coalesce: bool, policy: Policy | None) -> None:
        self.close()
        self.store = bandana_kv.open(
            self.directory.name,
            cache_bytes,
            readers=readers,
            coalesce=coalesce,
            policy=policy,
        )
        self.served = dict(self.loaded)
        assert self.store.version == self.version
        assert set(self.store.tables) == set(self.served)
        if policy is not None:
            assert {self.store.policy(name) for name in self.served} == {policy}

    @precondition(lambda self: self.store is not None)
    @rule(data=st.data(), count=st.integers(0, 80), into_out=st.booleans())
    def multi_get(self, data: st.DataObject, count: int, into_out: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.served)))
        table = self.served[name]
        ids = np.random.default_rng(count).integers(0, table.shape[0], count)
        out = np.empty((count, table.shape[1]), table.dtype) if into_out else None
        got = self.store.multi_get(name, ids, out=out)
        assert got is out or out is None
        assert got.tobytes() == table[ids].tobytes()

    @precondition(lambda self: self.store is not None)
    @rule(seed=st.integers(0, 99))
    def several_tables_at_once(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ids = {name: rng.integers(0, len(rows), 7) for name, rows in self.served.items()}
        got = self.store.multi_get(ids)
        assert list(got) == list(ids)
        for name in ids:
            assert got[name].tobytes() == self.served[name][ids[name]].tobytes()

    @invariant()
    def check(self) -> None:
        if self.store is not None:
            self.store.check()

    def close(self) -> None:
        if self.store is not None:
            self.store.close()

    def teardown(self) -> None:
        self.close()
        self.directory.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=20)
