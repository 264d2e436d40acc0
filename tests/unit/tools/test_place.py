"""The place command: a placement that loads, a table, a picture, and errors in one line."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.placement import Placement, fanout, place
from bandana_kv.tools.place import main


@pytest.fixture
def log(tmp_path: Path, rng: np.random.Generator) -> Path:
    groups = rng.permutation(620).reshape(-1, 10)
    requests = (rng.permutation(groups[rng.integers(62)])[:6] for _ in range(1500))
    AccessLog.from_requests(requests).write(tmp_path / "log.npz")
    return tmp_path / "log.npz"


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_a_placement_is_written_shown_and_drawn(log: Path, tmp_path: Path) -> None:
    saved, picture = tmp_path / "placement", tmp_path / "fanout.png"
    status, output = run("--log", log, "--out", saved, "--picture", picture, "--replicate", 0.2)
    assert status == 0, output
    placed = Placement.load(saved)
    learn, test = AccessLog.read(log).split(train=0.7)
    expected = place(learn, 620, 31, "shp", seed=0)
    assert np.array_equal(placed.position_of_id, expected.position_of_id)
    assert f"{fanout(test, place(learn, 620, 31, 'shuffled', seed=0)):.3f}" in output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_placement_loads(log: Path, tmp_path: Path) -> None:
    assert run("--log", log, "--out", tmp_path / "placement")[0] == 0
    rows = np.random.default_rng(1).random((620, 32), dtype=np.float32)
    placed = Placement.load(tmp_path / "placement")
    bandana_kv.load(tmp_path / "store", {"user": rows}, placement={"user": placed})
    with bandana_kv.open(tmp_path / "store") as store:
        assert np.array_equal(store.multi_get("user", np.arange(620)), rows)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--method", "magic"), "unknown placement method 'magic'"),
        (("--rows", 5), "has only 5 rows"),
        (("--replicate", 3), "share of extra blocks"),
        (("--method", "kmeans"), "looks at the rows themselves"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    log: Path, tmp_path: Path, arguments: tuple[object, ...], says: str
) -> None:
    before = sorted(tmp_path.iterdir())
    status, output = run("--log", log, "--out", tmp_path / "placement", *arguments)
    assert status == 1
    assert says in output
    assert output.strip().count("\n") == 0
    assert sorted(tmp_path.iterdir()) == before
