"""Placement of a log in files: the result, and that it depends on nothing but the log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv import AccessLog, simulate
from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.logs.recording import Recorder
from bandana_kv.placement import Placement, distributed, fanout, place
from bandana_kv.placement.distributed import Figures, InProcess, OnRay, open_log, place_log
from bandana_kv.placement.distributed.across import refine_across
from bandana_kv.placement.distributed.runner import Kernel, Sums, Task
from bandana_kv.placement.distributed.shares import Share
from bandana_kv.placement.hypergraph import build_hypergraph, count_requests
from bandana_kv.placement.parallel import Workers
from bandana_kv.placement.refine import refine
from bandana_kv.placement.shp import SCHEDULES
from bandana_kv.progress import Progress
from bandana_kv.tools.place import main

ROWS, REQUESTS, ROWS_PER_BLOCK = 3000, 4000, 31


class Unreliable(InProcess):
    """Deals shares among several workers, in any order, and does now and then all twice."""

    def __init__(self, workers: int, seed: int) -> None:
        super().__init__(threads=1)
        self.workers = workers
        self._rng = np.random.default_rng(seed)

    def map_log(self, kernel: Kernel, shares: Sequence[Share], *values: Any) -> Sums:
        dealt = np.array_split(self._rng.permutation(len(shares)), self.workers)
        total: Sums = ()
        for numbers in dealt:
            if not numbers.size:
                continue
            own = [shares[number] for number in numbers]
            if self._rng.random() < 0.2:
                kernel(own, *values)  # its answer is lost
            found = kernel(own, *values)
            total = tuple(a + b for a, b in zip(total, found, strict=True)) if total else found
        return total

    def each(self, task: Task, items: Sequence[Any], *values: Any) -> Iterator[tuple[int, Any]]:
        for number in self._rng.permutation(len(items)).tolist():
            yield number, task(items[number], *values)


def ring_log(seed: int, requests: int = REQUESTS, rows: int = ROWS) -> AccessLog:
    """Return requests of 8 rows near one point of a ring of shuffled ids, and 2 anywhere.

    The last hundred rows are asked for alone, if at all.
    """
    rng = np.random.default_rng(seed)
    used = rows - 100
    id_of_point = np.random.default_rng(0).permutation(used)
    near = rng.integers(used, size=requests)[:, None] + rng.integers(40, size=(requests, 8))
    anywhere = rng.integers(used, size=(requests, 2))
    ids = id_of_point[np.concatenate([near, anywhere], axis=1) % used]
    alone = [[rows - 1 - row] for row in range(50) for _ in range(50 - row)]
    return AccessLog.from_requests([*ids, *alone])


@pytest.fixture(scope="module")
def log() -> AccessLog:
    return ring_log(1)


@pytest.fixture(scope="module")
def files(log: AccessLog, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The log in files of several formats."""
    directory = tmp_path_factory.mktemp("log")
    names = ["0.npz", "1.npz", "2.parquet", "3.txt"]
    for number, name in enumerate(names):
        edges = [log.requests * at // len(names) for at in (number, number + 1)]
        some = log.select(np.arange(*edges))
        if name == "3.txt":
            lines = [" ".join(map(str, some.request(at))) for at in range(some.requests)]
            (directory / name).write_text("\n".join(lines) + "\n")
        elif name == "1.npz":
            np.savez_compressed(directory / name, offsets=some.offsets, ids=some.ids)
        else:
            some.write(directory / name)
    return [directory / name for name in names]


@pytest.fixture(scope="module")
def placement(files: list[Path]) -> Placement:
    return distributed.place(files, ROWS, ROWS_PER_BLOCK, parts=4)


def test_the_result_is_a_permutation(placement: Placement) -> None:
    assert np.array_equal(np.sort(placement.position_of_id), np.arange(ROWS))
    assert (placement.method, placement.learned_from) == ("shp", 1.0)


def test_one_part_is_what_one_machine_places(log: AccessLog, files: list[Path]) -> None:
    one = place(log, ROWS, ROWS_PER_BLOCK)
    assert np.array_equal(
        distributed.place(files, ROWS, ROWS_PER_BLOCK, parts=1).position_of_id, one.position_of_id
    )


def test_held_out_requests_touch_as_few_blocks_as_on_one_machine(
    log: AccessLog, files: list[Path]
) -> None:
    held_out = ring_log(2)
    # Seeds differ by 2 % on a log as small as this.
    one, parts = (
        np.mean(
            [
                fanout(held_out, distributed.place(files, ROWS, ROWS_PER_BLOCK, parts=n, seed=seed))
                for seed in range(6)
            ]
        )
        for n in (1, 4)
    )
    assert parts < 1.02 * one
    assert one < 0.6 * fanout(held_out, place(None, ROWS, ROWS_PER_BLOCK, "shuffled"))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_and_their_failures_change_nothing(
    files: list[Path], placement: Placement, workers: int
) -> None:
    runner = Unreliable(workers, seed=workers)
    again = distributed.place(files, ROWS, ROWS_PER_BLOCK, parts=4, runner=runner)
    assert np.array_equal(again.position_of_id, placement.position_of_id)


def test_other_seeds_place_otherwise(files: list[Path], placement: Placement) -> None:
    other = distributed.place(files, ROWS, ROWS_PER_BLOCK, parts=4, seed=1)
    assert not np.array_equal(other.position_of_id, placement.position_of_id)


def test_rows_asked_for_alone_come_last_by_their_lookups(placement: Placement) -> None:
    positions = placement.position_of_id[ROWS - 50 :]
    assert positions.tolist() == list(range(ROWS - 51, ROWS - 101, -1))


def test_rows_are_those_of_the_files_unless_said(files: list[Path]) -> None:
    assert distributed.place(files, parts=2, quality="fast").rows == ROWS
    assert distributed.place(files, 5000, parts=2, quality="fast").rows == 5000


def test_a_directory_is_its_files(files: list[Path]) -> None:
    one = distributed.place([files[0].parent], ROWS, parts=2, quality="fast")
    other = distributed.place(files, ROWS, parts=2, quality="fast")
    assert np.array_equal(one.position_of_id, other.position_of_id)


def test_a_recording_is_a_file_of_the_log(tmp_path: Path, log: AccessLog) -> None:
    with Recorder(tmp_path / "recording", 1.0, 4 << 20, 1 << 20, 4096, lambda: (1, {})) as recorder:
        for number in range(500):
            recorder.note("t", log.request(number))
    log.select(np.arange(500)).write(tmp_path / "log.npz")
    recorded, written = (
        distributed.place([tmp_path / name], ROWS, parts=2, quality="fast")
        for name in ("recording", "log.npz")
    )
    assert np.array_equal(recorded.position_of_id, written.position_of_id)


def test_parts_follow_from_the_memory_of_a_worker(files: list[Path]) -> None:
    found = []
    for memory_bytes in (64 << 20, 1_000_000):
        runner, figures = InProcess(), Figures()
        with open_log(files, runner, worker_memory_bytes=memory_bytes) as opened:
            made = place_log(opened, ROWS_PER_BLOCK, runner=runner, figures=figures)
        assert np.array_equal(np.sort(made.position_of_id), np.arange(ROWS))
        found.append(figures.parts)
    assert found[0] == 1 < found[1]


def test_refinement_across_parts_is_that_of_one_machine(log: AccessLog, files: list[Path]) -> None:
    runner, schedule = InProcess(), SCHEDULES["balanced"]
    counts = count_requests(log.offsets, log.ids, ROWS)
    rows = np.random.default_rng(3).permutation(ROWS).astype(np.int32)
    rows = rows[counts.degree[rows] > 0]
    graph = build_hypergraph(log.offsets, log.ids, rows, counts)
    order = np.arange(rows.size, dtype=np.int32)
    with Workers(2, Progress()) as workers:
        refine(graph, order, ROWS_PER_BLOCK, schedule, 5, workers)
    with open_log(files, runner, ROWS) as opened:
        degree = counts.degree.astype(np.int32)
        refined = refine_across(
            runner,
            opened.shares,
            rows,
            degree,
            ROWS_PER_BLOCK,
            schedule,
            5,
            opened.room,
            Progress(),
        )
    assert np.array_equal(refined, rows[order])


def test_a_curve_is_that_of_a_log_that_is_held(log: AccessLog, files: list[Path]) -> None:
    runner = Unreliable(2, seed=1)
    made = place(log, ROWS, ROWS_PER_BLOCK, "popularity")
    capacities = [0, 200, 500]
    for rate, warm in ((0.3, 0), (0.5, 1000), (1.0, 700)):
        whole = simulate.curve(log, made, capacities, rate=rate, warm_requests=warm)
        with open_log(files, runner, ROWS, worker_memory_bytes=300_000) as opened:
            assert len(opened.shares) > len(files)
            found = distributed.curve(
                runner, opened, made, capacities, rate=rate, warm_requests=warm
            )
        for name in ("reads_per_lookup", "miss_ratio", "low", "high"):
            assert np.array_equal(getattr(found, name), getattr(whole, name)), name
        assert found.rate == whole.rate


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rate": 2.0}, "rate 2.0 is not above 0"),
        ({"seeds": ()}, "seeds is empty"),
        ({"warm_requests": 10**6}, "warm_requests 1000000 is not between"),
        ({"rate": 0.5, "worker_memory_bytes": 1 << 16}, "pass rate=0.0"),
    ],
)
def test_curves_out_of_range(files: list[Path], given: dict[str, Any], says: str) -> None:
    runner = InProcess()
    made = place(None, ROWS, ROWS_PER_BLOCK, "identity")
    with (
        open_log(files, runner, ROWS) as opened,
        pytest.raises(InputError, match=says),
    ):
        distributed.curve(runner, opened, made, [100], **given)


