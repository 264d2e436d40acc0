"""The profile as a file: written and read back, refused where it is damaged, and asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bandana_kv.device import BlockSize, Cell, DeviceProfile, Mount, WriteRates
from bandana_kv.device.record import FORMAT_VERSION, check_writable
from bandana_kv.errors import FormatError, InputError


def cell(block_bytes: int, depth: int, rate: float, jobs: int = 1) -> Cell:
    return Cell(block_bytes, depth, jobs, rate, 50.0 * depth, 40.0 * depth, 90.0 * depth)


PROFILE = DeviceProfile(
    format=FORMAT_VERSION,
    created="2026-01-02T03:04:05+00:00",
    kernel="6.1.0",
    mount=Mount(2049, "/data", "ext4", "0c0ffee0-0000-4000-8000-000000000000", "A disk"),
    engine="io_uring",
    fio_version="3.33",
    quick=True,
    file_bytes=1 << 29,
    cells=(
        cell(4096, 1, 1e4),
        cell(4096, 4, 4e4),
        cell(4096, 4, 8e4, jobs=2),
        cell(16384, 1, 5e3),
        cell(16384, 4, 1e4),
    ),
    skipped_block_bytes=(512,),
    sizes=(BlockSize(4096, 4, 4e4, 360.0, True), BlockSize(16384, 4, 1e4, 360.0, True)),
    block_bytes=4096,
    queue_depth=4,
    jobs=1,
    p99_budget_us=1000.0,
    budget_met=True,
    spread=0.1,
    row_bytes=None,
    writes=WriteRates(2e9, 1e5),
)


def test_what_was_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    for profile in (msgspec.structs.replace(PROFILE, writes=None), PROFILE):
        profile.write(tmp_path / "device.json")
        assert DeviceProfile.read(tmp_path / "device.json") == profile
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": FORMAT_VERSION + 1, "cells": "elsewhere"}, "newer than this release"),
        ({"format": "1"}, "damaged, or no device profile"),
        ({"surprise": 1}, "damaged, or no device profile"),
        ({"cells": None}, "damaged, or no device profile"),
        ({"cells": []}, "contradict"),
        ({"format": 0}, "contradict"),
        ({"queue_depth": 64}, "contradict"),
        ({"block_bytes": 8192}, "contradict"),
        ({"jobs": 0}, "contradict"),
        ({"p99_budget_us": -1}, "contradict"),
        ({"spread": 2}, "contradict"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "device.json"
    path.write_text(json.dumps(json.loads(msgspec.json.encode(PROFILE)) | change))
    with pytest.raises(FormatError, match=rf"device\.json: .*{said}"):
        DeviceProfile.read(path)


@pytest.mark.parametrize("number", [0.0, -1.0])
@pytest.mark.parametrize("name", ["block_bytes", "depth", "jobs", "reads_per_second", "p99_us"])
def test_no_cell_is_believed_whose_numbers_cannot_be(
    tmp_path: Path, name: str, number: float
) -> None:
    content = json.loads(msgspec.json.encode(PROFILE))
    content["cells"][-1][name] = number if name.endswith(("second", "us")) else int(number)
    (tmp_path / "device.json").write_text(json.dumps(content))
    with pytest.raises(FormatError, match="contradict"):
        DeviceProfile.read(tmp_path / "device.json")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1', b'{"format": 1}', b"\xff\xfe"])
def test_other_files_are_no_profiles(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "device.json").write_bytes(content)
    with pytest.raises(FormatError, match="damaged, or no device profile"):
        DeviceProfile.read(tmp_path / "device.json")


def test_a_missing_profile_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No such file.*profile_device\.py"):
        DeviceProfile.read(tmp_path / "device.json")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dev/null", "no ordinary file"),
        (".", "no ordinary file"),
        ("nowhere/device.json", "nowhere is not a directory"),
        ("file/device.json", "file is not a directory"),
    ],
)
def test_a_profile_replaces_nothing_but_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for write in (check_writable, PROFILE.write):
        with pytest.raises(InputError, match=said):
            write(Path(path))


def test_what_was_measured_is_answered_as_it_is() -> None:
    assert PROFILE.reads_per_second(4096, 1) == pytest.approx(1e4)
    assert PROFILE.reads_per_second(16384, 4) == pytest.approx(1e4)
    assert PROFILE.latency_us(4096, 4) == pytest.approx(200.0)
    assert PROFILE.latency_us(4096, 4, "p50") == pytest.approx(160.0)
    assert PROFILE.latency_us(4096, 4, "p99") == pytest.approx(360.0)


def test_between_measurements_the_answer_is_geometric() -> None:
    assert PROFILE.reads_per_second(4096, 2) == pytest.approx(2e4)
    assert PROFILE.reads_per_second(8192, 4) == pytest.approx(2e4)


def test_outside_of_them_the_nearest_answers() -> None:
    assert PROFILE.reads_per_second(512, 1) == pytest.approx(1e4)
    assert PROFILE.reads_per_second(1 << 20, 512) == pytest.approx(1e4)


def test_the_jobs_that_were_chosen_answer() -> None:
    two = msgspec.structs.replace(PROFILE, jobs=2)
    assert two.reads_per_second(4096, 4) == pytest.approx(8e4)
    assert two.reads_per_second(4096, 1) == pytest.approx(1e4)


@pytest.mark.parametrize(("block_bytes", "depth"), [(0, 1), (4096, 0), (4096, -1)])
def test_no_read_no_answer(block_bytes: int, depth: int) -> None:
    with pytest.raises(InputError, match="no reads of"):
        PROFILE.reads_per_second(block_bytes, depth)


def test_it_matches_the_mount_that_was_measured_and_no_other(tmp_path: Path) -> None:
    here = msgspec.structs.replace(PROFILE, mount=Mount.of(tmp_path))
    assert here.matches(tmp_path)
    assert not here.matches("/proc")
    with pytest.raises(InputError, match="cannot be opened"):
        here.matches(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("uuid", "other_uuid", "other_device", "same"),
    [
        ("a", "a", 2, True),  # device numbers change when a machine starts
        ("a", "b", 1, False),  # another disk in the same place
        ("a", None, 1, True),
        (None, None, 1, True),
        (None, None, 2, False),
    ],
)
def test_the_uuid_decides_where_it_is_known(
    uuid: str | None, other_uuid: str | None, other_device: int, same: bool
) -> None:
    mount = Mount(1, "/data", "ext4", uuid, None)
    other = Mount(other_device, "/data", "ext4", other_uuid, None)
    assert mount.same_as(other) is same
    assert other.same_as(mount) is same


def test_a_mount_is_what_the_system_says(tmp_path: Path) -> None:
    mount = Mount.of(tmp_path)
    assert mount.device_id == tmp_path.stat().st_dev
    assert tmp_path.resolve().is_relative_to(mount.mount_point)
    assert Path(mount.mount_point).stat().st_dev == mount.device_id
    assert Mount.of(Path("/proc")).file_system == "proc"
