"""Measuring: fio's driver against scripts that stand for fio, and profiles made with them."""

from __future__ import annotations

import itertools
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bandana_kv import AccessLog
from bandana_kv.device import DeviceProfile, Mount, profile, profiler, sweep
from bandana_kv.device import fio as fio_module
from bandana_kv.device.engine import Engine, Shape
from bandana_kv.device.fio import Fio, find_fio
from bandana_kv.device.mount import IN_MEMORY
from bandana_kv.device.threads import Threads
from bandana_kv.device.workfile import WorkFile, work_file
from bandana_kv.errors import DiskFullError, InputError, MissingExtraError
from bandana_kv.progress import Progress

FILE_BYTES = 8 << 20
TINY = sweep.Effort(FILE_BYTES, 1, 1, 1, 60.0, False, 10_000)

# Answers as fio does, from a model of a device: 20 us a read and 10 more for each KiB, eight
# reads at a time, and a p99 of four times the mean.
MODEL = """
import json, re, sys
if sys.argv[1:] == ["--version"]:
    print("fio-9.1"); sys.exit()
text = " ".join(sys.argv[1:])
if re.search("ioengine=(REFUSED)", text):
    print("fio: engine not loadable", file=sys.stderr); sys.exit(1)
side = {"iops": 0, "lat_ns": {"mean": 0}}
jobs = []
for job in text.split("--name=")[1:]:
    size, each, threads = (
        int(re.search(f"--{name}=([0-9]+)", job)[1]) for name in ("bs", "iodepth", "numjobs")
    )
    us = 20 + 10 * max(4, size / 1024)
    depth = each * threads
    rate = 1e6 / us * min(depth, 8) * (GAIN if threads == 2 else 1)
    mean = depth / rate * 1e9
    lat = {"mean": mean, "percentile": {"50.000000": mean, "99.000000": 4 * mean}}
    measured = {"iops": rate, "lat_ns": lat}
    jobs.append({"error": 0, "read": measured, "write": measured, "extra": 1})
print("fio: a note before the answer")
print(json.dumps({"fio version": "fio-9.1", "jobs": jobs}))
"""

Fake = Callable[..., Path]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    if Mount.of(tmp_path).file_system in IN_MEMORY:
        pytest.skip("temporary files lie in memory here; give pytest --basetemp on a disk")
    path = tmp_path / "device"
    path.mkdir()
    try:
        with work_file(path, FILE_BYTES, Progress()):
            pass
    except (InputError, DiskFullError) as error:
        pytest.skip(f"temporary files do not lie on a device here: {error}")
    return path


@pytest.fixture
def file(directory: Path) -> WorkFile:
    handle = os.open(directory / "file", os.O_RDWR | os.O_CREAT, 0o600)
    os.truncate(handle, FILE_BYTES)
    return WorkFile(handle, FILE_BYTES)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a script in fio's place, before or instead of everything on PATH."""
    numbers = itertools.count()

    def install(script: str, *, interpreter: str = f"{sys.executable} -SE") -> Path:
        path = tmp_path / f"bin{next(numbers)}" / "fio"
        path.parent.mkdir()
        path.write_text(f"#!{interpreter}\n{textwrap.dedent(script)}")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent))
        return path

    return install


def model(*, refused: str = "none", gain: float = 1.0) -> str:
    return MODEL.replace("REFUSED", refused).replace("GAIN", str(gain))


def answers(script: str) -> str:
    """Return a shell script that is fio when asked for its version, and else as given."""
    return f'[ "$1" = --version ] && echo fio-9.1 && exit\n{script}\n'


