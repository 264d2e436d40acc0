"""The file without a name: nothing is left of it, and only devices are profiled."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bandana_kv.device.mount import IN_MEMORY, Mount
from bandana_kv.device.workfile import check_place, work_file
from bandana_kv.errors import DiskFullError, InputError
from bandana_kv.progress import Progress

FILE_BYTES = 8 << 20


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    if Mount.of(tmp_path).file_system in IN_MEMORY:
        pytest.skip("temporary files lie in memory here; give pytest --basetemp on a disk")
    try:
        with work_file(tmp_path, FILE_BYTES, Progress()):
            pass
    except InputError as error:
        pytest.skip(f"temporary files do not lie on a device here: {error}")
    return tmp_path


def run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"this system has no command {command[0]}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{command[0]} is not allowed here: {error.stderr.strip()}")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Give a directory to mount on."""
    path = tmp_path / "a b"  # the kernel writes blanks as numbers
    path.mkdir()
    yield path
    for _ in range(2):
        subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True)


def test_the_file_has_its_bytes_and_no_name(directory: Path) -> None:
    with work_file(directory, FILE_BYTES, Progress()) as file:
        assert list(directory.iterdir()) == []
        content = Path(file.path).read_bytes()
        assert len(content) == file.bytes == FILE_BYTES
        blocks = {content[at : at + 4096] for at in range(0, FILE_BYTES, 4096)}
        assert len(blocks) == FILE_BYTES // 4096
        assert file.can_read(4096)
        assert not file.can_read(100)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.handle)


def test_file_systems_that_know_no_nameless_files(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_open = os.open

    def refusing(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return plain_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", refusing)
    with work_file(directory, FILE_BYTES, Progress()) as file:
        assert list(directory.iterdir()) == []
        assert os.fstat(file.handle).st_size == FILE_BYTES
        assert os.fstat(file.handle).st_nlink == 0


def test_no_direct_io_no_profile(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_open = os.open

    def refusing(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return plain_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", refusing)
    with (
        pytest.raises(InputError, match="has no direct I/O"),
        work_file(directory, FILE_BYTES, Progress()),
    ):
        pass


def test_room_is_checked_first(directory: Path) -> None:
    with pytest.raises(DiskFullError, match=r"MiB free, but .*free some"):
        check_place(directory, 1 << 60)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dev/null", "raw device, to which nothing is ever written"),
        (__file__, "is not a directory"),
        ("/nowhere/at/all", "No such file"),
    ],
)
def test_what_is_no_directory(path: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_place(Path(path), FILE_BYTES)


def test_block_devices_are_never_touched() -> None:
    devices = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    if not devices:
        pytest.skip("there are no block devices here")
    with pytest.raises(InputError, match="raw device, to which nothing is ever written"):
        check_place(devices[0], FILE_BYTES)


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_memory_is_no_device(mounted: Path, kind: str) -> None:
    run("mount", "-t", kind, kind, str(mounted))
    with pytest.raises(InputError, match=rf"lies in memory \({kind}\)"):
        check_place(mounted, FILE_BYTES)
    assert Mount.of(mounted).mount_point == str(mounted)


def test_memory_below_an_overlay_is_found_out(mounted: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", str(memory))
    try:
        for name in ("lower", "upper", "work"):
            (memory / name).mkdir()
        layers = f"lowerdir={memory}/lower,upperdir={memory}/upper,workdir={memory}/work"
        run("mount", "-t", "overlay", "overlay", "-o", layers, str(mounted))
        check_place(mounted, FILE_BYTES)
        # before Linux 6.6 memory has no direct I/O; since then it accepts it
        said = r"reach no device \(overlay\)|no direct I/O"
        with pytest.raises(InputError, match=said), work_file(mounted, FILE_BYTES, Progress()):
            pass
        assert list(mounted.iterdir()) == []
        run("umount", str(mounted))
    finally:
        subprocess.run(["umount", "--lazy", str(memory)], check=True)


def test_a_read_only_mount(mounted: Path) -> None:
    run("mount", "--bind", str(mounted), str(mounted))
    run("mount", "-o", "remount,bind,ro", str(mounted))
    with (
        pytest.raises(InputError, match=r"read-only file system.*mount it writable"),
        work_file(mounted, FILE_BYTES, Progress()),
    ):
        pass


def test_a_disk_that_runs_full_while_the_file_is_written(mounted: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    run("mkfs.ext4", "-q", str(image))
    run("mount", "-o", "loop", str(image), str(mounted))
    before = sorted(mounted.rglob("*"))
    with (
        pytest.raises(DiskFullError, match=r"ran full; free some, nothing was left"),
        work_file(mounted, 64 << 20, Progress()),
    ):
        pass
    assert sorted(mounted.rglob("*")) == before
    free = os.statvfs(mounted)
    assert free.f_bfree * free.f_frsize > 20 << 20
