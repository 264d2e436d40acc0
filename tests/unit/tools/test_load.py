"""The command that loads tables, run as its documentation says, and its failures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.tools import console
from bandana_kv.tools.load_tables import main

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "load_tables.py"
ROWS = np.random.default_rng(0).random((300, 32), np.float32)
LOG = bandana_kv.AccessLog.from_requests(np.random.default_rng(1).integers(0, 300, (50, 6)))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", ROWS)
    LOG.write(tmp_path / "log.npz")
    return tmp_path


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("adapter", ["lmdb", "rocksdb"])
def test_run_by_path_from_anywhere_it_loads_what_is_served(inputs: Path, adapter: str) -> None:
    table, log = ["--table", "user=rows.npy"], ["--log", "user=log.npz"]
    done = run(inputs, *table, *log, "--adapter", adapter, "--placement", "shp", "DIR")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "DIR: version 1 is served, with user new\n"
    with bandana_kv.open(inputs / "DIR", cache_bytes=9000) as store:
        assert np.array_equal(store.multi_get("user", np.arange(300)), ROWS)
        store.check()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--table", "user=nowhere.npy", "DIR"], "nowhere.npy: cannot be opened"),
        (["--table", "user=rows.npy", "--log", "user=nowhere.npz", "DIR"], "no such file"),
        (["--table", "user=rows.npy", "--log", "usr=log.npz", "DIR"], "'usr'"),
        (["--table", "user=rows.npy", "--adapter", "sqlite", "DIR"], "no adapter 'sqlite'"),
        (["--table", "user=rows.npy", "--placement", "x", "DIR"], "placement 'x' is unknown"),
        (["--table", "user=rows.npy", "--threshold", "3", "DIR"], "no admission was named"),
        (["--table", "user=rows.npy", "rows.npy"], "cannot be made a store directory"),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing_behind(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(inputs)
    before = sorted(inputs.rglob("*"))
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert sorted(inputs.rglob("*")) == before


def test_a_failure_has_no_traceback_in_a_process_of_its_own(inputs: Path) -> None:
    done = run(inputs, "--table", "user=log.npz", "DIR")
    assert (done.returncode, done.stdout) == (1, "")
    said = "holds no array of shape (rows, dim), only offsets (51,), ids (300,)"
    assert done.stderr == f"error: log.npz: {said}\n"


@pytest.mark.parametrize("table", ["user", "=rows.npy", "user="])
def test_options_by_table_need_both_sides(table: str) -> None:
    done = CliRunner().invoke(main, ["--table", table, "DIR"])
    assert done.exit_code == 2
    assert "is not of the form table=value" in done.stderr


def test_an_engine_that_ends_with_the_command_is_refused(inputs: Path) -> None:
    done = run(inputs, "--table", "user=rows.npy", "--adapter", "memory", "DIR")
    assert done.returncode == 2
    assert "name an engine with files" in done.stderr
    assert not (inputs / "DIR").exists()


def test_a_table_named_twice_is_refused() -> None:
    done = CliRunner().invoke(main, ["--table", "a=1.npy", "--table", "a=2.npy", "DIR"])
    assert done.exit_code == 2
    assert "'a' is given twice" in done.stderr


def test_errors_of_the_system_are_one_line_too() -> None:
    @click.command()
    @console.errors_named
    def command() -> None:
        raise OSError("two\nlines")

    done = CliRunner().invoke(command)
    assert (done.exit_code, done.stderr) == (1, "error: two lines\n")


def test_the_bar_draws_a_line_a_stage_and_gives_the_cursor_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.Bar() as bar:
        bar.start("place", 2, "levels")
        bar.advance(2)
        bar.finish()
        bar.start("load user", 10, "blocks")
        bar.advance(3)  # and the load fails
    drawn = capsys.readouterr().err
    assert "load user" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")
    assert "place" not in drawn[drawn.index("load user") :]


def test_the_bar_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Bar() as bar:
        bar.advance(1)
        bar.start("place", 2, "levels")
        bar.finish()
    assert capsys.readouterr().err.strip() == ""


def test_rows_in_fewer_bytes_and_keys_on_the_command_line(inputs: Path) -> None:
    names = [f"user-{number}" for number in range(300)]
    (inputs / "names.txt").write_text("\n".join(names) + "\n")
    lines = (" ".join(names[id] for id in LOG.request(r)) for r in range(LOG.requests))
    (inputs / "log.txt").write_text("\n".join(lines) + "\n")
    tables = ["--table", "user=rows.npy", "--table", "item=rows.npy", "--keys", "user=names.txt"]
    forms = ["--store-as", "float16", "--store-as", "user=int8-rowwise", "--log", "user=log.txt"]
    done = run(inputs, *tables, *forms, "--adapter", "blockfile", "DIR")
    assert done.returncode == 0, done.stderr
    with bandana_kv.open(inputs / "DIR") as store:
        assert np.allclose(store.multi_get("user", names[7:9]), ROWS[7:9], atol=0.003)
        assert np.array_equal(store.multi_get("item", [7]), ROWS[[7]].astype("f2").astype("f4"))
        assert store.multi_get_raw("user", names[:1]).shape == (1, 40)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--store-as", "float16", "--store-as", "bfloat16"], "float16 and bfloat16"),
        (["--store-as", "int2"], "no codec 'int2'"),
        (["--keys", "item=rows.npy"], "'item', which is not loaded"),
        (["--keys", "user=rows.npy"], "are no keys"),
        (["--keys", "user=nowhere.txt"], "nowhere.txt"),
    ],
)
def test_forms_and_keys_that_cannot_be(inputs: Path, arguments: list[str], said: str) -> None:
    done = run(inputs, "--table", "user=rows.npy", *arguments, "DIR")
    assert done.returncode != 0
    assert said in done.stderr
    assert not (inputs / "DIR" / "CURRENT").exists()
