"""Random histories of stages, faults, updates and restarts: answered as a dictionary would."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import bandana_kv
from bandana_kv.errors import FallbackError, RolloutError
from bandana_kv.rollout import Limits, Rollout, Shares
from bandana_kv.rollout.data import STAGES
from bandana_kv.testing.faults import READ_FAULTS, Faults, injecting

PATIENCE_S = 30.0
FRACTIONS = st.sampled_from([0.0, 0.3, 1.0])
SHARES = st.sampled_from([0.0, 0.5, 1.0])
IDS = st.lists(st.integers(0, 199), max_size=40)


class Sick(Faults):
    """Reads fail as they are told; nothing else does."""

    kind: str | None = None

    def next(self, kinds: tuple[str, ...]) -> str | None:
        if kinds != READ_FAULTS or self.kind is None:
            return None
        if self.kind == "error":
            raise OSError(errno.EIO, "input/output error (injected)")
        return self.kind


class RolloutMachine(RuleBasedStateMachine):
    """`rows` is what both sides hold; `begun` the stage in the file, if one was written."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name)
        rng = np.random.default_rng(0)
        self.rows = {
            "user": rng.standard_normal((200, 16), np.float32),
            "item": rng.integers(-9, 9, (50, 3)).astype(np.int8),
        }
        self.rows["user"][3] = np.nan
        self.rows["user"][4] = -0.0
        bandana_kv.load(self.path / "store", self.rows, adapter="memory")
        self.sick = Sick(0)
        with injecting(self.sick):
            self.store = bandana_kv.open(self.path / "store", cache_bytes=3000)
        self.old_down = False
        self.calls = 0
        self.rollout = self.made(Shares(1.0, 1.0, 1.0))

    def old(self, table: str, ids: np.ndarray) -> Any:
        if self.old_down:
            raise ConnectionError
        return self.rows[table][ids]

    def made(self, shares: Shares) -> Rollout:
        limits = Limits(error_share=0.1, window=20, least=3)
        return Rollout(
            self.old, self.store, shares=shares, limits=limits, state=self.path / "stage.json"
        )

    @rule(ids=IDS, into_out=st.booleans(), key=st.sampled_from([None, 1, "a"]))
    def multi_get(self, ids: list[int], into_out: bool, key: str | int | None) -> None:
        expected = self.rows["user"][ids]
        out = np.empty_like(expected) if into_out else None
        got = self.answered(lambda: self.rollout.multi_get("user", ids, out=out, key=key), ids)
        if got is not None:
            assert got is out or out is None
            assert got.tobytes() == expected.tobytes()

    @rule(users=IDS, items=st.lists(st.integers(0, 49), max_size=9))
    def several_tables(self, users: list[int], items: list[int]) -> None:
        ids = {"item": items, "user": users}
        got = self.answered(lambda: self.rollout.multi_get(ids), users + items)
        if got is not None:
            assert list(got) == ["item", "user"]
            for name in got:
                assert got[name].tobytes() == self.rows[name][ids[name]].tobytes()

    def answered(self, call: Any, ids: list[int]) -> Any:
        """Return the answer; none only if the old source is away, and was needed."""
        stage = self.rollout.stage
        self.calls += 1
        try:
            return call()
        except FallbackError:
            assert self.old_down
            assert ids
            assert stage in ("off", "shadow", "canary") or self.sick.kind is not None
            return None

    @rule(stage=st.sampled_from(STAGES), fraction=st.none() | FRACTIONS)
    def set_stage(self, stage: Any, fraction: float | None) -> None:
        self.rollout.set_stage(stage, fraction)
        assert self.rollout.stage == stage
        assert fraction is None or self.rollout.fraction == fraction

    @rule()
    def advance(self) -> None:
        before = self.rollout.stage
        self.settled()
        report = self.rollout.report()
        try:
            after = self.rollout.advance(0.5)
        except RolloutError:
            assert self.rollout.stage == report.stage
            assert not report.ready
        else:
            assert report.ready
            assert STAGES.index(after) == STAGES.index(before) + 1
            assert before == "off" or report.window.good_comparisons >= 3

    @rule(kind=st.sampled_from([None, None, "error", "short", "flip", "torn"]))
    def sicken(self, kind: str | None) -> None:
        self.settled()
        self.sick.kind = kind

    @rule(down=st.booleans())
    def old_goes_down(self, down: bool) -> None:
        self.settled()
        self.old_down = down

    @rule(id=st.integers(0, 199), number=st.sampled_from([0.0, -0.0, 1.5, float("nan")]))
    def update_both(self, id: int, number: float) -> None:
        self.settled()  # what is being compared would differ
        self.rows["user"][id] = number
        self.store.update("user", [id], self.rows["user"][[id]])

    @rule(shares=st.builds(Shares, SHARES, SHARES, SHARES))
    def begin_again(self, shares: Shares) -> None:
        before = (self.rollout.stage, self.rollout.fraction)
        self.rollout.close()
        written = (self.path / "stage.json").exists()
        # A step back may come with the last comparison, after `before` was looked at.
        after = (self.rollout.stage, self.rollout.fraction)
        assert after in (before, ("shadow", before[1]))
        self.rollout = self.made(shares)
        self.calls = 0
        assert (self.rollout.stage, self.rollout.fraction) == (after if written else ("off", 0.05))

    def settled(self) -> None:
        assert self.rollout.wait(PATIENCE_S)

    @invariant()
    def counts_add_up(self) -> None:
        report = self.rollout.report()
        answered = report.requests["old"] + report.requests["new"]
        assert answered + report.failed_requests == self.calls
        assert report.rescued_requests <= report.errors["new"]
        assert report.mismatched_rows == 0
        assert report.differences == ()

    def teardown(self) -> None:
        self.rollout.close()
        self.store.close()
        self.directory.cleanup()


TestRolloutMachine = RolloutMachine.TestCase
TestRolloutMachine.settings = settings(max_examples=30, stateful_step_count=30)