def test_without_fio_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match=r"apt-get install fio.*PyPI.*--engine python"):
        profile(tmp_path, quick=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("says", ["echo fio, version 1.10.0", "echo usage >&2; exit 2", "echo"])
def test_another_program_of_that_name_is_not_fio(fake: Fake, says: str) -> None:
    path = fake(says, interpreter="/bin/sh")
    with pytest.raises(MissingExtraError, match=rf"{path} is another program"):
        find_fio()


def test_fio_is_found_behind_another_program(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    other, real = fake("echo 1", interpreter="/bin/sh"), fake(model())
    monkeypatch.setenv("PATH", f"{other.parent}:{real.parent}")
    assert find_fio() == (str(real), "9.1")


@pytest.mark.parametrize(
    ("refused", "name"),
    [("none", "io_uring"), ("io_uring", "libaio"), ("io_uring|libaio", "psync")],
)
def test_the_first_engine_that_works_is_taken(
    fake: Fake, file: WorkFile, refused: str, name: str
) -> None:
    fake(model(refused=refused))
    assert Fio.that_works(file).name == name


def test_where_no_engine_works_fio_says_why(fake: Fake, file: WorkFile) -> None:
    fake(model(refused="io_uring|libaio|psync"))
    with pytest.raises(InputError, match=r"9\.1 \(io_uring\) failed: .*not loadable.*\(psync\)"):
        Fio.that_works(file)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no permission >&2; exit 1", r"fio 9\.1 \(libaio\) failed: no permission"),
        ("echo '{\"jobs\": ['", "it said nothing that can be read"),
        ("echo 'fio: got lost'", "fio: got lost"),
        ("true", "it said nothing that can be read"),
        ("echo '{\"jobs\": []}'", "failed"),
        (
            'echo \'{"jobs": [{"error": 5, "read": SIDE, "write": SIDE}]}\''.replace(
                "SIDE", '{"iops": 1, "lat_ns": {}}'
            ),
            "failed",
        ),
        ("kill -9 $$", "failed"),
    ],
)
def test_failures_of_fio_are_named(fake: Fake, file: WorkFile, script: str, said: str) -> None:
    path = fake(answers(script), interpreter="/bin/sh")
    with pytest.raises(InputError, match=said):
        Fio(str(path), "9.1", "libaio").measure(file, "randread", [Shape(4096, 1, 1)], 1)


def test_a_fio_that_hangs_is_stopped(
    fake: Fake, file: WorkFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fio_module, "_SECONDS_TO_ANSWER", 0.2)
    path = fake(answers("exec sleep 100"), interpreter="/bin/sh")
    monkeypatch.setenv("PATH", os.defpath)
    with pytest.raises(InputError, match="gave no answer"):
        Fio(str(path), "9.1", "libaio").measure(file, "randread", [Shape(4096, 1, 1)], 1)


def test_depth_is_shared_by_jobs_and_made_of_threads_for_psync(fake: Fake, file: WorkFile) -> None:
    path = fake(model())
    shape = Shape(4096, 6, 2)
    # the model gives eight times the rate to eight in flight, however they are
    rates = {
        Fio(str(path), "9.1", name).measure(file, "randread", [s], 1)[0].per_second
        for name, s in (("io_uring", shape), ("psync", shape._replace(jobs=1)))
    }
    assert rates == {6e6 / 60}


def test_numbers_of_fio_are_in_microseconds(fake: Fake, file: WorkFile) -> None:
    path = fake(model())
    (measured,) = Fio(str(path), "9.1", "psync").measure(file, "write", [Shape(4096, 1, 1)], 1)
    assert measured == pytest.approx((1e6 / 60, 60.0, 60.0, 240.0))


@pytest.fixture(params=["fio", "python"])
def driver(request: pytest.FixtureRequest, directory: Path) -> Engine:
    if request.param == "python":
        return Threads()
    try:
        find_fio()
    except MissingExtraError:
        pytest.skip("the system's fio is not installed")
    with work_file(directory, FILE_BYTES, Progress()) as file:
        return Fio.that_works(file)


def test_a_real_device_is_measured(driver: Engine, directory: Path) -> None:
    shapes = [Shape(4096, 1, 1), Shape(4096, 8, max(driver.job_counts)), Shape(131072, 2, 1)]
    with work_file(directory, FILE_BYTES, Progress()) as file:
        found = driver.measure(file, "randread", shapes, 100)
        written = driver.measure(file, "write", [Shape(1 << 20, 2, 1)], 50)
        written += driver.measure(file, "randwrite", [Shape(4096, 4, 1)], 50)
        assert os.fstat(file.handle).st_size == FILE_BYTES
        assert list(directory.iterdir()) == []
    for measured in (*found, *written):
        assert measured.per_second > 1
        assert 0 < measured.p50_us <= measured.p99_us
    for shape, measured in zip(shapes, found, strict=True):
        # reads in flight = rate x latency, roughly even where the machine is busy
        in_flight = measured.per_second * measured.mean_us / 1e6
        assert shape.depth / 4 < in_flight < shape.depth * 2


