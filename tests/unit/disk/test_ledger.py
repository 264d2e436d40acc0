"""What was written: noted whole, folded, summed by day."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.disk import ledger, manifest
from bandana_kv.disk.ledger import DAY_S, Entry
from bandana_kv.errors import (
    FormatError,
)

ROWS = np.arange(3200, dtype=np.float32).reshape(100, 32)
NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
MIB = 1 << 20


def entry(age_s: float = 0.0, handed: int = MIB, **more: object) -> Entry:
    fields = {"kind": "load", "version": 1, "tables": ("user",), "device_bytes": None}
    return Entry(time=NOW - age_s, handed_bytes=handed, seconds=1.0, **{**fields, **more})


def lines(root: Path) -> list[bytes]:
    return (root / "ledger.jsonl").read_bytes().splitlines()


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb", "blockfile"])
def test_a_load_notes_its_blocks_and_arrays(tmp_path: Path, adapter: str) -> None:
    bandana_kv.load(tmp_path, {"user": ROWS, "item": ROWS[:7]}, adapter=adapter)
    bandana_kv.load(tmp_path, {"item": ROWS[:64]}, adapter=adapter)
    first, second = ledger.entries(tmp_path)
    new = manifest.read_current(tmp_path)
    payload = new.segments[1].payload_bytes[1]
    assert [table.blocks for table in new.tables.values()] == [4, 3]  # 31 rows a block
    beside = [
        sum(path.stat().st_size for path in (tmp_path / "segments" / f"{n:06d}").glob("*-?"))
        - sum(path.stat().st_size for path in (tmp_path / "segments" / f"{n:06d}").glob("blocks-?"))
        for n in (1, 2)
    ]
    assert min(beside) > 0
    assert (first.handed_bytes, second.handed_bytes) == (
        (4 + 1) * payload + beside[0],
        3 * payload + beside[1],
    )
    assert (first.kind, first.version, first.tables) == ("load", 1, ("user", "item"))
    assert (second.version, second.tables, second.count) == (2, ("item",), 1)
    assert 0 < first.seconds < 60
    assert first.time <= second.time
    for each in (first, second):  # where the kernel counts, an engine writes its blocks at least
        assert each.device_bytes is None or each.device_bytes >= 4096


def test_what_the_kernel_counts_is_the_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([1000, 5000, 7, 7, 7, 7, None, 3, 3, None])
    monkeypatch.setattr(ledger, "_process_bytes", lambda: next(counts))
    for handed, counted in ((3000, 4000), (3000, None), (0, 0), (1, None), (1, None)):
        made = ledger.Meter().entry("flush", 3, ["user"], handed)
        assert made.device_bytes == counted
        assert made.written_bytes == (handed if counted is None else counted)


def test_a_failed_load_is_noted_and_a_failed_first_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    store = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "switch_to", fail)
        with pytest.raises(RuntimeError):
            bandana_kv.load(store, {"user": ROWS}, adapter="blockfile")
        assert not store.exists()
    bandana_kv.load(store, {"user": ROWS}, adapter="blockfile")
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "switch_to", fail)
        with pytest.raises(RuntimeError):
            bandana_kv.load(store, {"user": ROWS + 1}, adapter="blockfile")
    sound, failed = ledger.entries(store)
    assert (failed.kind, failed.version, failed.tables) == ("load", None, ("user",))
    assert failed.handed_bytes >= 4 * 4096  # as it takes on disk
    assert sound.version == 1


def test_a_repair_notes_the_blocks_it_wrote(tmp_path: Path) -> None:
    engine = MemoryAdapter()
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter=engine)
    table = manifest.read_current(tmp_path).tables["user"]
    key = bandana_kv.adapters.block_keys(table.space, np.array([1, 3]))
    engine.put_many(key, np.zeros((2, engine.payload_bytes), np.uint8))
    bandana_kv.repair(tmp_path, lambda _, ids: ROWS[ids], adapter=engine)
    done = ledger.entries(tmp_path)[-1]
    assert (done.kind, done.version, done.tables) == ("repair", 1, ("user",))
    assert done.handed_bytes == 2 * engine.payload_bytes


def test_every_cut_and_every_flip_loses_its_own_line_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        ledger.note(tmp_path, entry(version=number))
    whole = (tmp_path / "ledger.jsonl").read_bytes()
    ends = np.cumsum([len(line) + 1 for line in whole.splitlines()])
    rng = np.random.default_rng(0)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "ledger.jsonl").write_bytes(damaged)
        found, bad = ledger.read_ledger(tmp_path)
        hit = int(np.searchsorted(ends, at, "right"))
        kept = {each.version for each in found}
        # a newline that turns into something else joins two lines
        assert kept >= {0, 1, 2} - {hit, hit + (at + 1 in ends)}
        assert all(each == entry(version=each.version) for each in found)
        assert bad or kept == {0, 1, 2}
    for at in range(int(ends[1]) + 1, len(whole) - 1):
        (tmp_path / "ledger.jsonl").write_bytes(whole[:at])
        ledger.note(tmp_path, entry(version=9))
        found, bad = ledger.read_ledger(tmp_path)
        assert ([each.version for each in found], bad) == ([0, 1, 9], 1)
    with caplog.at_level(logging.WARNING, "bandana_kv"):
        assert len(ledger.entries(tmp_path)) == 3
    assert "1 damaged lines were left out" in caplog.text


def test_a_damaged_ledger_stops_no_load(tmp_path: Path) -> None:
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter="blockfile")
    bandana_kv.set_write_budget(tmp_path, 1 << 30)
    (tmp_path / "ledger.jsonl").write_bytes(b"\x00\xff" * 999 + b"\n[" * 999 + b"[" * 99999)
    assert bandana_kv.load(tmp_path, {"user": ROWS}, adapter="blockfile") == 2
    assert [each.version for each in ledger.entries(tmp_path)] == [2]


def test_what_cannot_be_noted_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bandana_kv"):
        ledger.note(tmp_path / "no", entry())
        (tmp_path / "ledger.jsonl").mkdir()
        ledger.note(tmp_path, entry())
    assert caplog.text.count("cannot be noted in the ledger") == 2
    with pytest.raises(FormatError, match="cannot be read"):
        ledger.entries(tmp_path)
    assert ledger.entries(tmp_path / "no") == []


APPENDING = """
import sys
from pathlib import Path
from bandana_kv.disk import ledger
for number in range(300):
    made = ledger.Entry(1.8e9, "flush", number, (sys.argv[2],), 10, None, 1.0)
    ledger.note(Path(sys.argv[1]), made)
