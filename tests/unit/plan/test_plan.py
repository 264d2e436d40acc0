"""Plans as data: the policy for an amount of DRAM, the file, and all that may be wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bandana_kv.cache import heat
from bandana_kv.cache.policy import WHOLE, Admission, Policy, asked_policy, parse_admission
from bandana_kv.cache.state import cache_bytes_of, capacity_for
from bandana_kv.disk.plan import PLAN_FORMAT
from bandana_kv.errors import FormatError, InputError
from bandana_kv.plan import Choice, Plan, PlannedPoint, Predicted, TablePlan

FEW, MANY = Policy(), Policy("lru", Admission("threshold", 5))
CHOSEN = Policy("tinylfu", Admission("online"), 50.0, 0.0)
ROWS, ROW_BYTES = 10_000, 128


def choice(capacity_rows: int = 300) -> Choice:
    return Choice(
        cache_bytes=cache_bytes_of(CHOSEN, capacity_rows, ROW_BYTES, ROWS),
        capacity_rows=capacity_rows,
        placement="shp",
        resident_rows=10,
        policy=CHOSEN,
        predicted=Predicted(0.25, 0.2, 0.3, 0.5, 0.1),
        runner_up=("shp, lru + none", 0.3),
        confidence=0.8,
        reason="it reads less",
    )


def plan() -> Plan:
    points = (PlannedPoint(100, FEW, 0.5), PlannedPoint(2500, MANY, 0.2))
    tables = {"item": TablePlan(points, 1000, choice()), "user": TablePlan()}
    return Plan(PLAN_FORMAT, 1 << 20, 3, tables)


def bytes_of(capacity_rows: int, policy: Policy = FEW) -> int:
    return cache_bytes_of(policy, capacity_rows, ROW_BYTES, ROWS)


def test_the_nearest_amount_of_dram_decides() -> None:
    table = TablePlan((PlannedPoint(100, FEW, 0.5), PlannedPoint(2500, MANY, 0.2)))

    def policy(cache_bytes: int) -> Policy:
        return table.policy_for(cache_bytes, ROW_BYTES, ROWS)

    assert policy(0) == FEW
    assert policy(bytes_of(450)) == FEW  # nearest by ratio: the middle is 500
    assert policy(bytes_of(550)) == MANY
    assert policy(bytes_of(ROWS, WHOLE) - 1) == MANY


def test_where_all_rows_fit_nothing_is_noted_of_them() -> None:
    points = (PlannedPoint(100, FEW, 0.5), PlannedPoint(2500, MANY, 0.2))
    all_bytes = bytes_of(ROWS, WHOLE)
    assert TablePlan(points).policy_for(all_bytes, ROW_BYTES, ROWS) == WHOLE
    assert TablePlan().policy_for(1 << 40, ROW_BYTES, ROWS) == WHOLE
    # Unless a caller chose, or the plan did for just this DRAM.
    by_caller = TablePlan((PlannedPoint(ROWS, MANY, None),))
    assert by_caller.policy_for(1 << 40, ROW_BYTES, ROWS) == MANY
    made = choice(ROWS)
    assert TablePlan(points, 10, made).policy_for(made.cache_bytes, ROW_BYTES, ROWS) == CHOSEN


def test_the_choice_is_obeyed_for_just_the_dram_it_was_made_for() -> None:
    made = choice(300)
    # The same bytes hold other numbers of rows under other policies.
    rival = PlannedPoint(capacity_for(FEW, made.cache_bytes, ROW_BYTES, ROWS), FEW, 0.4)
    table = TablePlan((rival,), 10, made)
    assert table.policy_for(made.cache_bytes, ROW_BYTES, ROWS) == CHOSEN
    assert capacity_for(CHOSEN, made.cache_bytes, ROW_BYTES, ROWS) == 300


def test_without_a_plan_no_neighbour_enters() -> None:
    assert TablePlan().policy_for(1 << 20, ROW_BYTES, ROWS) == Policy("lru", Admission("none"))
    assert Admission().least_heat == heat.NONE
    assert TablePlan().curve(ROW_BYTES, ROWS) == []


def test_a_curve_is_bytes_and_reads_of_the_whole_log() -> None:
    table = plan().tables["item"]
    expected = [(bytes_of(100), 500.0), (bytes_of(2500, MANY), 200.0)]
    assert table.curve(ROW_BYTES, ROWS) == expected
    chosen_by_a_caller = TablePlan((PlannedPoint(100, FEW, None),), 1000)
    assert chosen_by_a_caller.curve(ROW_BYTES, ROWS) == []


def test_a_plan_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan().write(path)
    assert Plan.read(path) == plan()
    plan().write(path)  # over an old one
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_file_is_versioned_for_people_and_says_why(tmp_path: Path) -> None:
    plan().write(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert max(map(len, text.splitlines())) < 100
    read = json.loads(text)
    assert read["format"] == PLAN_FORMAT
    why = read["tables"]["item"]["choice"]
    assert why["predicted"]["reads_per_lookup"] == 0.25
    assert why["predicted"]["lower_bound"] == 0.1
    assert why["runner_up"] == ["shp, lru + none", 0.3]
    assert (why["confidence"], why["reason"]) == (0.8, "it reads less")
    assert plan().summary() == [{"table": "item", **msgspec.to_builtins(choice())}]


def _set(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(read: dict[str, Any]) -> None:
        inner: Any = read
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


ITEM: tuple[str | int, ...] = ("tables", "item")


@pytest.mark.parametrize(
    "change",
    [
        _set("format", value=0),
        _set("cache_bytes", value=-1),
        _set("seed", value=-1),
        _set("surplus", value=1),
        _set(*ITEM, "lookups", value=-1),
        _set(*ITEM, "points", 0, "capacity_rows", value=-1),
        _set(*ITEM, "points", 0, "capacity_rows", value=1 << 32),
        _set(*ITEM, "points", 0, "capacity_rows", value="many"),
        _set(*ITEM, "points", 1, "policy", "admission", "threshold", value=None),
        _set(*ITEM, "points", 1, "policy", "admission", "threshold", value=-5),
        _set(*ITEM, "points", 1, "policy", "admission", "rule", value="some"),
        _set(*ITEM, "choice", "policy", "eviction", value="fifo"),
        _set(*ITEM, "choice", "policy", "half_life", value=0.0),
        _set(*ITEM, "choice", "policy", "half_life", value=1e300),
        _set(*ITEM, "choice", "policy", "seed_weight", value=-1.0),
        _set(*ITEM, "choice", "cache_bytes", value=-1),
        _set(*ITEM, "choice", "resident_rows", value=-1),
        _set(*ITEM, "choice", "placement", value=None),
    ],
)
def test_numbers_out_of_range_are_a_damaged_plan(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path = tmp_path / "plan.json"
    plan().write(path)
    read = json.loads(path.read_text())
    change(read)
    path.write_text(json.dumps(read))
    with pytest.raises(FormatError, match=r"plan\.json: not a plan"):
        Plan.read(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"format": "1"}', b"\xff\xfe", b"1"])
def test_a_damaged_file_is_no_plan(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(FormatError, match="not a plan"):
        Plan.read(tmp_path / "plan.json")


def test_a_newer_format_is_named_whatever_else_it_holds(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"format": PLAN_FORMAT + 1, "new": []}))
    with pytest.raises(FormatError, match="newer than this release"):
        Plan.read(tmp_path / "plan.json")


@pytest.mark.parametrize("name", ["plam.json", "."])
def test_a_mistyped_path_is_an_input_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no plan can be read there"):
        Plan.read(tmp_path / name)


@pytest.mark.parametrize("name", ["missing/plan.json", "directory"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory" / "kept").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="cannot be written"):
        plan().write(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_admissions_as_kernels_take_them() -> None:
    counts = np.array([0, 1, 5, 6, 127, 128, 1000])
    hot = heat.heat_of_counts(counts)
    for threshold in (0, 1, 5, 100):
        admission = parse_admission("threshold", threshold)
        assert ((hot >= admission.least_heat) == (counts > threshold)).all()
        assert str(admission) == f"threshold {threshold}"
    assert parse_admission("all", None).least_heat == heat.NONE


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        ("some", None),
        ("all", 1),
        ("none", 0),
        ("threshold", None),
        ("threshold", -1),
        ("threshold", 1.5),
    ],
)
def test_contradictions_are_refused(rule: str, threshold: int | None) -> None:
    with pytest.raises(InputError):
        parse_admission(rule, threshold)


@pytest.mark.parametrize(
    "policy",
    [
        "lru",
        Policy("fifo"),  # type: ignore[arg-type]
        Policy(half_life=0.0),
        Policy(half_life=float("nan")),
        Policy(seed_weight=-1.0),
        Policy("lru", Admission("threshold")),
        Policy("lru", Admission("all", 3)),
    ],
)
def test_policies_that_are_none_are_refused(policy: Any) -> None:
    with pytest.raises(InputError):
        asked_policy(policy, None, None)


def test_a_policy_is_given_in_full_or_in_short() -> None:
    assert asked_policy(None, None, None) is None
    assert asked_policy(None, "threshold", 5) == MANY
    assert asked_policy(MANY, None, None) == MANY
    with pytest.raises(InputError, match="not both"):
        asked_policy(MANY, "all", None)
    with pytest.raises(InputError, match="no admission was named"):
        asked_policy(None, None, 5)
