"""Malformed files end in a BandanaError or a right answer; and the harness sees what does not."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import xxhash
from click.testing import CliRunner

import bandana_kv
from bandana_kv.adapters.blockfile import BlockfileAdapter
from bandana_kv.adapters.blockfile_index import Space, read_index, write_index
from bandana_kv.disk import arrays, blocks
from bandana_kv.disk.arrays import map_array, write_array
from bandana_kv.errors import AdapterError, FormatError, InputError
from bandana_kv.placement import Placement
from bandana_kv.serve import reader
from bandana_kv.testing import malformed

ROWS = np.random.default_rng(0).random((100, 8), np.float32)


# Children are forked beside the threads of tests before; they begin none before they need them.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def test_every_malformed_input_is_refused_or_read_aright() -> None:
    found = malformed.run(3000, seed=0)
    assert found["failures"] == []
    assert found["unexpected"] == 0
    assert found["refused"] + found["correct"] + found["believed"] == 3000
    assert len(found["by_kind"]) == 18
    for kind, outcomes in found["by_kind"].items():
        assert outcomes["refused"] > 0, kind


def test_an_input_is_found_again_by_its_number() -> None:
    done = CliRunner().invoke(malformed.main, ["--first", "123", "--count", "2", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["inputs"] == 2


def test_the_harness_sees_blocks_that_are_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    # By compiled code they would be.
    monkeypatch.setattr(BlockfileAdapter, "standing", lambda _: None)
    monkeypatch.setattr(blocks, "bad_blocks", lambda *_: {})
    assert reader.block_format is blocks
    found = malformed.run(200, seed=0)
    assert found["by_kind"]["blocks"].get("unexpected", 0) > 0
    assert "WrongAnswerError" in found["failures"][0]["reason"]


def test_the_harness_sees_a_checksum_that_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        def update(self, _: bytes) -> None:
            pass

        def intdigest(self) -> object:
            return Equal()

    class Equal:
        def __ne__(self, _: object) -> bool:
            return False

    blind = SimpleNamespace(xxh3_64=Blind, xxh3_64_intdigest=xxhash.xxh3_64_intdigest)
    monkeypatch.setattr(arrays, "xxhash", blind)
    found = malformed.run(400, seed=0)
    assert found["by_kind"]["positions"].get("unexpected", 0) > 0


def hog(_: bool) -> None:
    np.zeros(8 << 30, np.uint8)


def crash(_: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(_: bool) -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("fault", "said"),
    [(hog, "MemoryError"), (crash, "ended with -9"), (sleep, "ended with -9")],
)
def test_the_harness_sees_absurd_memory_crashes_and_hangs(
    fault: Callable[[bool], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kinds(root: Path) -> list[malformed.Kind]:
        sound = root / "file"
        sound.write_bytes(b"sound")
        begun = []

        def use(forged: bool) -> None:
            if begun:
                fault(forged)
            begun.append(1)

        def damage(raw: bytes, rng: random.Random) -> tuple[bytes, bool]:
            return raw + b"!", False

        return [malformed.Kind("file", sound, damage, use)]

    monkeypatch.setattr(malformed, "kinds", kinds)
    monkeypatch.setattr(malformed, "_SECONDS", 1)
    found = malformed.run(2, seed=0)
    assert found["unexpected"] == 2
    assert said in found["failures"][0]["reason"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, adapter="blockfile")
    return tmp_path / "s"


def forge(root: Path, change: Callable[[dict], None]) -> None:
    path = root / "manifests" / "000001.json"
    held = msgspec.json.decode(path.read_bytes())["manifest"]
    change(held)
    body = msgspec.json.encode(held)
    checksum = xxhash.xxh3_64_hexdigest(body)
    path.write_bytes(msgspec.json.encode({"checksum": checksum, "manifest": msgspec.Raw(body)}))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "O"},
        {"dtype": "<f3"},
        {"dtype": "i4,i4"},
        {"dim": (1 << 32) - 1},
        {"rows_per_block": 128},
        {"space": 0},
        {"segment": 2},
        {"rows": 1 << 31},
        {"copies": 1},
    ],
    ids=str,
)
def test_a_forged_manifest_is_refused(store: Path, change: dict[str, object]) -> None:
    forge(store, lambda held: held["tables"]["user"].update(change))
    with pytest.raises(FormatError):
        bandana_kv.open(store)


@pytest.mark.parametrize("name", ["", "a\nb", "\0", "x" * 256])
def test_a_forged_table_name_is_refused(store: Path, name: str) -> None:
    forge(store, lambda held: held["tables"].update({name: held["tables"]["user"]}))
    with pytest.raises(FormatError):
        bandana_kv.open(store)


def test_a_table_is_never_a_path(tmp_path: Path) -> None:
    """Any printable name is a table's, also one that would leave the store as a path."""
    names = ("../../up", "/etc/passwd", "..", "a/b")
    bandana_kv.load(tmp_path / "s", dict.fromkeys(names, ROWS), adapter="blockfile")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    with bandana_kv.open(tmp_path / "s") as opened:
        assert all(np.array_equal(opened.get(name, 7), ROWS[7]) for name in names)


def test_positions_beyond_the_table_are_refused(tmp_path: Path) -> None:
    write_array(tmp_path / "a", "positions", np.array([0, 9], np.uint32))
    assert map_array(tmp_path / "a", "positions", np.uint32, 2, 10).tolist() == [0, 9]
    with pytest.raises(FormatError, match="9 is not below 9"):
        map_array(tmp_path / "a", "positions", np.uint32, 2, 9)


def test_a_placement_that_is_no_permutation_is_refused(tmp_path: Path) -> None:
    Placement(np.array([0, 0, 1], np.uint32), 2, "shp", None, 0.7).save(tmp_path / "p")
    with pytest.raises(FormatError, match="out of range"):
        Placement.load(tmp_path / "p")


@pytest.mark.parametrize(
    "runs",
    [[(0, 5, 1 << 50)], [(0, 5, 8)], [(0, 4, 0), (2, 4, 4)], [(0, 0, 0)], [(1 << 41, 1, 0)]],
    ids=str,
)
def test_runs_that_contradict_each_other_are_refused(
    runs: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    write_index(tmp_path, 4096, {1: Space(1, 10, np.array(runs, np.int64))})
    with open(tmp_path / "index", "rb") as file, pytest.raises(AdapterError, match="contradict"):
        read_index(file.fileno())


def test_an_npz_that_claims_more_than_it_can_hold_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d,), }" % (1 << 40)
    member = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("offsets.npy", "ids.npy"):
            archive.writestr(name, member)
    raw = path.read_bytes()
    size = len(member).to_bytes(4, "little")
    path.write_bytes(raw.replace(size, (0xFFFFFFFE).to_bytes(4, "little")))
    with pytest.raises(InputError, match="claims more"):
        bandana_kv.AccessLog.read(path)
