"""Random histories of kill, freeze, mend, move and load: every row that comes is right."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bandana_kv.testing.cluster_trial import Trial
from bandana_kv.testing.real_cluster import RealCluster

ROWS, SHARDS = 3000, 3
EXAMPLES, STEPS = 3, 8
SHARES = st.sampled_from([0.01, 0.1, 0.25])
IDS = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=60)


class ClusterMachine(RuleBasedStateMachine):
    """A store on a cluster of this history's own; never are both copies of a shard broken."""

    def __init__(self) -> None:
        super().__init__()
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            cluster = stack.enter_context(RealCluster(SHARDS))
            self.trial = stack.enter_context(Trial(cluster, Path(directory) / "store", rows=ROWS))
            self.stack = stack.pop_all()

    def teardown(self) -> None:
        self.stack.close()

    @precondition(lambda self: len(self.trial.broken) < SHARDS)
    @rule()
    def kill(self) -> None:
        self.trial.kill()

    @precondition(lambda self: len(self.trial.broken) < SHARDS)
    @rule(primary=st.booleans())
    def freeze(self, primary: bool) -> None:
        _ = self.trial.freeze() if primary else self.trial.freeze_a_replica()

    @precondition(lambda self: any(node.frozen for node in self.trial.broken))
    @rule()
    def thaw(self) -> None:
        self.trial.thaw()

    @precondition(lambda self: self.trial.broken)
    @rule()
    def mend(self) -> None:
        self.trial.mend()

    @rule(share=SHARES)
    def migrate(self, share: float) -> None:
        self.trial.move(share)

    # One that is refused waits for copies, and what it began is tried to be deleted ever after.
    @precondition(lambda self: not (self.trial.broken and self.trial.counts["refused_loads"]))
    @rule()
    def load_and_switch(self) -> None:
        whole = not self.trial.broken
        assert self.trial.try_to_load() or not whole

    @rule(ids=IDS)
    def read(self, ids: list[int]) -> None:
        asked = np.array(ids)
        assert self.trial.judge(asked, self.trial.ask(asked)) == 0

    @invariant()
    def all_rows_are_right(self) -> None:
        assert self.trial.wrong_rows() == 0, self.trial.why


@pytest.mark.slow
def test_histories() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        ClusterMachine,
        settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS),
    )
