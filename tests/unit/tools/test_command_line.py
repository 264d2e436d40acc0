"""The one command line: each sub-command's help, a happy path, and errors in one line."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.assess.performance.costs import Costs, Parts
from bandana_kv.device import profiler
from bandana_kv.device.sweep import Effort
from bandana_kv.placement import Placement
from bandana_kv.tools import command_line, console
from bandana_kv.tools.command_line import _HOMES, main

COSTS = Costs(
    adapter="memory",
    row_bytes=128,
    block_bytes=4096,
    processors=2,
    threads=8,
    reads_at_once=128,
    alone=Parts(6.0, 100.0, 0.01, 1.0, 5.0),
    crowded=Parts(6.0, 110.0, 0.01, 0.5, 4.0),
    serial=Parts(5.0, 60.0, 0.05, 1.0, 1.0),
)
PROGRAM = Path(sys.executable).with_name("bandana-kv")
ROWS = np.random.default_rng(0).random((300, 32), np.float32)
LOG = bandana_kv.AccessLog.from_requests(np.random.default_rng(1).integers(0, 300, (200, 6)))
NAMES = [
    *("profile", "assess", "plan", "place", "load", "migrate", "export"),
    *("inspect", "verify", "versions", "update", "watch", "place-anew", "demo"),
]


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Runner:
    """Runs the command line in this process, in a directory of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Done:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return Done(int(ended.value.code or 0), *self._capsys.readouterr())

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.status == 0, done.err
        return json.loads(done.out)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Runner:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", ROWS)
    np.save("ids.npy", np.array([3, 299]))
    np.save("new.npy", ROWS[:2] + 1)
    LOG.write(Path("log.npz"))
    # So that what is printed is captured, also where the module was imported before.
    monkeypatch.setattr(console.out, "_file", None)
    return Runner(capsys)


@pytest.fixture
def store(run: Runner) -> str:
    bandana_kv.load("store", {"user": ROWS}, {"user": LOG}, adapter="blockfile")
    return "store"