def test_threads_write_in_order_each_its_share(
    file: WorkFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(os, "pwritev", lambda _, blocks, at: written.append(at) or len(blocks[0]))
    Threads().measure(file, "write", [Shape(1 << 20, 2, 1)], 50)
    assert set(written) == set(range(0, FILE_BYTES, 1 << 20))
    for first in (0, 1 << 20):
        share = [at for at in written if at % (2 << 20) == first]
        assert share[:5] == [*range(first, FILE_BYTES, 2 << 20), first]


def test_a_read_that_fails_is_an_input_error(file: WorkFile) -> None:
    os.close(file.handle)
    with pytest.raises(InputError, match="randread failed: Bad file descriptor"):
        Threads().measure(file, "randread", [Shape(4096, 2, 1)], 1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "QUICK", TINY)
    monkeypatch.setattr(profiler, "FULL", TINY._replace(all_jobs=True, passes=2, rounds=2))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("quick", [True, False])
def test_the_knee_and_the_size_of_the_model_are_found(
    fake: Fake, directory: Path, quick: bool
) -> None:
    fake(model())
    found = profile(directory, quick=quick, writes=True)
    # up to 4 KiB all sizes take as long, and eight reads at a time saturate the model
    readable = 512 not in found.skipped_block_bytes
    assert found.block_bytes == (512 if readable else 4096)
    assert (found.queue_depth, found.jobs, found.budget_met) == (8, 1, True)
    assert (found.engine, found.fio_version, found.quick) == ("io_uring", "9.1", quick)
    assert found.reads_per_second(4096, 8) == pytest.approx(8e6 / 60)
    assert found.latency_us(4096, 8, "p99") == pytest.approx(240.0)
    assert found.spread == 0.0
    assert found.writes is not None
    assert found.writes.random_writes_per_second == pytest.approx(8e6 / 60)
    assert found.writes.sequential_bytes_per_second == pytest.approx(8e6 / 10260 * (1 << 20))
    assert found.matches(directory)
    assert list(directory.iterdir()) == []
    two_jobs = {cell.block_bytes for cell in found.cells if cell.jobs == 2}
    assert two_jobs == {4096} if quick else len(two_jobs) > 4
    found.write(directory / "device.json")
    assert DeviceProfile.read(directory / "device.json") == found


@pytest.mark.usefixtures("tiny")
def test_two_jobs_are_used_where_they_gain(fake: Fake, directory: Path) -> None:
    fake(model(gain=1.5))
    found = profile(directory, quick=True)
    assert found.jobs == 2
    assert found.reads_per_second(16384, 8) == pytest.approx(1.5 * 8e6 / 180)


@pytest.mark.usefixtures("tiny")
def test_a_budget_moves_the_knee_or_is_said_to_be_out_of_reach(fake: Fake, directory: Path) -> None:
    fake(model())
    for budget, depth, met in ((480.0, 8, True), (239.0, 1, False)):
        found = profile(directory, quick=True, p99_budget_us=budget)
        assert (found.queue_depth, found.budget_met) == (depth, met)


@pytest.mark.usefixtures("tiny")
def test_a_log_decides_the_block_size(
    fake: Fake, directory: Path, rng: np.random.Generator
) -> None:
    fake(model())
    groups = rng.permutation(64 * 127).reshape(-1, 127)
    log = AccessLog.from_requests([groups[i % 64] for i in range(640)])
    found = profile(directory, quick=True, log=log, row_bytes=64)
    # requests of 127 rows of 64 bytes, which just fit 8 KiB: less than that is read more often
    # and more than that is read for nothing
    assert found.block_bytes == 8192
    chosen = next(size for size in found.sizes if size.block_bytes == 8192)
    assert chosen.rows_per_block == 127
    assert chosen.blocks_per_request is not None
    useful = 127 * 64 / chosen.blocks_per_request * chosen.reads_per_second
    assert chosen.useful_bytes_per_second == pytest.approx(useful)


@pytest.mark.usefixtures("tiny")
def test_sizes_that_the_device_cannot_read_are_left_out(
    fake: Fake, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(model())
    monkeypatch.setattr(WorkFile, "can_read", lambda _, block_bytes: block_bytes >= 4096)
    found = profile(directory, quick=True)
    assert found.skipped_block_bytes == (512, 1024, 2048)
    assert found.block_bytes == min(cell.block_bytes for cell in found.cells) == 4096


@pytest.mark.usefixtures("tiny")
def test_python_measures_where_there_is_no_fio(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sweep, "DEPTHS", (1, 4))
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    found = profile(directory, quick=True, engine="python", p99_budget_us=1e9)
    assert (found.engine, found.fio_version, found.jobs) == ("python", None, 1)
    assert {cell.depth for cell in found.cells} == {1, 4}
    assert os.getpriority(os.PRIO_PROCESS, 0) == usual
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "posix"}, "unknown engine 'posix'"),
        ({"p99_budget_us": 0}, "budget for p99"),
        ({"p99_budget_us": float("nan")}, "budget for p99"),
        ({"row_bytes": 128}, "go together"),
        ({"log": AccessLog.from_requests([[1]])}, "go together"),
        ({"log": AccessLog.from_requests([[1]]), "row_bytes": 0}, "at least 1 byte"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        profile(tmp_path, quick=True, **options)  # type: ignore[arg-type]
