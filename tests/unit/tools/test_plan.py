"""The plan command: a plan that loads, its numbers in a table, a picture, errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.errors import InputError
from bandana_kv.plan import Plan
from bandana_kv.tools import load_tables
from bandana_kv.tools.plan_cache import main, parse_size

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "plan_cache.py"
ROWS = np.random.default_rng(0).random((620, 32), np.float32)


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(1)
    groups = rng.permutation(620).reshape(-1, 10)
    together = (rng.permutation(groups[rng.integers(62)])[:6] for _ in range(800))
    AccessLog.from_requests(together).write(tmp_path / "user.npz")
    AccessLog.from_requests(rng.integers(0, 400, (500, 2))).write(tmp_path / "item.npz")
    np.save(tmp_path / "rows.npy", ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    return tmp_path


def run(text: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, text.split())
    return done.exit_code, done.stdout, done.stderr


BOTH = "--log user=user.npz --log item=item.npz --row-bytes 128 --cache-bytes 16KiB --out plan.json"


def test_a_plan_is_written_shown_and_drawn(inputs: Path) -> None:
    status, shown, errors = run(f"{BOTH} --picture plan.png")
    assert (status, errors) == (0, "")
    assert "wrote plan.json" in shown
    assert "wrote plan.png" in shown
    assert (inputs / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "0.02 MiB of DRAM" in shown
    plan = json.loads((inputs / "plan.json").read_text())
    assert (plan["format"], plan["cache_bytes"]) == (1, 16384)
    for name in ("user", "item"):
        choice = plan["tables"][name]["choice"]
        predicted = choice["predicted"]
        expected = predicted["reads_per_lookup"]
        assert f"  {name}  " in shown
        assert f" {expected:.4f} " in shown
        assert f"{predicted['low']:.4f}-{predicted['high']:.4f}" in shown
        assert f" {predicted['baseline'] / expected:.2f} " in shown
        if predicted["lower_bound"]:
            assert f" {expected / predicted['lower_bound']:.2f} " in shown
        assert f"{choice['cache_bytes'] / 16384:.1%}" in shown
        assert choice["policy"]["eviction"] in shown
        words = " ".join(shown.split())
        assert f"{choice['runner_up'][1]:.4f}, won {choice['confidence']:.0%}" in words
    assert Plan.read("plan.json").tables["user"].lookups == 4800


def test_from_a_shell_the_plan_is_loaded_and_obeyed(inputs: Path) -> None:
    table = ["--log", "user=user.npz", "--table", "user=rows.npy"]
    command = [sys.executable, str(SCRIPT), *table, "--cache-bytes", "9000", "--out", "plan.json"]
    done = subprocess.run(command, cwd=inputs, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = CliRunner().invoke(load_tables.main, [*table, "--plan", "plan.json", "store"])
    assert loaded.exit_code == 0, loaded.stderr
    choice = Plan.read("plan.json").tables["user"].choice
    assert choice is not None
    with bandana_kv.open("store") as store:
        assert store.policy("user") == choice.policy
        assert store.capacity_rows("user") == choice.capacity_rows > 0
        assert np.array_equal(store.multi_get("user", np.arange(620)), ROWS)


def test_rows_are_those_of_the_log_unless_said(inputs: Path) -> None:
    alone = "--log item=item.npz --cache-bytes 1MiB --out plan.json"
    assert run(f"{alone} --row-bytes item=64")[0] == 0
    few = Plan.read("plan.json").tables["item"].points
    assert run(f"{alone} --row-bytes 64 --rows item=4000 --rows-per-block 16")[0] == 0
    many = Plan.read("plan.json").tables["item"].points
    assert few[-1].capacity_rows == 400
    assert many[-1].capacity_rows == 4000


ONE = "--log user=user.npz --out plan.json"


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (f"{ONE} --row-bytes 128", 2, "Missing option '--cache-bytes'"),
        (f"{ONE} --row-bytes 128 --cache-bytes 64XB", 2, "'64XB' is not a size"),
        (f"{ONE} --row-bytes 128 --cache-bytes -5", 2, "'-5' is not a size"),
        (f"{ONE} --row-bytes 0 --cache-bytes 1", 2, "'0' is not a whole number from 1 up"),
        (f"{ONE} --row-bytes 8 --row-bytes 9 --cache-bytes 1", 2, "8 and 9 cannot both"),
        (f"{ONE} --rows user=many --cache-bytes 1", 2, "'many' is not a whole number"),
        (f"{ONE} --row-bytes 8 --cache-bytes 1 --rows-per-block 0", 2, "x>=1"),
        (f"{ONE} --cache-bytes 1MiB", 1, "'user': how large are its rows?"),
        (f"{ONE} --cache-bytes 1MiB --table user=no.npy", 1, "no.npy: cannot be opened"),
        (f"{ONE} --cache-bytes 1MiB --table usr=rows.npy", 1, "names table 'usr'"),
        (f"{ONE} --cache-bytes 1MiB --row-bytes usr=8", 1, "names table 'usr'"),
        (f"{ONE} --cache-bytes 1MiB --row-bytes 8 --rows 9", 1, "--rows names table ''"),
        (f"{ONE} --cache-bytes 1MiB --row-bytes 8 --rows user=9", 1, "the table has 9 rows"),
        (f"{ONE} --cache-bytes 1 --row-bytes 8 --picture plan.doc", 1, "a picture ends in"),
        (f"{ONE} --cache-bytes 1 --row-bytes 8 --picture no/plan.png", 1, "no directory no"),
        ("--log user=no.npz --out p --cache-bytes 1 --row-bytes 8", 1, "no such file"),
        ("--log user=user.npz --out no/p --cache-bytes 1 --row-bytes 8", 1, "no directory no"),
        ("--log user=user.npz --out . --cache-bytes 1 --row-bytes 8", 1, "cannot be written"),
    ],
)
def test_errors_are_named_and_leave_nothing(
    inputs: Path, options: str, status: int, says: str
) -> None:
    before = sorted(inputs.rglob("*"))
    code, shown, errors = run(options)
    assert (code, shown) == (status, "")
    assert says in errors
    if status == 1:
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
    assert sorted(inputs.rglob("*")) == before


def test_a_picture_without_matplotlib_is_refused_before_the_work(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, shown, errors = run(f"{BOTH} --picture plan.png")
    assert (status, shown) == (1, "")
    assert "pip install 'bandana-kv[plot]'" in errors
    assert not (inputs / "plan.json").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("123b", 123),
        ("64KiB", 64 << 10),
        ("64 mib", 64 << 20),
        ("1.5GiB", 3 << 29),
        (" 2TiB ", 2 << 40),
        ("64MB", 64_000_000),
        ("64 mb", 64_000_000),
        ("64M", 64 << 20),
        ("64Mi", 64 << 20),
        ("1.5g", 3 << 29),
        ("2tB", 2 * 10**12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e6", "64MBs", "64iB", "64bM", "1 2", "1.MiB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        parse_size(text)


def write_keyed(path: Path, keys: list[str]) -> None:
    """Write the log of `user`, by keys."""
    log = AccessLog.read(path / "user.npz")
    requests = [[keys[id] for id in log.request(at)] for at in range(log.requests)]
    (path / "user.jsonl").write_text("".join(json.dumps(each) + "\n" for each in requests))
    (path / "keys.txt").write_text("".join(key + "\n" for key in keys))


@pytest.mark.parametrize("given", ["file", "column", "own"])
def test_a_log_of_keys_is_planned_as_one_of_ids(inputs: Path, given: str) -> None:
    keys = [f"k{at}" for at in np.random.default_rng(3).permutation(620)]
    write_keyed(inputs, keys)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.reshape(-1)), 32)
    pq.write_table(pa.table({"values": lists, "key": keys}), inputs / "rows.parquet")
    how = {
        "file": "--keys user=keys.txt --row-bytes 128",
        "column": "--table user=rows.parquet::key",
        "own": "--keys user=str --row-bytes 128 --rows user=620",
    }[given]
    rest = "--cache-bytes 16KiB --out"
    status, _, errors = run(f"--log user=user.jsonl {how} {rest} keyed.json")
    assert (status, errors) == (0, "")
    assert run(f"--log user=user.npz --table user=rows.npy {rest} plan.json")[0] == 0
    found, expected = (Plan.read(each).tables["user"] for each in ("keyed.json", "plan.json"))
    assert found.lookups == expected.lookups == 4800
    assert found.choice is not None
    assert expected.choice is not None
    reads = found.choice.predicted.reads_per_lookup
    if given == "own":  # other numbers for the same rows: other ties, another order of blocks
        assert reads == pytest.approx(expected.choice.predicted.reads_per_lookup, rel=0.2)
    else:
        assert found.choice == expected.choice


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--keys user=str --table user=rows.npy", "for a log without its table; name the file"),
        ("--keys item=keys.txt --row-bytes 128", "--keys names table 'item', which has no --log"),
        ("--keys user=none.txt --row-bytes 128", "none.txt: cannot be read as keys"),
        ("--keys user=int64 --row-bytes 128", "is not a key; the table's keys are int64"),
        ("--row-bytes 128", "is not an id"),
    ],
)
def test_keys_that_do_not_fit_are_said(inputs: Path, given: str, said: str) -> None:
    write_keyed(inputs, [f"k{at}" for at in range(620)])
    command = f"--log user=user.jsonl {given} --cache-bytes 16KiB --out plan.json"
    status, _, errors = run(command)
    assert status == 1
    assert said in errors
    assert errors.count("\n") == 1
