"""Outside partitioners: full blocks whatever they answer, and a child that always ends."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandana_kv.errors import BandanaError, InputError, MissingExtraError, PartitionerError
from bandana_kv.placement import Placement, fanout, place
from bandana_kv.placement.outside import child, methods
from bandana_kv.progress import Progress

T = TypeVar("T")
METHODS = ("mtkahypar", "mtkahypar-large_k", "mtkahypar-default", "kahypar")


def needs(library: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed")


def library_of(method: str) -> str:
    return method.partition("-")[0]


def each_method() -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "method", [pytest.param(name, marks=needs(library_of(name))) for name in METHODS]
    )


def community_log(
    seed: int, communities: int = 24, rows_each: int = 16, requests: int = 1500
) -> SimpleNamespace:
    """Return requests that each look up six rows of one community; ids are shuffled."""
    rng = np.random.default_rng(seed)
    id_of_row = rng.permutation(communities * rows_each)
    home = rng.integers(communities, size=requests)
    picks = rng.integers(rows_each, size=(requests, 6))
    ids = id_of_row[home[:, None] * rows_each + picks].astype(np.int32)
    return SimpleNamespace(
        offsets=np.arange(0, 6 * requests + 1, 6, dtype=np.int64), ids=ids.ravel()
    )


def random_log(seed: int, rows: int, requests: int, longest: int) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, size=requests, endpoint=True)
    ids = rng.integers(0, rows, size=int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SimpleNamespace(offsets=offsets, ids=ids)


def check(placement: Placement, rows: int, capacity: int) -> None:
    positions = placement.position_of_id
    assert positions.dtype == np.uint32
    assert np.array_equal(np.sort(positions), np.arange(rows, dtype=np.uint32))
    assert (placement.rows, placement.rows_per_block) == (rows, capacity)


@each_method()
@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**63 - 1),
    rows=st.integers(1, 300),
    capacity=st.integers(1, 40),
    requests=st.integers(0, 60),
    longest=st.integers(1, 90),
)
def test_permutation_with_full_blocks(
    method: str, seed: int, rows: int, capacity: int, requests: int, longest: int
) -> None:
    log = random_log(seed % 2**32, rows, requests, longest)
    check(place(log, rows, capacity, method, seed=seed), rows, capacity)


@each_method()
def test_planted_communities_are_found(method: str) -> None:
    log = community_log(seed=0)
    assert fanout(log, place(None, 384, 16, "shuffled")) > 4.5
    placement = place(log, 384, 16, method, seed=0)
    check(placement, 384, 16)
    assert placement.method == method
    assert fanout(log, placement) < 1.2


@each_method()
def test_rows_without_company_come_last_the_popular_first(method: str) -> None:
    log = random_log(0, rows=40, requests=60, longest=8)
    lonely = [[90], [50, 50, 50], [90], [41]]
    ids = np.concatenate([log.ids, *lonely]).astype(np.int64)
    offsets = np.concatenate([log.offsets, log.offsets[-1] + [1, 4, 5, 6]])
    placement = place(SimpleNamespace(offsets=offsets, ids=ids), 100, 8, method)
    check(placement, 100, 8)
    company = np.unique(placement.id_of_position()[:40])
    assert set(company) <= set(range(40))
    tail = placement.id_of_position()[company.size :].tolist()
    assert [row for row in tail if row >= 40][:4] == [50, 90, 41, 40]


@each_method()
@pytest.mark.parametrize(
    ("log", "rows", "capacity"),
    [
        (random_log(0, 8, 20, 5), 8, 8),  # one block
        (random_log(0, 8, 20, 5), 8, 64),  # fewer rows than a block
        (random_log(0, 1, 20, 5), 1, 1),  # one row
        (random_log(0, 50, 20, 5), 50, 1),  # blocks of one row
        (random_log(0, 6, 20, 5), 60, 8),  # the rows that were seen fit into one block
        (random_log(0, 50, 0, 5), 50, 4),  # no request
        (random_log(0, 50, 30, 1), 50, 4),  # no request of two rows
        (random_log(0, 1, 0, 1), 0, 4),  # no row
    ],
)
def test_the_library_never_sees_what_needs_no_partition(
    method: str,
    log: SimpleNamespace,
    rows: int,
    capacity: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child, "__file__", "/nonexistent/child.py")
    check(place(log, rows, capacity, method), rows, capacity)


@needs("mtkahypar")
def test_deterministic_preset_is_the_same_on_any_number_of_threads() -> None:
    log = community_log(seed=1, communities=12)
    first = place(log, 192, 10, "mtkahypar", seed=5, threads=1, deterministic=True)
    again = place(log, 192, 10, "mtkahypar", seed=5, threads=2, deterministic=True)
    assert np.array_equal(first.position_of_id, again.position_of_id)


@needs("kahypar")
def test_kahypar_repeats_itself() -> None:
    log = community_log(seed=1, communities=12)
    first = place(log, 192, 10, "kahypar", seed=5).position_of_id
    assert np.array_equal(first, place(log, 192, 10, "kahypar", seed=5).position_of_id)


@needs("mtkahypar")
@pytest.mark.parametrize(
    ("quality", "options", "preset"),
    [
        ("fast", {}, "LARGE_K"),
        ("balanced", {}, "DEFAULT"),
        ("best", {}, "DEFAULT"),
        ("fast", {"deterministic": True}, "DETERMINISTIC"),
    ],
)
def test_mtkahypar_says_which_preset_it_takes(
    quality: str, options: dict[str, bool], preset: str
) -> None:
    stages = Stages()
    log = community_log(seed=2, communities=4)
    place(log, 64, 16, "mtkahypar", quality=quality, progress=stages, **options)
    assert stages.labels[0] == f"mtkahypar {preset}"


class Stages(Progress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.units = 0

    def start(self, label: str, total: int, unit: str) -> None:
        self.labels.append(label)

    def advance(self, count: int) -> None:
        self.units += count


@pytest.mark.parametrize(
    ("method", "extra"),
    [("mtkahypar", "partitioners"), ("mtkahypar-large_k", "partitioners"), ("kahypar", "kahypar")],
)
def test_missing_extra_is_named(method: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library_of(method), None)
    with pytest.raises(MissingExtraError, match=rf"{method}.*pip install 'bandana-kv\[{extra}\]'"):
        place(community_log(0), 384, 16, method)


@each_method()
def test_a_log_is_needed(method: str) -> None:
    with pytest.raises(InputError, match=f"{method}.*log"):
        place(None, 384, 16, method)


@needs("mtkahypar")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_limit_s": 0}, "time_limit_s must be"),
        ({"time_limit_s": "1"}, "time_limit_s must be"),
        ({"time_limit_s": float("nan")}, "time_limit_s must be"),
        ({"imbalance": -0.1}, "imbalance must be"),
        ({"imbalance": None}, "imbalance must be"),
        ({"deterministic": True}, "no option 'deterministic'.*time_limit_s"),
        ({"time_limit": 3}, "no option 'time_limit'.*time_limit_s"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        place(community_log(0), 384, 16, "mtkahypar-large_k", **options)  # type: ignore[arg-type]


# What follows puts other programs in the place of the child.


Put = Callable[[str], None]


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    def put(program: str) -> None:
        script = tmp_path / "program.py"
        script.write_text("import json, os, sys, time, array\norder = json.loads(sys.argv[1])\n")
        with open(script, "a") as file:
            file.write(program)
        monkeypatch.setattr(child, "__file__", str(script))
        monkeypatch.setattr(methods, "_need", lambda *_: None)

    return put


def children() -> list[int]:
    """Return the children of this process that are partitioners, zombies included."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            command = (entry / "cmdline").read_text(errors="replace")
        except (OSError, IndexError):
            continue
        if parent == str(os.getpid()) and ("blocks_file" in command or not command):
            found.append(int(entry.name))
    return found


