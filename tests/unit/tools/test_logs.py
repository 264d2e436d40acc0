"""How command lines read logs: the same options everywhere, and recordings by the table's name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import bandana_kv
from bandana_kv.tools import (
    assess,
    demo,
    load_tables,
    migrate,
    place,
    place_anew,
    plan_cache,
    profile_device,
)

ROWS = np.random.default_rng(0).random((200, 8), np.float32)
TOOLS = [assess, demo, load_tables, migrate, place, place_anew, plan_cache, profile_device]


def run(tool: object, *arguments: object) -> Result:
    return CliRunner().invoke(tool.main, [str(each) for each in arguments])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", ROWS)
    return tmp_path / "rows.npy"


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__.rpartition(".")[2])
def test_all_tools_have_the_same_options(tool: object) -> None:
    said = run(tool, "--help").output
    for option in (
        "--log-format",
        "--column",
        "--separator",
        "--header",
        "--quoting",
        "--bad-rows",
    ):
        assert option in said
    assert "--log-table" in said


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    path = tmp_path / "odd.csv"
    lines = [f"{each // 4};x{each % 3};{each * 7 % 200}" for each in range(400)]
    lines[17] = "4;x2;none"
    path.write_text("\n".join(lines))
    return path


def test_an_odd_log_is_placed_by(odd: Path, tmp_path: Path) -> None:
    how = ["--column", "request=1", "--column", "id=3", "--no-header", "--separator", ";"]
    command = ["--log", odd, "--rows", 200, "--out", tmp_path / "placed", *how]
    failed = run(place, *command)
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert "line 18" in failed.stderr
    assert not (tmp_path / "placed").exists()
    done = run(place, *command, "--bad-rows", "skip")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "placed").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--column", "ids=3"], "ROLE=NAME"),
        (["--column", "id"], "ROLE=NAME"),
        (["--separator", ""], "cannot separate fields"),
        (["--bad-rows", "drop"], "'drop' is not one of"),
        (["--log-format", "xml"], "'xml' is not one of"),
    ],
)
def test_wrong_options(odd: Path, tmp_path: Path, options: list[str], said: str) -> None:
    done = run(place, "--log", odd, "--out", tmp_path / "placed", *options)
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A recording of a store with two tables."""
    bandana_kv.load(tmp_path / "of", {"user": ROWS, "item": ROWS})
    with bandana_kv.open(tmp_path / "of") as store, store.record(tmp_path / "recorded"):
        for each in range(300):
            store.multi_get("user", [each % 200, (each + 1) % 200])
            store.multi_get("item", [(7 * each) % 200])
    return tmp_path / "recorded"


def test_the_options_name_says_which_table_of_a_recording(
    recorded: Path, rows: Path, tmp_path: Path
) -> None:
    logs = ["--log", f"user={recorded}", "--log", f"item={recorded}"]
    tables = ["--table", f"user={rows}", "--table", f"item={rows}"]
    done = run(plan_cache, *logs, *tables, "--cache-bytes", "4k", "--out", tmp_path / "plan.json")
    assert done.exit_code == 0, done.stderr
    assert set(json.loads((tmp_path / "plan.json").read_text())["tables"]) == {"user", "item"}
    done = run(load_tables, tmp_path / "new", *tables, *logs)
    assert done.exit_code == 0, done.stderr
    with bandana_kv.open(tmp_path / "new") as store:
        assert np.array_equal(store.multi_get("item", [5]), ROWS[[5]])


def test_of_tools_for_one_table(recorded: Path, tmp_path: Path) -> None:
    command = ["--log", recorded, "--rows", 200, "--out", tmp_path / "placed"]
    failed = run(place, *command)
    assert failed.exit_code == 1
    assert "--log-table" in failed.stderr
    done = run(place, *command, "--log-table", "item")
    assert done.exit_code == 0, done.stderr
    failed = run(place, *command, "--log-table", "movie")
    assert failed.exit_code == 1
    assert "movie" in failed.stderr
    assert "item" in failed.stderr


@pytest.mark.parametrize("name", ["[/red]", "[bold]", "a[link]b", "{x}", "%s"])
def test_names_are_printed_as_they_are(rows: Path, tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "log.npz", offsets=np.arange(0, 401, 4), ids=np.arange(400) % 200)
    command = [tmp_path / "s", "--table", f"{name}={rows}", "--log", f"{name}={tmp_path}/log.npz"]
    done = run(load_tables, *command)
    assert done.exit_code == 0, done.stderr
    assert name in done.output
    command = ["--cache-bytes", "64K", "--table", f"{name}={rows}"]
    command += ["--log", f"{name}={tmp_path}/log.npz", "--out", tmp_path / "plan.json"]
    done = run(plan_cache, *command)
    assert done.exit_code == 0, done.stderr
    assert name in done.output