"""


def test_two_processes_and_two_threads_append_while_the_ledger_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = "from bandana_kv.disk import ledger; ledger._MOST_BYTES = 9000;"
    monkeypatch.setattr(ledger, "_MOST_BYTES", 9000)
    children = [
        subprocess.Popen([sys.executable, "-c", lower + APPENDING, str(tmp_path), name])
        for name in ("a", "b")
    ]

    def append() -> None:
        for number in range(300):
            ledger.note(tmp_path, entry(kind="flush", version=number, handed=10))

    threads = [threading.Thread(target=append) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait() for child in children] == [0, 0]
    found, damaged = ledger.read_ledger(tmp_path)
    assert damaged == 0
    assert sum(each.count for each in found) == 1200
    assert sum(each.handed_bytes for each in found) == 12000


def test_a_ledger_of_two_years_stays_small_and_loses_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_MOST_BYTES", 40_000)
    rng = np.random.default_rng(0)
    ages = [*np.sort(rng.random(2000) * 730 * DAY_S)[::-1].tolist(), 0.0]
    written = rng.integers(1, 1000, len(ages)).tolist()
    for number, (age, size) in enumerate(zip(ages, written, strict=True)):
        device = int(size) * 2 if number % 2 else None
        ledger.note(tmp_path, entry(age, int(size), device_bytes=device, kind="flush"))
    assert (tmp_path / "ledger.jsonl").stat().st_size < 41_000
    found = ledger.entries(tmp_path)
    assert sum(each.count for each in found) == 2001
    assert sum(each.handed_bytes for each in found) == sum(written)
    doubled = sum(size * (1 + number % 2) for number, size in enumerate(written))
    assert sum(each.written_bytes for each in found) == doubled
    assert [each.time for each in found] == sorted(each.time for each in found)


def test_folding_keeps_the_last_day_by_the_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # on the hour, 90 minutes, three days, and so on
    ages = [100 * DAY_S, 99 * DAY_S, 10 * DAY_S, 10 * DAY_S - 60, 5400, 5340, 1, 0]
    for age in ages[:-1]:
        ledger.note(tmp_path, entry(age))
    monkeypatch.setattr(ledger, "_MOST_BYTES", 100)
    ledger.note(tmp_path, entry(ages[-1]))
    found = ledger.entries(tmp_path)
    assert [(NOW - each.time, each.count) for each in found] == [
        (99 * DAY_S, 2),
        (10 * DAY_S - 60, 2),
        (5340.0, 2),
        (1.0, 1),
        (0.0, 1),
    ]
    assert (found[0].version, found[0].tables, found[-1].version) == (None, (), 1)


def test_written_per_day(tmp_path: Path) -> None:
    assert ledger.written_per_day(tmp_path, NOW) == (0, 0.0, 0.0, 0, 0, 0.0)
    ledger.note(tmp_path, entry(20 * DAY_S, 100 * MIB))
    ledger.note(tmp_path, entry(6 * DAY_S, 7 * MIB, device_bytes=14 * MIB))
    ledger.note(tmp_path, entry(3600, 7 * MIB))
    per_day = ledger.written_per_day(tmp_path, NOW)
    assert per_day.last_day_bytes == 7 * MIB
    assert per_day.week_bytes == 3 * MIB
    assert per_day.mean_bytes == pytest.approx(121 * MIB / 20)
    assert (per_day.total_bytes, per_day.measured_bytes) == (121 * MIB, 14 * MIB)
    assert per_day.days == 20.0


def test_a_young_ledger_is_taken_for_a_day_old() -> None:
    per_day = ledger.per_day([entry(60, 10), entry(0, 20)], NOW)
    assert (per_day.last_day_bytes, per_day.week_bytes, per_day.mean_bytes) == (30, 30.0, 30.0)
    per_day = ledger.per_day([entry(2 * DAY_S, 10), entry(0, 20)], NOW)
    assert (per_day.last_day_bytes, per_day.week_bytes, per_day.mean_bytes) == (20, 15.0, 15.0)


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb", "blockfile"])
def test_updates_and_flushes_are_noted(tmp_path: Path, adapter: str) -> None:
    bandana_kv.load(tmp_path, {"user": ROWS, "item": ROWS}, adapter=adapter)
    payload = manifest.read_current(tmp_path).segments[1].payload_bytes[1]
    with bandana_kv.open(tmp_path) as opened:
        opened.update("user", [1, 2, 99], ROWS[:3])
        opened.update("user", [1], ROWS[:1])
        opened.flush()
        opened.flush()
        opened.update("item", [5, 6], ROWS[:2])
    by_kind = [(each.kind, each.tables) for each in ledger.entries(tmp_path)[1:]]
    assert by_kind == [("update", ()), ("flush", ("user",)), ("update", ())]
    written, flushed, left = ledger.entries(tmp_path)[1:]
    assert (flushed.version, flushed.handed_bytes) == (1, 2 * payload)  # of rows 0-30, 93-99
    assert written.handed_bytes == 2 * 40 + 4 * (4 + 128)
    assert left.handed_bytes == 40 + 2 * (4 + 128)
    assert (written.device_bytes, left.device_bytes) == (None, None)