def tool_json(name: str, *arguments: str) -> Any:
    """What the script beside prints for the same arguments."""
    tool = import_module(f"bandana_kv.tools.{_HOMES[name].module}")
    done = CliRunner().invoke(tool.main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_help_lists_all_without_importing_any() -> None:
    code = (
        "import sys, bandana_kv.tools.command_line as line\n"
        "try: line.main(['--help'])\n"
        "finally: print('numpy' in sys.modules, 'rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.split("Commands:\n")[1].splitlines()[:-1]]
    assert listed == [*NAMES, "completion"]
    assert done.stdout.endswith("False False\n")


def test_help_is_there_at_once() -> None:
    def seconds() -> float:
        """Of the processor, since this machine may be busy."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([PROGRAM, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_version_is_that_of_the_package(run: Runner) -> None:
    assert run("--version").out == f"bandana-kv, version {bandana_kv.__version__}\n"


@pytest.mark.parametrize("name", [*NAMES, "completion"])
def test_each_has_help_with_the_options_of_all(run: Runner, name: str) -> None:
    done = run(name, "--help")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"Usage: bandana-kv {name} ")
    assert "tools/" not in done.out
    if name != "completion":
        assert "--quiet" in done.out
        assert "--json" in done.out


def test_nothing_asked_for_is_bad_usage(run: Runner) -> None:
    done = run()
    assert (done.status, done.out) == (2, "")
    assert "Commands:" in done.err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("laod", 2, "No such command 'laod'"),
        ("load", 2, "Missing argument 'DIRECTORY'. Try 'bandana-kv load --help'."),
        ("load --tabel user=rows.npy store", 2, "No such option"),
        ("load --table user store", 2, "is not of the form table=value"),
        ("plan --log a=log.npz --cache-bytes many --out p", 2, "'many' is not a size"),
        ("load --table user=nowhere.npy new", 1, "nowhere.npy: cannot be opened"),
        ("load --table user=rows.npy --log user=nowhere.npz new", 1, "no such file"),
        ("inspect nowhere", 1, "nowhere does not exist"),
        ("verify nowhere", 1, "nowhere does not exist"),
        ("versions nowhere", 1, "nowhere does not exist"),
        ("versions store --rollback 7", 1, "keeps no 7"),
        ("export nowhere --table user --out out.npy", 1, "nowhere does not exist"),
        ("export store --table usr --out out.npy", 1, "no table 'usr'"),
        ("export store --table user --out rows.npy", 1, "is there already"),
        ("export store --table user --out out.csv", 1, "only .npy, .safetensors, .parquet files"),
        ("update store --table usr --ids ids.npy --rows new.npy", 1, "no table 'usr'"),
        ("update store --table user --ids no.npy --rows new.npy", 1, "no.npy: not a readable"),
        ("watch store --log usr=log.npz", 1, "no table 'usr'"),
        ("place-anew store --table user --placement nowhere", 1, "nowhere"),
        ("place-anew store --table user --placement p --log item=log.npz", 1, "p: "),
        ("migrate --from lmdb nowhere new --table user", 1, "nowhere"),
        ("place --log nowhere.npz --out placement", 1, "no such file"),
        ("place --log item=log.npz --table user=rows.npy --out p", 1, "names table 'item'"),
        ("profile nowhere", 1, "nowhere"),
        ("demo --log nowhere.npz", 1, "no such file"),
        (
            "assess --log user=log.npz --row-bytes 8 --dram-price 3 --nvm-price 1 --out r",
            1,
            "which",
        ),
        ("completion tcsh", 2, "Invalid value"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(
    run: Runner, store: str, arguments: str, status: int, said: str
) -> None:
    before = sorted(Path().rglob("*"))
    done = run(*arguments.split())
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_ctrl_c_is_one_line(run: Runner, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bandana_kv, "verify", stopped)
    assert run("verify", store) == (130, "", "error: stopped\n")


def test_load_and_what_looks_at_it(run: Runner) -> None:
    loaded = run.json("load", "store", "--table", "user=rows.npy", "--log", "user=log.npz")
    assert loaded == {"version": 1, "tables": ["user"]}
    assert run.json("verify", "store") == tool_json("verify", "store")
    found, told = run.json("inspect", "store"), tool_json("inspect", "store")
    assert found["tables"] == told["tables"]
    assert found["versions"] == told["versions"]
    watched = ("store", "--log", "user=log.npz", "--cache-bytes", "user=4KiB")
    assert run.json("watch", *watched) == tool_json("watch", *watched)


def test_versions_are_listed_and_gone_back_to(run: Runner, store: str) -> None:
    bandana_kv.load(store, {"item": ROWS[:31], "user": ROWS}, adapter="blockfile")
    update = ("update", store, "--table", "user", "--ids", "ids.npy", "--rows", "new.npy")
    assert run.json(*update) == {"table": "user", "rows": 2, "flushed": False}
    first, second = run.json("versions", store)["versions"]
    kept = bandana_kv.versions(store)
    assert [first["number"], second["number"]] == [each.number for each in kept]
    assert (first["rows"], second["rows"], second["tables"]) == (300, 331, ["user", "item"])
    assert (first["journal"], second["journal"], second["current"]) == (0, 2, True)
    assert first["identity"] != second["identity"]
    assert second["bytes"] - first["bytes"] == 4096
    for options, current in (
        (("--rollback", "1"), 1),
        (("--rollback", "2"), 2),
        (("--rollback",), 1),
    ):
        listed = run.json("versions", store, *options)["versions"]
        assert [each["number"] for each in listed if each["current"]] == [current]
    listing = CliRunner().invoke(import_module("bandana_kv.tools.versions").main, ["list", store])
    assert listing.output.startswith("1  current")
    assert "current" in run("versions", store).out


def test_what_is_updated_is_exported(run: Runner, store: str) -> None:
    run.json("update", store, "--table", "user", "--ids", "ids.npy", "--rows", "new.npy")
    done = run.json("export", store, "--table", "user", "--out", "out.npy")
    assert (done["rows"], done["dim"], done["version"]) == (300, 32, 1)
    expected = ROWS.copy()
    expected[[3, 299]] = ROWS[:2] + 1
    assert np.array_equal(np.load("out.npy"), expected)
    assert run("export", store, "--table", "user", "--out", "out.npy", "--force").status == 0


def test_plan_and_place_write_what_they_print(run: Runner, store: str) -> None:
    plan = ("plan", "--log", "user=log.npz", "--table", "user=rows.npy", "--cache-bytes", "8KiB")
    assert run.json(*plan, "--out", "plan.json") == json.loads(Path("plan.json").read_text())
    load = ("load", "new", "--table", "user=rows.npy", "--log", "user=log.npz")
    assert run(*load, "--plan", "plan.json").status == 0
    placed = run.json("place", "--log", "user=log.npz", "--table", "user=rows.npy", "--out", "p")
    assert (placed["rows"], set(placed["blocks_per_request"])) == (300, {"shuffled", "shp"})
    assert np.array_equal(
        np.sort(Placement.load("p").position_of_id), np.arange(300, dtype=np.uint32)
    )
    anew = ("place-anew", store, "--table", "user", "--placement", "p", "--log", "user=log.npz")
    assert run.json(*anew)["version"] == 2


def test_migrate_brings_all_rows(run: Runner, put_by_key: Any) -> None:
    put_by_key("lmdb", Path("old"), {key.to_bytes(8): ROWS[key].tobytes() for key in range(300)})
    moved = run.json("migrate", "--from", "lmdb", "old", "store", "--table", "user")
    assert (moved["rows"], moved["dim"]) == (300, 32)


def test_assess_prints_what_it_would_write(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandana_kv.tools.assess.calibrate", lambda *_, **__: COSTS)
    told = "--log user=log.npz --row-bytes 128 --device-class aws-gp3 --dram-price 3 --nvm-price 1"
    found = run.json("assess", *told.split(), "--out", "report.html")
    assert found["recommendation"]
    assert "<html" in Path("report.html").read_text()
    written = run("assess", *told.split(), "--out", "report.html", "--json", "report.json")
    assert written.status == 0
    assert json.loads(Path("report.json").read_text()).keys() == found.keys()


def test_assess_takes_logs_of_keys(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandana_kv.tools.assess.calibrate", lambda *_, **__: COSTS)
    keys = np.random.default_rng(5).permutation(np.arange(300) * 1_000_003 - (1 << 40))
    log = bandana_kv.AccessLog.read("log.npz")
    np.savez("keyed.npz", offsets=log.offsets, ids=keys[log.ids])
    np.save("keys.npy", keys)
    told = "--row-bytes 128 --device-class aws-gp3 --dram-price 3 --nvm-price 1 --out report.html"
    found = run.json("assess", "--log", "user=keyed.npz", "--keys", "user=keys.npy", *told.split())
    expected = run.json("assess", "--log", "user=log.npz", *told.split(), "--rows", "user=300")
    assert found["tables"]["user"]["gain"] == expected["tables"]["user"]["gain"]
    own = run.json("assess", "--log", "user=keyed.npz", "--keys", "user=int64", *told.split())
    assert own["tables"]["user"]["rows"] == np.unique(log.ids).size
    assert run("assess", "--log", "user=keyed.npz", *told.split()).status == 1


def test_assess_takes_logs_in_files(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandana_kv.tools.assess.calibrate", lambda *_, **__: COSTS)
    rng = np.random.default_rng(0)
    lists = rng.permutation(4000).reshape(-1, 20)
    drawn = np.minimum(rng.geometric(0.03, (4000, 2)), len(lists)) - 1
    requests = [lists[each][:, :8].reshape(-1) for each in drawn]
    log = bandana_kv.AccessLog.from_requests(requests)
    log.write("whole.npz")
    Path("parts").mkdir()
    for number, part in enumerate(np.array_split(np.arange(log.requests), 3)):
        log.select(part).write(f"parts/{number}.npz")
    told = "--row-bytes 128 --rows user=4000 --device-class aws-gp3 --dram-price 3 --nvm-price 1"
    more = [*told.split(), "--cache-bytes", "25KiB", "--out", "report.html"]
    expected = run.json("assess", "--log", "user=whole.npz", *more)
    held = run.json("assess", "--log", "user=parts", *more)
    assert held["inputs"]["sampled_share"] == 1.0
    assert held["tables"] == expected["tables"]
    sampled = run.json("assess", "--log", "user=parts/*.npz", "--most-lookups", "20000", *more)
    share, table = sampled["inputs"]["sampled_share"], sampled["tables"]["user"]
    assert share == pytest.approx(20000 / log.lookups, rel=0.05)
    assert table["rows"] == pytest.approx(4000 * share)
    assert sampled["gain"] == pytest.approx(expected["gain"], rel=0.25)
    assert table["workload"]["mean_length"] == 16
    for key in ("recommended_bytes", "table_bytes"):
        assert sampled["dram"][key] == pytest.approx(expected["dram"][key], rel=0.3)
    assert any("judged by a sample" in each for each in sampled["warnings"])
    assert "sampled_share" in Path("report.html").read_text()
    for options, said in (
        (["--log", "user=none/*.npz"], "no file is called so"),
        (["--log", "user=parts", "--keys", "user=int64"], "--keys is for a log that is read"),
        (["--log", "user=parts", "--workers", "2"], "give --ray, too"),
    ):
        done = run("assess", *options, *more)
        assert done.status != 0
        assert said in done.err


@pytest.mark.slow
def test_demo_checks_every_row(run: Runner) -> None:
    found = run.json("demo", "--log", "log.npz", "--out", "shown")
    assert found == json.loads(Path("shown/result.json").read_text())
    assert [each["wrong_rows"] for each in found["results"]] == [0] * 6


def test_profile_prints_what_it_writes(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "QUICK", Effort(4 << 20, 1, 1, 1, 60.0, False, 10_000))
    found = run.json("profile", ".", "--quick", "--engine", "python")
    assert found == json.loads(Path("device.json").read_text())


def test_quiet_says_nothing(run: Runner, store: str) -> None:
    load = ("load", store, "--table", "user=rows.npy", "--quiet")
    assert run(*load) == (0, "", "")
    assert run("inspect", store, "--quiet") == (0, "", "")
    assert run("inspect", store).out


def test_unsound_is_status_1(run: Runner, store: str) -> None:
    for path in Path(store, "manifests").iterdir():
        path.write_text("torn")
    done = run("verify", store)
    assert done.status == 1
    assert "bad manifest" in done.out
    assert run("verify", store, "--quiet") == (1, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_one_of_that_shell(run: Runner, shell: str) -> None:
    done = run("completion", shell)
    assert done.status == 0
    assert "_BANDANA_KV_COMPLETE" in done.out
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.out, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "completed"),
    [("pl", ["plan", "place", "place-anew"]), ("load --pla", ["--placement", "--plan"])],
)
def test_names_and_options_are_completed(words: str, completed: list[str]) -> None:
    said = {
        "_BANDANA_KV_COMPLETE": "bash_complete",
        "COMP_WORDS": f"bandana-kv {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    done = subprocess.run(
        [PROGRAM], env={**os.environ, **said}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [f"plain,{each}" for each in completed]


def test_every_sub_command_is_asked_for() -> None:
    assert list(_HOMES) == NAMES
    assert all(home.said.endswith(".") for home in _HOMES.values())
    assert command_line.cli.name == "bandana-kv"
