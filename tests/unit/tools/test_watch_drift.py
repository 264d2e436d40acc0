"""The command that watches drift: advice printed, as JSON, to a hook and as metrics."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.care.drift import Watch, advise_store, served_table
from bandana_kv.disk import budget
from bandana_kv.logs.formats.frames import FILE_HEADER, Frame, frame_bytes, path_of
from bandana_kv.placement import place
from bandana_kv.tools.watch_drift import main

ROWS = 620
VALUES = np.random.default_rng(0).random((ROWS, 32), dtype=np.float32)


def traffic(seed: int, groups_seed: int, requests: int = 1500) -> AccessLog:
    groups = np.random.default_rng(groups_seed).permutation(ROWS).reshape(-1, 31)
    rng = np.random.default_rng(seed)
    return AccessLog.from_requests(
        [rng.permutation(groups[rng.integers(groups.shape[0])])[:15] for _ in range(requests)]
    )


@pytest.fixture(scope="module")
def place_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a log like the one it was placed by, and one with all lists changed."""
    path = tmp_path_factory.mktemp("drift")
    old = traffic(1, 1)
    bandana_kv.load(path / "store", {"user": VALUES}, {"user": old}, adapter="blockfile")
    traffic(2, 1).write(path / "same.npz")
    traffic(3, 3).write(path / "changed.npz")
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_what_is_served_is_read_from_the_store(place_of_all: Path) -> None:
    known = served_table(place_of_all / "store", "user", 0)
    expected = place(traffic(1, 1), ROWS, 31, "shp", seed=0)
    assert np.array_equal(known.placement.position_of_id, expected.position_of_id)
    assert (known.capacity_rows, known.block_bytes) == (0, 4096)
    assert known.heat is not None
    assert int(known.heat.sum()) == traffic(1, 1).lookups


def test_second_copies_are_read_too(tmp_path: Path) -> None:
    mixed = AccessLog.from_requests(np.random.default_rng(4).integers(0, ROWS, (500, 6)))
    bandana_kv.load(tmp_path / "store", {"user": VALUES}, {"user": mixed}, replicate=0.5)
    placement = served_table(tmp_path / "store", "user", 0).placement
    with bandana_kv.open(tmp_path / "store") as store:
        assert np.array_equal(store.multi_get("user", np.arange(ROWS)), VALUES)
    assert placement.replicas is not None
    assert placement.replicas.size == np.unique(placement.replicas).size
    advice = advise_store(tmp_path / "store", {"user": traffic(3, 3)}, cache_bytes={"user": 0})
    assert advice["user"].kind.startswith("place")


def test_advice_as_json_and_for_people(place_of_all: Path) -> None:
    arguments = (place_of_all / "store", "--cache-bytes", "user=0")
    same = run(*arguments, "--log", f"user={place_of_all / 'same.npz'}", "--json")
    assert same.exit_code == 0, same.output
    assert json.loads(same.stdout)["user"]["action"] == "nothing"
    changed = run(*arguments, "--log", f"user={place_of_all / 'changed.npz'}", "--once")
    assert changed.exit_code == 0, changed.output
    assert "user: place" in changed.stdout
    assert "saves" in changed.stdout
    assert max(map(len, changed.stdout.splitlines()[:-1])) <= 130


def test_the_hook_gets_the_advice_and_only_if_there_is_something_to_do(
    place_of_all: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "advice; $(touch no).json"
    copy = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read())"
    hook = shlex.join([sys.executable, "-c", copy, str(saved)])
    arguments = (place_of_all / "store", "--cache-bytes", "user=0", "--hook", hook, "--log")
    assert run(*arguments, f"user={place_of_all / 'same.npz'}").exit_code == 0
    assert not saved.exists()
    assert run(*arguments, f"user={place_of_all / 'changed.npz'}").exit_code == 0
    told = json.loads(saved.read_text())
    assert told["table"] == "user"
    assert told["action"].startswith("place")
    assert told["blocks"] > 0


@pytest.mark.parametrize(
    ("hook", "said"),
    [("/no/such/command", "cannot be run"), (f"{sys.executable} -c exit(3)", "ended with 3")],
)
def test_a_hook_that_fails_is_logged(
    place_of_all: Path, caplog: pytest.LogCaptureFixture, hook: str, said: str
) -> None:
    log = f"user={place_of_all / 'changed.npz'}"
    done = run(place_of_all / "store", "--cache-bytes", "user=0", "--log", log, "--hook", hook)
    assert done.exit_code == 0
    assert said in caplog.text


def test_metrics_say_what_the_last_look_said(place_of_all: Path) -> None:
    watch = Watch(
        place_of_all / "store",
        {"user": str(place_of_all / "changed.npz")},
        cache_bytes={"user": 0},
    )
    assert [each.value for each in watch.metrics()] == [0]
    advice = watch.look()["user"]
    found = {
        (each.name.removeprefix("bandana_kv_drift_"), each.labels.get("action")): each.value
        for each in watch.metrics()
    }
    assert all(each.labels["table"] == "user" for each in watch.metrics() if each.labels)
    assert found["looks", None] == 1
    assert found["reads_per_lookup", None] == advice.reads_per_lookup
    assert found["advised_blocks", None] == advice.blocks > 0
    assert found["advice_active", advice.kind] == 1
    assert found["advice_active", "nothing"] == 0
    assert found["saved_ratio", advice.action] == advice.chosen.saved


def test_recordings_and_the_write_budget_are_obeyed(place_of_all: Path, tmp_path: Path) -> None:
    """What store.record writes is a directory, which knows what the store counted live."""
    log = traffic(3, 3)
    lengths, ids = np.diff(log.offsets).astype(np.uint32), log.ids.astype(np.uint32)
    frame = Frame("user", 1, (100, 75, 25), 1.0, 0.0, lengths, ids)
    path_of(tmp_path, 1).write_bytes(FILE_HEADER + frame_bytes(frame))
    store = place_of_all / "store"
    budget.set_write_budget(store, 8192)
    try:
        advice = advise_store(store, {"user": tmp_path}, cache_bytes={"user": 0})["user"]
    finally:
        budget.set_write_budget(store, None)
    assert (advice.reads_per_lookup, advice.live) == (0.25, True)
    assert advice.chosen.budget_days == advice.blocks / 2


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--log", "user=no.npz", "--cache-bytes", "user=0"), 1, "no such file"),
        (("--log", "user=same.npz"), 1, "without a DRAM budget"),
        (("--log", "item=same.npz"), 1, "no table 'item'"),
        (("--log", "same.npz"), 2, "not of the form"),
        (("--log", "user=same.npz", "--once", "--interval", "5"), 2, "and not both"),
    ],
)
def test_errors_are_one_line(
    place_of_all: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: int,
    says: str,
) -> None:
    monkeypatch.chdir(place_of_all)
    done = run("store", *arguments)
    assert done.exit_code == status
    assert says in done.output


def test_answering_prometheus_takes_more_than_one_look(place_of_all: Path) -> None:
    done = run(place_of_all / "store", "--log", f"user={place_of_all / 'same.npz'}", "--port", "0")
    assert done.exit_code == 2
    assert "give --interval" in done.output
