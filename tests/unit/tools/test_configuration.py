"""A file of options: what it says counts, the command line goes before it, errors name the line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.disk import manifest
from bandana_kv.tools.command_line import main

ROWS = np.random.default_rng(0).random((300, 32), np.float32)
LOG = bandana_kv.AccessLog.from_requests(np.random.default_rng(1).integers(0, 300, (200, 6)))
CONFIG = """\
directory = "../store"
adapter = "blockfile"
placement = "popularity"
plan = "plan.json"
cache-bytes = "8KiB"
keep = 3

[tables]
user = "../rows.npy"

[logs]
user = "../log.npz"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", ROWS)
    np.save("few.npy", ROWS[:31])
    LOG.write(Path("log.npz"))
    Path("conf").mkdir()
    path = Path("conf/tables.toml")
    path.write_text(CONFIG)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0), *capsys.readouterr()


def test_paths_are_relative_to_the_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, error = run(capsys, "plan", "--config", str(config), "--json")
    assert status == 0, error
    assert json.loads(said)["cache_bytes"] == 8192
    assert Path("conf/plan.json").exists()
    status, said, error = run(capsys, "load", "--config", str(config), "--json")
    assert (status, json.loads(said)) == (0, {"version": 1, "tables": ["user"]}), error
    held = manifest.read_current(Path("store").absolute())
    assert held.segments[1].adapter == "blockfile"
    assert held.tables["user"].plan.choice is not None
    status, said, error = run(capsys, "watch", "--config", str(config), "--json")
    assert (status, list(json.loads(said))) == (0, ["user"]), error


def test_the_command_line_goes_before_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(CONFIG.replace('plan = "plan.json"\n', ""))
    more = ("--table", "item=few.npy", "--placement", "identity", "other")
    status, said, error = run(capsys, "load", *more, "--config", str(config), "--json")
    assert (status, json.loads(said)["tables"]) == (0, ["user", "item"]), error
    held = manifest.read_current(Path("other").absolute())
    assert held.tables["user"].placement == "identity"
    assert not Path("store").exists()
    status, said, error = run(capsys, "load", "--table", "user=few.npy", "--config", str(config))
    assert status == 1  # the log is of more rows
    assert "but the table has 31 rows" in error


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("keep = 3", "kep = 3", "line 6: there is no key 'kep'; did you mean 'keep'?"),
        ("keep = 3", 'keep = "three"', "line 6: 'keep' is to be a whole number"),
        ("keep = 3", "keep = true", "line 6: 'keep' is to be a whole number"),
        ('user = "../rows.npy"', "user = 3", "line 9: 'tables.user' is to be a path"),
        ('user = "../log.npz"', "user = [1]", "line 12: 'logs.user' is to be a path"),
        ("[logs]", "[loggs]", "line 11: there is no key 'loggs'; did you mean 'logs'?"),
        ("keep = 3", "tables.item = 1", "line 6: 'tables.item' is to be a path"),
        ("keep = 3", "= 3", "is no TOML: Invalid statement (at line 6, column 1)"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(
    config: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, said: str
) -> None:
    text = CONFIG.replace(before, after)
    if after.startswith("tables."):
        text = text.replace('[tables]\nuser = "../rows.npy"\n', "")
    config.write_text(text)
    status, output, error = run(capsys, "load", "--config", str(config))
    assert (status, output) == (2, "")
    assert error.startswith("error: conf/tables.toml")
    assert said in error
    assert error.count("\n") == 1
    assert not Path("store").exists()


def test_names_within_braces_have_the_line_of_their_key(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text('directory = "s"\ntables = { user = 3 }\n')
    _, _, error = run(capsys, "load", "--config", str(config))
    assert "line 2: 'tables.user'" in error


def test_a_file_that_is_not_there_is_bad_usage(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run(capsys, "load", "--config", "nowhere.toml")
    assert (status, error) == (
        2,
        "error: nowhere.toml: cannot be read (No such file or directory)\n",
    )
