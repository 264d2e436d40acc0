"""The command that places anew, and its failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.disk import manifest
from bandana_kv.placement import Placement
from bandana_kv.tools.place_anew import main

ROWS = np.random.default_rng(0).random((300, 16), np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, placement="identity")
    swapped = np.arange(300, dtype=np.uint32)
    swapped[[3, 299]] = swapped[[299, 3]]
    with bandana_kv.open(tmp_path / "s") as served:
        per_block = served.placement("user").rows_per_block
    Placement(swapped, per_block, "swapped").save(tmp_path / "swapped")
    Placement(swapped, 7, "of others").save(tmp_path / "of-others")
    bandana_kv.AccessLog.from_requests([[3, 299], [3]]).write(tmp_path / "log.npz")
    return tmp_path / "s"


def run(store: Path, table: str, placement: str, *more: str) -> tuple[int, str]:
    arguments = [str(store), "--table", table, "--placement", str(store.parent / placement)]
    done = CliRunner().invoke(main, [*arguments, *more])
    return done.exit_code, done.output


def test_two_blocks_are_written(store: Path) -> None:
    status, said = run(store, "user", "swapped")
    assert status == 0, said
    assert "version 2: 2 of 5 blocks of user were written" in " ".join(said.split())
    with bandana_kv.open(store) as served:
        assert served.placement("user").position_of_id[[3, 299]].tolist() == [299, 3]
        assert np.array_equal(served.multi_get("user", np.arange(300)), ROWS)


def test_json_and_the_heat_of_a_log(store: Path) -> None:
    status, said = run(store, "user", "swapped", "--json", "--log", str(store.parent / "log.npz"))
    assert status == 0, said
    found = json.loads(said)
    assert (found["version"], found["blocks_rewritten"], found["blocks"]) == (2, 2, 5)
    assert found["bytes_written"] > 2 * 4080
    assert manifest.read_current(store).tables["user"].looked_up_rows == 2


@pytest.mark.parametrize(
    ("table", "placement", "said"),
    [
        ("item", "swapped", "no table 'item'"),
        ("user", "of-others", "7 a block"),
        ("user", "nowhere", "cannot be read"),
    ],
)
def test_a_failure_is_one_line(store: Path, table: str, placement: str, said: str) -> None:
    status, output = run(store, table, placement)
    assert status == 1
    assert said in " ".join(output.split())
    assert manifest.current_number(store) == 1
