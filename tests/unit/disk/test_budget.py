"""The budget that what is written is held against: refused before, counted as it goes."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.disk import budget, ledger
from bandana_kv.disk.ledger import DAY_S, Entry
from bandana_kv.errors import (
    FormatError,
    InputError,
    StoreNotFoundError,
    WriteBudgetError,
)

ROWS = np.arange(3200, dtype=np.float32).reshape(100, 32)
NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
MIB = 1 << 20


def entry(age_s: float = 0.0, handed: int = MIB, **more: object) -> Entry:
    fields = {"kind": "load", "version": 1, "tables": ("user",), "device_bytes": None}
    return Entry(time=NOW - age_s, handed_bytes=handed, seconds=1.0, **{**fields, **more})


def lines(root: Path) -> list[bytes]:
    return (root / "ledger.jsonl").read_bytes().splitlines()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter="blockfile")
    (tmp_path / "ledger.jsonl").unlink()
    return tmp_path


def test_a_load_over_the_budget_is_refused_before_anything_is_written(store: Path) -> None:
    for _ in range(2):
        bandana_kv.load(store, {"user": ROWS}, adapter="blockfile", keep=9)
    bandana_kv.set_write_budget(store, 4096)
    before = sorted(store.rglob("*"))
    noted = lines(store)
    # keep=1 would drop versions first
    with pytest.raises(WriteBudgetError, match=r"write less at once, or raise it with bandana_kv"):
        bandana_kv.load(store, {"user": ROWS + 1}, adapter="blockfile", keep=1)
    assert sorted(store.rglob("*")) == before
    assert lines(store) == noted
    bandana_kv.set_write_budget(store, 1 << 30)
    assert bandana_kv.load(store, {"user": ROWS + 1}, adapter="blockfile") == 4
    bandana_kv.set_write_budget(store, None)
    bandana_kv.set_write_budget(store, None)
    assert budget.write_budget(store) is None
    assert not (store / "write-budget.json").exists()


def test_the_budget_rolls_over_24_hours_and_says_when(store: Path) -> None:
    bandana_kv.set_write_budget(store, 100 * MIB)
    ledger.note(store, entry(25 * 3600, 500 * MIB))
    ledger.note(store, entry(20 * 3600, 30 * MIB))
    ledger.note(store, entry(10 * 3600, 40 * MIB))
    budget.check_budget(store, 30 * MIB, now=NOW)
    with pytest.raises(WriteBudgetError) as refused:
        budget.check_budget(store, 31 * MIB, now=NOW)
    assert str(refused.value) == (
        f"{store}: 31.00 MiB are to be written, 70.00 MiB were in the last 24 hours, and the "
        "budget is 100.00 MiB a day; there is room from 2027-01-15 12:00:01 UTC on, or raise it "
        "with bandana_kv.set_write_budget or tools/inspect_store.py --set-budget"
    )
    budget.check_budget(store, 31 * MIB, now=NOW + 4 * 3600 + 1)
    # more must go than the oldest
    with pytest.raises(WriteBudgetError, match="room from 2027-01-15 22:00:01 UTC"):
        budget.check_budget(store, 61 * MIB, now=NOW)
    with pytest.raises(WriteBudgetError, match="write less at once"):
        budget.check_budget(store, 101 * MIB, now=NOW + 30 * DAY_S)
    budget.check_budget(store, 100 * MIB, now=NOW + 30 * DAY_S)


def test_an_allowance_counts_itself_and_others(store: Path) -> None:
    now = [0.0]
    allowance = budget.Allowance(store, lambda: now[0])
    allowance.take(1 << 60)
    allowance.give_back(1 << 60)
    bandana_kv.set_write_budget(store, 100)
    for _ in range(10):
        allowance.take(10)
    for _ in range(2):
        with pytest.raises(WriteBudgetError, match="110 bytes are to be written, 0 bytes were"):
            allowance.take(10)
    bandana_kv.set_write_budget(store, 150)
    allowance.take(10)  # looks again before it refuses
    ledger.note(store, Entry(time.time(), "update", None, (), 110, None, 1.0))
    allowance.give_back(110)
    allowance.take(20)
    ledger.note(store, Entry(time.time(), "load", 2, (), 20, None, 1.0))
    allowance.take(10)  # what others wrote is seen ten seconds later
    now[0] += 10.0
    with pytest.raises(WriteBudgetError, match="31 bytes are to be written, 130 bytes were"):
        allowance.take(1)


def test_an_update_over_the_budget_is_refused_and_nothing_changes(store: Path) -> None:
    bandana_kv.set_write_budget(store, 400)
    with bandana_kv.open(store) as opened:
        opened.update("user", [1, 2], ROWS[:2])
        with pytest.raises(WriteBudgetError, match="the budget is 400 bytes a day"):
            opened.update("user", [3], ROWS[:1])
        assert np.array_equal(opened.multi_get("user", [1, 2, 3]), [ROWS[0], ROWS[1], ROWS[3]])
        bandana_kv.set_write_budget(store, None)
        opened.update("user", [3], ROWS[:1])
        assert np.array_equal(opened.get("user", 3), ROWS[0])


def test_a_clock_that_was_wrong_does_not_block_for_ever(store: Path) -> None:
    bandana_kv.set_write_budget(store, 100 * MIB)
    ledger.note(store, entry(-365 * DAY_S, 100 * MIB))
    budget.check_budget(store, 100 * MIB, now=NOW)


def test_without_a_budget_the_ledger_is_not_even_read(store: Path) -> None:
    (store / "ledger.jsonl").mkdir()
    budget.check_budget(store, 1 << 60)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "1", True, math.inf])
def test_wrong_budgets_are_refused(store: Path, wrong: object) -> None:
    with pytest.raises(InputError, match="is not a number of bytes from 1 up"):
        bandana_kv.set_write_budget(store, wrong)
    assert not (store / "write-budget.json").exists()


def test_a_budget_needs_a_store_and_a_sound_file(tmp_path: Path, store: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        bandana_kv.set_write_budget(tmp_path / "no", 5)
    for damaged in (b"", b"{}", b'{"bytes_per_day": 0}', b'{"bytes_per_day": 1e400}', b"\xff"):
        (store / "write-budget.json").write_bytes(damaged)
        with pytest.raises(FormatError, match="set the budget again"):
            bandana_kv.load(store, {"user": ROWS}, adapter="blockfile")
    bandana_kv.set_write_budget(store, np.int64(1 << 30))
    assert json.loads((store / "write-budget.json").read_text()) == {"bytes_per_day": 1 << 30}
    assert bandana_kv.load(store, {"user": ROWS}, adapter="blockfile") == 2