def test_what_is_held_out_is_not_learned_from(files: list[Path], log: AccessLog) -> None:
    runner = InProcess()
    with open_log(files, runner, ROWS, train=0.7) as opened:
        made = place_log(opened, ROWS_PER_BLOCK, runner=runner, quality="fast")
        learned, held_out = distributed.fanout(runner, opened, made)
        lookups, _, _ = distributed.count_rows(runner, opened)
    assert learned is not None
    assert held_out is not None
    assert learned < held_out
    assert 0.66 < made.learned_from < 0.74
    # both together are all of the log, which one machine counts
    whole = fanout(log, made)
    assert learned < whole < held_out
    assert np.array_equal(lookups, np.bincount(log.ids, minlength=ROWS))


def test_a_placement_loads_and_serves(tmp_path: Path, placement: Placement) -> None:
    placement.save(tmp_path / "placement")
    rows = np.random.default_rng(0).random((ROWS, 32), np.float32)
    placed = Placement.load(tmp_path / "placement")
    bandana_kv.load(tmp_path / "store", {"user": rows}, placement={"user": placed})
    with bandana_kv.open(tmp_path / "store") as store:
        assert np.array_equal(store.placement("user").position_of_id, placement.position_of_id)
        assert np.array_equal(store.multi_get("user", np.arange(ROWS)), rows)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not a zip", "not a complete .npz"),
        (b"", "the file is empty"),
    ],
)
def test_a_malformed_file_is_named(
    files: list[Path], tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(InputError, match=f"bad.npz: .*{says}|bad.npz.*{says}"):
        distributed.place([*files, tmp_path / "bad.npz"], ROWS, work_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npz"]  # no work directory is left


def test_an_id_beyond_the_table_is_named_with_its_file(files: list[Path]) -> None:
    with pytest.raises(InputError, match=r"3\.txt: looks up id 2999, but the table has 2990 rows"):
        distributed.place(files, ROWS - 10)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"parts": 3}, "parts must be a power of two, not 3"),
        ({"quality": "magic"}, "unknown quality 'magic'"),
        ({"train": 0.0}, "train is a share"),
        ({"rows_per_block": 0}, "rows_per_block"),
        ({"rows": 0}, "rows must be between"),
        ({"worker_memory_bytes": 1 << 16}, "2.parquet: .* more than a worker of 64.00 KiB reads"),
        ({"work_dir": "/nowhere"}, "/nowhere: no work directory can be made there"),
    ],
)
def test_arguments_out_of_range(files: list[Path], given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        distributed.place(files[1:3][::-1], **given)


def test_too_little_memory_says_how_much_is_enough(files: list[Path]) -> None:
    with pytest.raises(InputError, match=r"worker_memory_bytes 100000 .* at least 182\.31 KiB"):
        distributed.place(files[:1], ROWS, worker_memory_bytes=100_000)


@pytest.mark.parametrize(("paths", "says"), [([], "no files"), (["x.npz"], "x.npz: no such file")])
def test_a_log_without_files(paths: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        distributed.place(paths, ROWS)


def test_ray_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bandana-kv\[ray\]'"):
        OnRay(1)


def test_ray_is_not_imported_before_it_is_asked_for() -> None:
    code = "import sys, bandana_kv.placement.distributed; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_the_command_line_places_files(files: list[Path], tmp_path: Path) -> None:
    status, output = run(*files, "--parts", 4, "--out", tmp_path / "placement", "--json")
    assert status == 0, output
    found = json.loads(output)
    placed = Placement.load(tmp_path / "placement")
    expected = distributed.place(files, ROWS, ROWS_PER_BLOCK, parts=4, train=0.7)
    assert np.array_equal(placed.position_of_id, expected.position_of_id)
    blocks = found["blocks_per_request"]
    assert blocks["shp"]["held_out"] < 0.7 * blocks["shuffled"]["held_out"]
    assert (found["parts"], found["workers"], found["rows"]) == (4, 1, ROWS)
    assert found["moved"]["files_bytes"] > 0
    assert found["seconds"] > 0
    assert len(found["worker_peak_bytes"]) == 1


def test_the_command_line_prints_what_it_did(files: list[Path], tmp_path: Path) -> None:
    status, output = run(
        files[0].parent, "--parts", 2, "--quality", "fast", "--out", tmp_path / "p"
    )
    assert status == 0, output
    assert "in 2 parts by 1 workers" in output
    assert "by way of files" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "files of a log"),
        (("a.npz", "b.npz", "--method", "popularity"), "--method popularity is for a log in one"),
        (("a.npz", "b.npz", "--ordered"), "--ordered is for a log in one file"),
        (("a.npz", "--workers", 2), "give --ray, too"),
        (("a.npz", "b.npz"), "a.npz: no such file"),
    ],
)
def test_what_the_command_line_refuses(
    tmp_path: Path, arguments: tuple[object, ...], says: str
) -> None:
    status, output = run(*arguments, "--out", tmp_path / "placement")
    assert status != 0
    assert says in output
