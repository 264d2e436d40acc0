"""The command that shows a store: known figures, as JSON and for people, changing nothing."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.care.inspection import Rating, inspect
from bandana_kv.disk import ledger, manifest
from bandana_kv.disk.journal import Journal
from bandana_kv.disk.ledger import DAY_S, Entry
from bandana_kv.disk.lock import writer_lock
from bandana_kv.errors import InputError
from bandana_kv.plan import choose_plan
from bandana_kv.tools.inspect_store import main

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "inspect_store.py"
ROWS = np.arange(19200, dtype=np.float32).reshape(600, 32)
LOG = bandana_kv.AccessLog.from_requests(np.random.default_rng(1).integers(0, 600, (400, 8)))
GIB = 1 << 30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1: a planned user table; 2 adds another; 3 was rolled back from."""
    path = tmp_path_factory.mktemp("made") / "store"
    plan = choose_plan({"user": ROWS}, {"user": LOG}, 20_000)
    bandana_kv.load(path, {"user": ROWS}, {"user": LOG}, plan=plan, replicate=0.2)
    bandana_kv.load(path, {"[item]": ROWS[:62]}, adapter="blockfile", keep=3)
    bandana_kv.load(path, {"[item]": ROWS[:93]}, adapter="blockfile", keep=3)
    bandana_kv.rollback(path)
    (path / "ledger.jsonl").unlink()
    now = time.time()
    for days, size, device in ((20, 100, None), (6, 7, 14), (0.5, 7, None)):
        entry = Entry(now - days * DAY_S, "load", 1, ("user",), size * GIB, device, 1.0)
        if device is not None:
            entry = Entry(now - days * DAY_S, "flush", 1, ("user",), size * GIB, device * GIB, 1.0)
        ledger.note(path, entry)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


def report(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_versions_tables_and_plan(store: Path) -> None:
    found = report(store)
    assert list(found) == ["path", "current", "versions", "tables", "segments", "space", "wear"]
    assert found["current"] == 2
    listed = [(each["number"], each["current"], each["tables"]) for each in found["versions"]]
    both = ["user", "[item]"]
    assert listed == [(1, False, ["user"]), (2, True, both), (3, False, both)]
    user, item = found["tables"]
    table = manifest.read_current(store).tables["user"]
    assert (user["name"], user["rows"], user["dim"], user["dtype"]) == ("user", 600, 32, "<f4")
    assert (user["copies"], user["blocks"], user["pages"]) == (table.copies, table.blocks, 1)
    assert table.copies > 0
    assert (user["adapter"], user["segment"], item["segment"]) == ("lmdb", 1, 2)
    payload = manifest.read_current(store).segments[1].payload_bytes[1]
    assert user["block_bytes"] == table.blocks * payload
    chosen = table.plan.choice
    assert chosen is not None
    assert user["policies"] == [str(chosen.policy)]
    assert user["chosen"]["cache_bytes"] == chosen.cache_bytes
    assert user["chosen"]["predicted"]["reads_per_lookup"] == chosen.predicted.reads_per_lookup
    assert (item["policies"], item["chosen"], item["blocks"]) == (["lru + none"], None, 2)


def disk(path: Path) -> int:
    return sum(512 * each.stat().st_blocks for each in path.rglob("*") if each.is_file())


def test_space_and_what_could_be_freed(store: Path) -> None:
    litter = store / "segments" / "000009" / "blocks-1"
    litter.mkdir(parents=True)
    (litter / "data").write_bytes(b"x" * 9000)
    journal = Journal(store)
    journal.append(1, np.array([5], np.uint32), np.zeros((1, 128), np.uint8))
    found = report(store)
    used = [(each["segment"], each["versions"]) for each in found["segments"]]
    assert used == [(1, [1, 2, 3]), (2, [2]), (3, [3]), (9, [])]
    for each in found["segments"]:
        assert each["disk_bytes"] == disk(store / "segments" / f"{each['segment']:06d}")
    space = found["space"]
    assert space["litter_bytes"] == disk(litter) >= 9000
    assert space["other_versions_bytes"] == disk(store / "segments" / "000003") > 0
    assert space["disk_bytes"] == disk(store)
    assert space["journal_bytes"] == journal.size_bytes == 16 + 40 + 4 + 128
    journal.close()


def test_wear_is_counted_from_the_ledger(store: Path) -> None:
    wear = report(store, "--device-bytes", "1GiB", "--rating-dwpd", 10)["wear"]
    assert wear["last_day_bytes"] == 7 * GIB
    assert wear["week_bytes"] == 3 * GIB  # (14 + 7) / 7
    assert wear["mean_bytes"] == pytest.approx(121 * GIB / 20, rel=1e-3)
    assert (wear["total_bytes"], wear["measured_bytes"]) == (121 * GIB, 14 * GIB)
    assert (wear["entries"], wear["damaged_lines"]) == (3, 0)
    assert (wear["device_bytes"], wear["device_bytes_given"]) == (GIB, True)
    assert wear["drive_writes_per_day"] == 3.0
    assert wear["rated_bytes"] == int(10 * 5 * 365.25 * GIB)
    assert wear["years_left"] == pytest.approx((10 * 5 * 365.25 - 121) / 3 / 365.25)
    assert wear["budget_bytes"] is wear["budget_left_bytes"] is None
    by_tbw = report(store, "--rating-tbw", 1)["wear"]
    assert by_tbw["rated_bytes"] == 10**12
    assert by_tbw["years_left"] == pytest.approx((10**12 / GIB - 121) / 3 / 365.25)
    size = os.statvfs(store)
    assert by_tbw["device_bytes"] == size.f_blocks * size.f_frsize
    assert not by_tbw["device_bytes_given"]
    unrated = report(store)["wear"]
    assert unrated["rated_bytes"] is unrated["years_left"] is None


def test_a_worn_and_an_idle_drive(store: Path) -> None:
    assert inspect(store, rating=Rating(tbw=0.1)).wear.years_left == 0.0  # 121 GiB are more
    (store / "ledger.jsonl").unlink()
    wear = inspect(store, rating=Rating(tbw=0.1)).wear
    assert (wear.years_left, wear.drive_writes_per_day, wear.days) == (None, 0.0, 0.0)
    done = CliRunner().invoke(main, [str(store), "--rating-tbw", "1"])
    assert "no writes" in done.stdout


@pytest.mark.parametrize(
    "rating", [Rating(), Rating(1.0, 1.0), Rating(0.0), Rating(dwpd=1.0, warranty_years=0.0)]
)
def test_a_rating_that_is_none_is_refused(store: Path, rating: Rating) -> None:
    with pytest.raises(InputError, match="rate a drive"):
        inspect(store, rating=rating)


def test_a_budget_is_set_shown_and_lifted(store: Path) -> None:
    wear = report(store, "--set-budget", "10GiB")["wear"]
    assert (wear["budget_bytes"], wear["budget_left_bytes"]) == (10 * GIB, 3 * GIB)
    assert report(store)["wear"]["budget_bytes"] == 10 * GIB
    assert report(store, "--set-budget", "5GiB")["wear"]["budget_left_bytes"] == 0
    assert report(store, "--set-budget", "none")["wear"]["budget_bytes"] is None
    for wrong in ("0", "-5", "lots"):
        done = CliRunner().invoke(main, [str(store), f"--set-budget={wrong}"])
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)