def leftovers() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("bandana-partition-*"))


def test_time_limit(instead: Put) -> None:
    instead("time.sleep(60)\n")
    before, began = leftovers(), time.monotonic()
    progress = Stages()
    with pytest.raises(PartitionerError, match=r"not done after time_limit_s=1\.2"):
        place(community_log(0), 384, 16, "mtkahypar", time_limit_s=1.2, progress=progress)
    assert time.monotonic() - began < 5
    assert progress.units == 1
    assert children() == []
    assert leftovers() <= before


def test_ctrl_c_ends_the_child_within_a_second(instead: Put) -> None:
    instead("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)\n")
    place(community_log(0), 16 * 24, 384, "mtkahypar")  # compiles the kernels
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(1.0, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        place(community_log(0), 384, 16, "mtkahypar")
    assert time.monotonic() - sent[0] < 1
    timer.join()
    assert children() == []


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("sys.exit('no such preset')\n", "status 1: no such preset"),
        ("os._exit(3)\n", "status 3: it said nothing"),
        ("os.kill(os.getpid(), 9)\n", r"signal 9 \(out of memory\?\)"),
        ("raise MemoryError('too big')\n", "MemoryError: too big"),
        ("", "placed 0 rows, but was given 384"),
        ("open(order['blocks_file'], 'wb').write(bytes(4 * 383))\n", "placed 383 rows"),
        (
            "open(order['blocks_file'], 'wb').write(array.array('i', [24] * 384).tobytes())\n",
            "named block 24 of 24",
        ),
        (
            "open(order['blocks_file'], 'wb').write(array.array('i', [-1] * 384).tobytes())\n",
            "named block -1 of 24",
        ),
    ],
)
def test_a_failing_child_is_a_clear_error(program: str, message: str, instead: Put) -> None:
    instead(program)
    with pytest.raises(PartitionerError, match=message) as caught:
        place(community_log(0), 384, 16, "mtkahypar")
    assert isinstance(caught.value, BandanaError)
    assert str(caught.value).startswith("mtkahypar DEFAULT")


def test_a_partition_into_one_block_is_repaired(instead: Put) -> None:
    instead("open(order['blocks_file'], 'wb').write(bytes(4 * 384))\n")
    check(place(community_log(0), 384, 16, "mtkahypar"), 384, 16)


@needs("kahypar")
def test_a_configuration_that_the_library_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_KAHYPAR", "mode=sideways\n")
    with pytest.raises(PartitionerError, match="kahypar failed with"):
        place(community_log(0), 384, 16, "kahypar")


@needs("kahypar")
def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Nobody is left to end it when the process that asked was killed."""
    program = tmp_path / "asks.py"
    program.write_text(
        "import numpy as np\n"
        "from types import SimpleNamespace\n"
        "from bandana_kv.placement import place\n"
        "ids = np.random.default_rng(0).integers(20000, size=400000)\n"
        "log = SimpleNamespace(offsets=np.arange(0, 400001, 20), ids=ids)\n"
        "place(log, 20000, 4, 'kahypar')\n"
    )
    asks = subprocess.Popen([sys.executable, program], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        running = Path(f"/proc/{asks.pid}/task/{asks.pid}/children")
        found = wait_for(lambda: running.read_text().split(), 60)
        wait_for(lambda: b"libmini_boost" in Path(f"/proc/{found[0]}/maps").read_bytes(), 60)
    finally:
        asks.kill()
        asks.wait()
    wait_for(lambda: not alive(int(found[0])), 5)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for(condition: Callable[[], T], seconds: float) -> T:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"did not happen within {seconds} s")
