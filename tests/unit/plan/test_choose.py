"""Choosing a plan: budget, placement and policy that fit the log, and a store that obeys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Policy
from bandana_kv.cache.state import cache_bytes_of, capacity_for
from bandana_kv.errors import InputError
from bandana_kv.placement import place
from bandana_kv.plan import Choice, Plan, allocate, choose_plan
from bandana_kv.progress import Progress
from bandana_kv.simulate import replay

ROW_BYTES = 128
PER_BLOCK = 31  # what fits 4 KiB
CLUSTER_ROWS, SINGLE_ROWS, DRIFT_ROWS = 1240, 800, 2000


def clustered(requests: int, seed: int) -> AccessLog:
    """Each request looks up 6 of 20 rows that belong together; some groups are busier."""
    groups = np.random.default_rng(0).permutation(CLUSTER_ROWS).reshape(-1, 20)
    rng = np.random.default_rng(seed)
    drawn = (rng.random(requests) ** 2 * len(groups)).astype(int)
    return AccessLog.from_requests(rng.permutation(groups[group])[:6] for group in drawn)


def single(requests: int, seed: int) -> AccessLog:
    """One id a request, all as likely: nothing can be learnt."""
    ids = np.random.default_rng(seed).integers(SINGLE_ROWS, size=requests)
    return AccessLog(np.arange(requests + 1), ids)


def drifting(requests: int, seed: int) -> AccessLog:
    """Every 100 requests another 60 of the rows are in fashion, and never again."""
    rng = np.random.default_rng(seed)
    fashions = [rng.choice(DRIFT_ROWS, 60, replace=False) for _ in range(requests // 100 + 1)]
    return AccessLog.from_requests(
        rng.choice(fashions[number // 100], 5, replace=False) for number in range(requests)
    )


def lru_bytes(rows: int, share: float) -> int:
    return cache_bytes_of(Policy(), int(share * rows), ROW_BYTES, rows)


def chosen(plan: Plan, name: str) -> Choice:
    choice = plan.tables[name].choice
    assert choice is not None
    return choice


def reads(choice: Choice, learn: AccessLog, test: AccessLog, rows: int) -> int:
    placement = place(learn, rows, PER_BLOCK, choice.placement)
    heat = heat_by_position(learn.ids, placement.position_of_id)
    rows_in_dram = choice.capacity_rows
    return replay(test, placement, rows_in_dram, policy=choice.policy, heat=heat).block_reads


@pytest.fixture(scope="module")
def logs() -> dict[str, AccessLog]:
    return {"cluster": clustered(3000, 1), "single": single(4000, 2)}


@pytest.fixture(scope="module")
def plan(logs: dict[str, AccessLog]) -> Plan:
    tables = {"cluster": (CLUSTER_ROWS, ROW_BYTES), "single": (SINGLE_ROWS, ROW_BYTES)}
    return choose_plan(tables, logs, lru_bytes(CLUSTER_ROWS + SINGLE_ROWS, 0.1))


def test_the_budget_is_respected_and_what_rows_take_is_counted(plan: Plan) -> None:
    assert plan.cache_bytes == lru_bytes(CLUSTER_ROWS + SINGLE_ROWS, 0.1)
    choices = {name: chosen(plan, name) for name in plan.tables}
    used = sum(choice.cache_bytes for choice in choices.values())
    assert 0.9 * plan.cache_bytes < used <= plan.cache_bytes
    for name, rows in (("cluster", CLUSTER_ROWS), ("single", SINGLE_ROWS)):
        choice = choices[name]
        expected = 0
        if choice.capacity_rows:
            expected = cache_bytes_of(choice.policy, choice.capacity_rows, ROW_BYTES, rows)
        assert choice.cache_bytes == expected


def test_a_plan_says_why(plan: Plan) -> None:
    for name in plan.tables:
        choice = chosen(plan, name)
        predicted = choice.predicted
        assert 0 < predicted.lower_bound <= predicted.reads_per_lookup
        assert predicted.low <= predicted.reads_per_lookup <= predicted.high
        assert predicted.lower_bound <= predicted.baseline
        # The runner-up may be as good, never much better.
        assert choice.runner_up[1] >= 0.99 * predicted.reads_per_lookup
        assert 0 <= choice.confidence <= 1
        assert choice.runner_up[0] in choice.reason
        assert f"{predicted.baseline / predicted.reads_per_lookup:.2f}x fewer" in choice.reason
    points = plan.tables["single"].points
    assert [point.capacity_rows for point in points] == [4, 8, 16, 40, 80, 160, 400, 800]


def test_rows_that_are_read_together_share_blocks(plan: Plan, logs: dict[str, AccessLog]) -> None:
    choice = chosen(plan, "cluster")
    assert choice.placement == "shp"
    assert choice.predicted.baseline > 2 * choice.predicted.reads_per_lookup
    # And so it is on requests that come later still.
    test = clustered(1000, 3)
    shuffled = place(logs["cluster"], CLUSTER_ROWS, PER_BLOCK, "shuffled")
    baseline = replay(test, shuffled, choice.capacity_rows, coalesce=False).block_reads
    assert baseline > 2 * reads(choice, logs["cluster"], test, CLUSTER_ROWS)


def test_where_nothing_can_be_learnt_it_is_never_worse_than_lru() -> None:
    log, test = single(4000, 2), single(4000, 3)
    plan = choose_plan({"one": (SINGLE_ROWS, ROW_BYTES)}, {"one": log}, lru_bytes(SINGLE_ROWS, 0.1))
    choice = chosen(plan, "one")
    shuffled = place(log, SINGLE_ROWS, PER_BLOCK, "shuffled")
    rows_in_lru = capacity_for(Policy(), plan.cache_bytes, ROW_BYTES, SINGLE_ROWS)
    lru = replay(test, shuffled, rows_in_lru).block_reads
    assert reads(choice, log, test, SINGLE_ROWS) <= 1.01 * lru


def test_a_log_that_drifts_is_not_believed_for_long() -> None:
    log = drifting(4000, 4)
    budget = lru_bytes(DRIFT_ROWS, 0.03)
    choice = chosen(choose_plan({"t": (DRIFT_ROWS, ROW_BYTES)}, {"t": log}, budget), "t")
    policy = choice.policy
    lookups_remembered = policy.half_life * choice.capacity_rows
    assert not policy.watches_heat or lookups_remembered <= 2 * 100 * 5, str(policy)
    later = drifting(2000, 5)
    stale = Policy("tinylfu", half_life=200.0)
    others = [choice, *(replaced(choice, each) for each in (Policy(), stale))]
    cost, of_lru, of_stale = (reads(each, log, later, DRIFT_ROWS) for each in others)
    assert cost <= 1.01 * of_lru
    assert cost < 0.8 * of_stale


def replaced(choice: Choice, policy: Policy) -> Choice:
    return msgspec.structs.replace(choice, policy=policy)


@pytest.mark.parametrize("budget", [0, 1, 300])
def test_next_to_no_dram_is_planned_for_as_well(budget: int) -> None:
    log = {"t": single(300, 6)}
    plan = choose_plan({"t": (SINGLE_ROWS, ROW_BYTES)}, log, budget)
    choice = chosen(plan, "t")
    assert choice.cache_bytes <= budget
    if not choice.capacity_rows:
        assert choice.predicted.reads_per_lookup == 1.0


def test_a_table_that_fits_the_dram_is_held_whole_and_each_block_read_once(
    logs: dict[str, AccessLog],
) -> None:
    budget = 2 * ROW_BYTES * CLUSTER_ROWS
    choice = chosen(
        choose_plan({"cluster": (CLUSTER_ROWS, ROW_BYTES)}, {"cluster": logs["cluster"]}, budget),
        "cluster",
    )
    assert choice.capacity_rows == CLUSTER_ROWS
    assert choice.cache_bytes <= budget
    assert "no block is read" in choice.reason
    assert reads(choice, logs["cluster"], clustered(3000, 3), CLUSTER_ROWS) <= CLUSTER_ROWS // 31


def test_a_plan_depends_on_nothing_but_what_it_is_given() -> None:
    log = {"t": clustered(600, 7)}
    again = [choose_plan({"t": (CLUSTER_ROWS, ROW_BYTES)}, log, 20_000, seed=8) for _ in range(2)]
    assert again[0] == again[1]


def test_progress_is_told_of_stages() -> None:
    class Told(Progress):
        stages: list[str] = []  # noqa: RUF012

        def start(self, label: str, total: int, unit: str) -> None:
            self.stages.append(label)

    told = Told()
    log = {"t": single(300, 6)}
    choose_plan({"t": (SINGLE_ROWS, ROW_BYTES)}, log, 10_000, progress=told)
    assert "simulate t" in told.stages


@pytest.mark.parametrize(
    ("tables", "cache_bytes", "says"),
    [
        ({}, 1000, "no tables"),
        ({"t": (800, 128), "u": (800, 128)}, 1000, "'u' has no log"),
        ({"u": (800, 128)}, 1000, "'t', which is not among"),
        ({"t": (800, 128)}, -1, "cache_bytes -1"),
        ({"t": (800, 128)}, 1.5, "cache_bytes 1.5"),
        ({"t": (700, 128)}, 1000, "the table has 700 rows"),
        ({"t": (0, 128)}, 1000, "0 rows of 128 bytes"),
        ({"t": (800, 0)}, 1000, "800 rows of 0 bytes"),
        ({"t": "nowhere.npy"}, 1000, "nowhere.npy"),
    ],
)
def test_what_cannot_be_planned_is_named(
    tables: dict[str, Any], cache_bytes: Any, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        choose_plan(tables, {"t": single(4000, 9)}, cache_bytes)


def test_a_log_too_short_to_judge_by_is_refused() -> None:
    with pytest.raises(InputError, match="99 requests is too short"):
        choose_plan({"t": (SINGLE_ROWS, 128)}, {"t": single(99, 9)}, 1000)
    choose_plan({"t": (SINGLE_ROWS, 128)}, {"t": single(100, 9)}, 1000)


def rows_of(rows: int) -> NDArray[np.float32]:
    return np.random.default_rng(rows).random((rows, ROW_BYTES // 4), dtype=np.float32)


@pytest.fixture(scope="module")
def store(plan: Plan, logs: dict[str, AccessLog], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planned")
    plan.write(path / "plan.json")
    tables = {"cluster": rows_of(CLUSTER_ROWS), "single": rows_of(SINGLE_ROWS)}
    read = Plan.read(path / "plan.json")
    bandana_kv.load(path / "store", tables, logs, plan=read)
    return path / "store"


def test_a_store_loaded_with_a_plan_obeys_it(store: Path, plan: Plan) -> None:
    with bandana_kv.open(store) as opened:
        for name in plan.tables:
            choice = chosen(plan, name)
            assert opened.policy(name) == choice.policy
            assert opened.capacity_rows(name) == choice.capacity_rows
        assert opened.cache_bytes <= plan.cache_bytes + 1000
        ids = np.arange(CLUSTER_ROWS)
        assert np.array_equal(opened.multi_get("cluster", ids), rows_of(CLUSTER_ROWS))


@pytest.mark.parametrize("share", [0.5, 3.0])
def test_another_amount_of_dram_is_shared_out_anew_by_the_curves(
    store: Path, plan: Plan, share: float
) -> None:
    sizes = {"cluster": CLUSTER_ROWS, "single": SINGLE_ROWS}
    budget = int(share * plan.cache_bytes)
    curves = {
        name: [(0, float(table.lookups)), *table.curve(ROW_BYTES, sizes[name])]
        for name, table in plan.tables.items()
    }
    shares = allocate(curves, budget)
    with bandana_kv.open(store, cache_bytes=budget) as opened:
        for name, table in plan.tables.items():
            policy = table.policy_for(shares[name], ROW_BYTES, sizes[name])
            expected = capacity_for(policy, shares[name], ROW_BYTES, sizes[name])
            assert abs(opened.capacity_rows(name) - expected) <= 1
            assert opened.policy(name) == policy


def test_a_plan_goes_with_its_tables_and_logs(
    plan: Plan, logs: dict[str, AccessLog], tmp_path: Path
) -> None:
    rows = {"cluster": rows_of(CLUSTER_ROWS)}
    with pytest.raises(InputError, match="'single', which is not loaded"):
        bandana_kv.load(tmp_path / "store", rows, {"cluster": logs["cluster"]}, plan=plan)
    rows["single"] = rows_of(SINGLE_ROWS)
    with pytest.raises(InputError, match="give the log it was made from"):
        bandana_kv.load(tmp_path / "store", rows, {"cluster": logs["cluster"]}, plan=plan)
    assert list(tmp_path.iterdir()) == []
