"""From an old source to real stores by stages: what goes wrong, goes back, and nobody sees it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import FallbackError, RolloutError
from bandana_kv.rollout import Limits, Rollout, Shares, Stage
from bandana_kv.testing.faults import Faults, injecting

ROWS = np.random.default_rng(0).random((2000, 32), np.float32)
ITEMS = np.random.default_rng(1).random((500, 8), np.float32)
TABLES = {"user": ROWS, "item": ITEMS}
ENGINES = ("lmdb", "rocksdb", "blockfile")
ALL = Shares(1.0, 1.0, 1.0)
PATIENCE_S = 30.0


class Held(Faults):
    """Reads wait until they are let go."""

    def __init__(self) -> None:
        super().__init__(0)
        self.let_go = threading.Event()
        self.let_go.set()
        self.waiting = threading.Semaphore(0)

    def next(self, kinds: tuple[str, ...]) -> str | None:
        self.waiting.release()
        assert self.let_go.wait(PATIENCE_S)
        return super().next(kinds)


class Down(Faults):
    """Every operation fails while it is so."""

    down = False

    def next(self, kinds: tuple[str, ...]) -> str | None:
        if self.down:
            raise OSError(errno.EIO, "input/output error (injected)")
        return super().next(kinds)


def old_rows(table: str, ids: np.ndarray) -> np.ndarray:
    return TABLES[table][ids]


@pytest.fixture(scope="module", params=ENGINES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp(request.param)
    bandana_kv.load(where, TABLES, adapter=request.param, placement="identity")
    return where


@pytest.fixture
def opened() -> Iterator[Callable[..., Any]]:
    """Open stores without a cache, and roll-outs over them, all closed at the end."""
    with contextlib.ExitStack() as stack:

        def rollout(path: Path, old: object = old_rows, **options: Any) -> Rollout:
            faults = options.pop("faults", None) or Faults(0)
            store_options = {"cache_bytes": 0, "readers": 4} | options.pop("store", {})
            with injecting(faults):
                store = stack.enter_context(bandana_kv.open(path, **store_options))
            made = stack.enter_context(Rollout(old, store, **{"shares": ALL} | options))
            if isinstance(faults, Held):
                stack.callback(faults.let_go.set)
            return made

        yield rollout


def requests(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, len(ROWS), rng.integers(1, 60)) for _ in range(count)]


def ask(rollout: Rollout, count: int, seed: int = 0) -> None:
    for ids in requests(count, seed):
        assert rollout.multi_get("user", ids).tobytes() == ROWS[ids].tobytes()


@pytest.mark.parametrize("stage", ["canary", "full"])
def test_an_old_source_with_wrong_rows_triggers_the_step_back(
    path: Path, opened: Any, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(table: str, ids: np.ndarray) -> np.ndarray:
        rows = TABLES[table][ids]
        rows[ids == 77, 5] = -0.0
        return rows

    caplog.set_level(logging.INFO, "bandana_kv")
    rollout = opened(path, wrong, stage=stage, fraction=1.0)
    ask(rollout, 20)
    assert rollout.wait(PATIENCE_S)
    assert rollout.stage == stage
    assert rollout.multi_get("user", [5, 77]).tobytes() == ROWS[[5, 77]].tobytes()
    assert rollout.wait(PATIENCE_S)
    assert rollout.stage == "shadow"
    report = rollout.report()
    (difference,) = report.differences
    assert (difference.table, difference.id, difference.at) == ("user", 77, 5)
    assert difference.old == (-0.0, *ROWS[77, 6:].tolist())
    assert difference.new == tuple(ROWS[77, 5:].tolist())
    assert (difference.old_bytes, difference.new_bytes) == ("00000080", ROWS[77, 5].tobytes().hex())
    assert report.mismatched_rows == 1
    (change,) = report.history
    assert (change.before, change.after, change.automatic) == (stage, "shadow", True)
    assert "1 of the last" in change.reason
    assert change.seen.mismatch_share > 0
    (told,) = [each for each in caplog.records if getattr(each, "event", "") == "rollout_stage"]
    assert (told.event, vars(told)["from"], vars(told)["to"]) == ("rollout_stage", stage, "shadow")
    assert told.reason == change.reason
    assert told.numbers["mismatch_share"] == change.seen.mismatch_share
    assert told.levelno == logging.WARNING
    # In shadow the old source's rows are given, wrong as they are, and it goes no further.
    assert rollout.get("user", 77)[5] == 0
    assert rollout.wait(PATIENCE_S)
    assert (rollout.stage, rollout.report().breaches) == ("shadow", 2)
    with pytest.raises(RolloutError, match="stays in shadow: 1 of the last 1 compared rows differ"):
        rollout.advance()


@pytest.mark.parametrize("limits", [{"p99_us": 2000.0}, {"latency_ratio": 1.5}], ids=str)
@pytest.mark.parametrize("stage", ["canary", "full"])
def test_a_slow_new_store_triggers_the_step_back(
    path: Path, opened: Any, stage: Stage, limits: dict[str, float]
) -> None:
    faults = Faults(0, scheduled=dict.fromkeys(range(100_000), "slow"))
    rollout = opened(
        path,
        faults=faults,
        stage=stage,
        fraction=1.0,
        limits=Limits(window=50, least=20, **limits),
    )
    for seed in range(40):  # a busy machine may make the old source slow for a while
        ask(rollout, 20, seed)
        assert rollout.wait(PATIENCE_S)
        if rollout.stage == "shadow":
            break
    (change,) = rollout.report().history
    assert change.after == "shadow"
    assert "the new store's p99 is" in change.reason
    assert change.seen.p99_us["new"] > 2000  # each read sleeps for 3 ms
    assert change.seen.error_share == 0


def test_a_late_new_store_is_answered_for_and_triggers_the_step_back(
    path: Path, opened: Any
) -> None:
    faults = Held()
    rollout = opened(path, faults=faults, stage="full", store={"deadline_ms": 5, "readers": 2})
    faults.let_go.clear()
    ask(rollout, 5)
    assert rollout.stage == "shadow"
    assert rollout.report().rescued_requests == 2
    assert "2 of the last 2 lookups of the new store failed" in rollout.report().history[0].reason
    faults.let_go.set()


@pytest.mark.parametrize("stage", ["canary", "full"])
def test_a_failing_new_store_triggers_the_step_back_and_callers_get_their_rows(
    path: Path, opened: Any, stage: Stage
) -> None:
    faults = Faults(3)
    rollout = opened(
        path,
        faults=faults,
        stage=stage,
        fraction=1.0,
        shares=Shares(0.0, 0.0, 0.0),
        limits=Limits(error_share=0.05, window=100),
    )
    ask(rollout, 100)
    assert rollout.stage == stage
    faults.probability = 0.5  # errors, flipped bits, torn and short blocks, slow reads
    ask(rollout, 100, seed=1)
    assert rollout.stage == "shadow"
    report = rollout.report()
    assert report.rescued_requests == report.errors["new"] == 6
    assert report.requests["old"] + report.requests["new"] == 200
    assert (report.failed_requests, report.errors["old"], report.mismatched_rows) == (0, 0, 0)
    assert sum(faults.injected[kind] for kind in ("error", "flip", "torn", "short")) >= 6


def test_a_failing_new_store_in_shadow_stays_there_and_is_not_advanced(
    path: Path, opened: Any
) -> None:
    faults = Faults(3)
    rollout = opened(path, faults=faults, stage="shadow", limits=Limits(least=10))
    ask(rollout, 30)
    assert rollout.wait(PATIENCE_S)
    assert rollout.report().ready
    faults.probability = 1.0
    ask(rollout, 30, seed=1)
    assert rollout.wait(PATIENCE_S)
    report = rollout.report()
    assert report.requests == {"old": 60, "new": 0}
    assert report.errors["new"] > 2
    assert (report.breaches, report.ready, report.history) == (1, False, ())
    with pytest.raises(RolloutError, match="lookups of the new store failed"):
        rollout.advance()


def test_shadow_neither_delays_nor_fails_callers(path: Path, opened: Any) -> None:
    faults = Held()
    rollout = opened(path, faults=faults, stage="shadow", waiting_bytes=20_000)
    faults.let_go.clear()
    while faults.waiting.acquire(blocking=False):
        pass
    ask(rollout, 100)  # would not come back if it waited
    assert faults.waiting.acquire(timeout=PATIENCE_S)
    report = rollout.report()
    assert report.requests["old"] == 100
    assert report.compared_requests == 0
    skipped = report.skipped_comparisons
    assert 90 <= skipped < 100
    assert not rollout.wait(0.0)
    faults.let_go.set()
    assert rollout.wait(PATIENCE_S)
    report = rollout.report()
    assert (report.compared_requests, report.skipped_comparisons) == (100 - skipped, skipped)
    assert report.mismatched_rows == 0


def test_off_asks_the_new_store_for_nothing_that_still_waits(path: Path, opened: Any) -> None:
    faults = Held()
    rollout = opened(path, faults=faults, stage="shadow", threads=1)
    faults.let_go.clear()
    ask(rollout, 20)
    rollout.set_stage("off")
    faults.let_go.set()
    assert rollout.wait(PATIENCE_S)
    report = rollout.report()
    assert report.compared_requests <= 1
    assert report.compared_requests + report.skipped_comparisons == 20


def test_a_closed_new_store_fails_nobody(path: Path) -> None:
    with bandana_kv.open(path) as store:
        rollout = Rollout(old_rows, store, shares=ALL)
    for stage in ("off", "shadow", "canary", "full"):
        rollout.set_stage(stage, fraction=1.0)
        ask(rollout, 5)
        assert rollout.wait(PATIENCE_S)
    assert rollout.stage == "shadow"
    rollout.close()


def test_all_the_way_to_full(path: Path, opened: Any, tmp_path: Path) -> None:
    state = tmp_path / "stage.json"
    rollout = opened(path, state=state, limits=Limits(least=30))
    assert rollout.advance() == "shadow"
    with pytest.raises(RolloutError, match="0 of 30 good comparisons"):
        rollout.advance()
    ask(rollout, 30)
    assert rollout.wait(PATIENCE_S)
    assert rollout.advance(fraction=0.5) == "canary"
    with pytest.raises(RolloutError, match="stays in canary: 0 of 30"):
        rollout.advance()
    ask(rollout, 100)
    assert rollout.wait(PATIENCE_S)
    answered = rollout.report().requests
    assert answered["new"] >= 30
    assert rollout.advance() == "full"
    ask(rollout, 50)
    assert rollout.report().requests == {"old": answered["old"], "new": answered["new"] + 50}
    with pytest.raises(RolloutError, match="full is the last stage"):
        rollout.advance()
    assert [change.after for change in rollout.report().history] == ["shadow", "canary", "full"]
    again = opened(path, state=state)
    assert (again.stage, again.fraction) == ("full", 0.5)


def test_who_starts_again_begins_where_it_stepped_back_to(
    path: Path, opened: Any, tmp_path: Path
) -> None:
    state = tmp_path / "stage.json"
    faults = Faults(0)
    rollout = opened(path, faults=faults, state=state)
    rollout.set_stage("canary", 0.3)
    rollout.set_stage("full")
    faults.probability = 1.0
    ask(rollout, 20)
    rollout.close()
    again = opened(path, state=state, stage="full")
    assert (again.stage, again.fraction) == ("shadow", 0.3)


def test_a_stage_that_cannot_be_written_down_is_gone_to_all_the_same(
    path: Path, opened: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = tmp_path / "kept"
    where.mkdir()
    faults = Faults(0)
    rollout = opened(path, faults=faults, state=where / "stage.json")
    where.rmdir()
    with pytest.raises(RolloutError, match="the stage is 'full' now"):
        rollout.set_stage("full")
    faults.probability = 1.0
    ask(rollout, 20)
    assert rollout.wait(PATIENCE_S)
    assert rollout.stage == "shadow"
    assert "a step back was not written down" in caplog.text


def test_threads_get_their_rows_while_stages_change(path: Path, opened: Any) -> None:
    faults = Faults(5)
    rollout = opened(
        path,
        faults=faults,
        shares=Shares(0.5, 0.5, 0.5),
        limits=Limits(error_share=0.03, window=200),
        waiting_bytes=100_000,
        store={"cache_bytes": 50_000},
    )
    faults.probability = 0.02
    calls, threads = 250, 8
    ended = threading.Event()

    def change() -> int:
        rng = np.random.default_rng(7)
        changes = 0
        while not ended.is_set() or changes < 50:
            stage = str(rng.choice(["off", "shadow", "canary", "full", "full"]))
            rollout.set_stage(stage, fraction=float(rng.random()))
            changes += 1
            ended.wait(0.002)
        return changes

    def serve(seed: int) -> int:
        rng = np.random.default_rng(seed)
        wrong = 0
        for call in range(calls):
            ids = rng.integers(0, len(ROWS), rng.choice([0, 1, 30]))
            few = rng.integers(0, len(ITEMS), 5)
            if call % 3:
                wrong += rollout.multi_get("user", ids).tobytes() != ROWS[ids].tobytes()
            else:
                both = rollout.multi_get({"user": ids, "item": few})
                wrong += both["user"].tobytes() != ROWS[ids].tobytes()
                wrong += both["item"].tobytes() != ITEMS[few].tobytes()
        return wrong

    with ThreadPoolExecutor(threads + 1) as pool:
        changing = pool.submit(change)
        try:
            assert list(pool.map(serve, range(threads))) == [0] * threads
        finally:
            ended.set()
        changes = changing.result(PATIENCE_S)
    assert rollout.wait(PATIENCE_S)
    report = rollout.report()
    assert report.requests["old"] + report.requests["new"] == calls * threads
    assert (report.failed_requests, report.mismatched_rows, report.differences) == (0, 0, ())
    assert report.errors["new"] >= report.rescued_requests
    automatic = sum(
        metric.value
        for metric in rollout.metrics()
        if metric.name == "bandana_kv_rollout_transitions"
    )
    assert automatic >= changes
    looked_up = {
        metric.labels["side"]: sum(metric.value.counts)
        for metric in rollout.metrics()
        if metric.name == "bandana_kv_rollout_latency_seconds"
    }
    rescued = report.rescued_requests
    compared = report.compared_requests
    background = sum(looked_up.values()) - calls * threads - rescued
    assert background == compared + report.errors["new"] - rescued


def test_when_neither_side_answers_both_are_named(path: Path, opened: Any) -> None:
    down = [False]

    def old(table: str, ids: np.ndarray) -> np.ndarray:
        if down[0]:
            raise ConnectionError("the old cluster is away")
        return old_rows(table, ids)

    faults = Down(0)
    rollout = opened(path, old, faults=faults, stage="full", limits=Limits(error_share=1.0))
    faults.down = down[0] = True
    with pytest.raises(FallbackError, match=r"'user'.*and the old source: .*cluster is away"):
        rollout.multi_get("user", [1, 2])
    assert rollout.report().failed_requests == 1
    faults.down = False
    ask(rollout, 5)
    rollout.set_stage("off")
    with pytest.raises(FallbackError, match="cluster is away"):
        rollout.multi_get("user", [1, 2])


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_forked_meanwhile_goes_on(tmp_path: Path, opened: Any) -> None:
    bandana_kv.load(tmp_path, TABLES, adapter="blockfile", placement="identity")
    rollout = opened(tmp_path, stage="canary", fraction=0.5)
    ask(rollout, 50)
    with (
        rollout._observed._lock,
        rollout._stages._changing,
        rollout._stages._writing,
        rollout._check.background._changed,
        rollout._quiet._lock,
    ):
        child = os.fork()
        if child == 0:
            signal.alarm(int(PATIENCE_S))
            status = 1
            with contextlib.suppress(BaseException):
                before = rollout.report()
                ask(rollout, 50, seed=2)
                assert rollout.wait(PATIENCE_S)
                after = rollout.report()
                assert sum(after.requests.values()) - sum(before.requests.values()) == 50
                assert after.compared_requests > before.compared_requests
                rollout.set_stage("full")
                ask(rollout, 10, seed=3)
                rollout.close()
                status = 0
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert rollout.stage == "canary"


def test_another_store_is_an_old_source(path: Path, opened: Any, tmp_path: Path) -> None:
    bandana_kv.load(tmp_path, {"user": ROWS, "item": ITEMS}, adapter="memory")
    with bandana_kv.open(tmp_path) as old:
        rollout = opened(path, old, stage="canary", fraction=0.5)
        ask(rollout, 50)
        assert rollout.wait(PATIENCE_S)
        assert rollout.report().mismatched_rows == 0
        rollout.close()
        assert np.array_equal(old.get("user", 1), ROWS[1])  # it stays its owner's


def test_rows_updated_on_one_side_only_are_differences(tmp_path: Path) -> None:
    rows = ROWS.copy()
    bandana_kv.load(tmp_path, {"user": rows}, adapter="lmdb")
    with (
        bandana_kv.open(tmp_path) as store,
        Rollout(lambda _, ids: rows[ids], store, stage="full", shares=ALL) as rollout,
    ):
        store.update("user", [3], rows[[3]] + 1)
        rows[3] += 1
        assert np.array_equal(rollout.get("user", 3), rows[3])
        assert rollout.wait(PATIENCE_S)
        assert rollout.stage == "full"
        store.update("user", [4], rows[[4]] + 1)
        rollout.get("user", 4)
        assert rollout.wait(PATIENCE_S)
        assert rollout.stage == "shadow"
        assert rollout.report().differences[0].id == 4