def test_for_people_at_100_columns(store: Path) -> None:
    ledger.note(store, Entry(time.time(), "flush", 2, ("user",), 1, None, 0.1))
    with open(store / "ledger.jsonl", "ab") as file:
        file.write(b"torn")
    arguments = [str(SCRIPT), "store", "--rating-dwpd", "1", "--device-bytes", "1TiB"]
    done = subprocess.run(
        [sys.executable, *arguments, "--set-budget", "10GiB"],
        cwd=store.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    tables = [line for line in done.stdout.splitlines() if not line.startswith(("on disk", "DRAM"))]
    assert max(map(len, tables)) <= 100
    said = " ".join(done.stdout.split())
    for words in (
        "2 current 20",
        "[item] 62 0 32 <f4 2 1 8.0",
        "[item] identity lru + none - -",
        "3 blockfile",
        "versions 1, 2, 3",
        "0 bytes of journal",
        "written, last 24 hours 7.00 GiB ledger of 20.0 days",
        "written a day, last 7 days 3.00 GiB",
        "of it measured 14.00 GiB by the kernel",
        "of it assumed 107.00 GiB as handed to engines",
        "capacity 1.00 TiB given",
        "drive writes per day 0.0029 last 7 days",
        "rated for, in all 1,826.25 TiB given",
        "years left over 100",
        "budget for 24 hours 10.00 GiB given",
        "left of it 3.00 GiB",
        "1 damaged lines of the ledger were left out",
    ):
        assert words in said, (words, done.stdout)


def test_looking_changes_nothing_even_where_nothing_can_be_written(store: Path) -> None:
    def state() -> list[tuple[Path, int, int]]:
        found = ((path, path.stat()) for path in sorted(store.rglob("*")))
        return [(path, seen.st_mtime_ns, seen.st_size) for path, seen in found]

    directories = [store, *(path for path in store.rglob("*") if path.is_dir())]
    before = state()
    try:
        for path in directories:
            path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        with writer_lock(store), bandana_kv.open(store):
            report(store, "--rating-tbw", 5)
    finally:
        for path in directories:
            path.chmod(stat.S_IRWXU)
    # LMDB keeps its table of readers, and that is the reader's, not ours
    assert [each for each in state() if each not in before and each[0].name != "lock.mdb"] == []


def test_a_version_that_is_damaged_is_shown_and_a_current_one_is_an_error(store: Path) -> None:
    (store / "manifests" / "000001.json").write_text("{}")
    first = report(store)["versions"][0]
    assert (first["number"], first["tables"]) == (1, [])
    assert "000001.json: damaged" in first["damage"]
    done = CliRunner().invoke(main, [str(store)])
    assert "000001.json: damaged" in done.stdout
    (store / "manifests" / "000002.json").write_text("{}")
    done = CliRunner().invoke(main, [str(store)])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "000002.json: damaged" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["no"], 1, "no does not exist"),
        (["."], 1, "holds no store"),
        (["store", "--device-bytes", "0"], 1, "is not a number of bytes"),
        (["store", "--rating-dwpd", "-1"], 1, "by a number above 0"),
        (["store", "--rating-dwpd", "nan"], 1, "by a number above 0"),
        (["no", "--set-budget", "1GiB"], 1, "no holds no store"),
        (["store", "--device-bytes", "big"], 2, "is not a size"),
        (["store", "--rating-dwpd", "1", "--rating-tbw", "1"], 2, "and not both"),
    ],
)
def test_errors_are_one_line(
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    said: str,
) -> None:
    monkeypatch.chdir(store.parent)
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert status == 2 or done.stderr.count("\n") == 1


def test_a_hostile_ledger_and_budget(store: Path) -> None:
    (store / "write-budget.json").write_text("[]")
    done = CliRunner().invoke(main, [str(store)])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "set the budget again" in done.stderr
    assert report(store, "--set-budget", "1GiB")["wear"]["budget_bytes"] == GIB
    (store / "ledger.jsonl").write_bytes(b"[" * 100_000 + b"\n\xff\n\n{}\n")
    wear = report(store)["wear"]
    assert (wear["entries"], wear["damaged_lines"]) == (0, 3)
