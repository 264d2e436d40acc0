"""The command that profiles a device: its tables, its picture, and how it ends early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bandana_kv import AccessLog
from bandana_kv.device import DeviceProfile, Mount, profiler, sweep
from bandana_kv.device.mount import IN_MEMORY
from bandana_kv.device.sweep import Effort
from bandana_kv.tools.profile_device import main

TINY = "Effort(4 << 20, 1, 1, 1, 60.0, False, 10_000)"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if Mount.of(tmp_path).file_system in IN_MEMORY:
        pytest.skip("temporary files lie in memory here; give pytest --basetemp on a disk")
    monkeypatch.setattr(profiler, "QUICK", Effort(4 << 20, 1, 1, 1, 60.0, False, 10_000))
    monkeypatch.setattr(sweep, "DEPTHS", (1, 4))
    monkeypatch.chdir(tmp_path)
    # the command asks to be told of SIGTERM
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "DIR").mkdir()
    return tmp_path / "DIR"


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_a_profile_is_written_shown_and_drawn(
    directory: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    AccessLog.from_requests(rng.integers(0, 500, (200, 6))).write("log.npz")
    status, output = run(
        "DIR", "--quick", "--engine", "python", "--log", "log.npz", "--row-bytes", 128, "--writes"
    )
    if "reach no device" in output or "no direct I/O" in output:
        pytest.skip(output)
    assert status == 0, output
    found = DeviceProfile.read("device.json")
    assert Path("device.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "DIR",
        "device.json",
        "device.png",
        "log.npz",
    ]
    assert list(directory.iterdir()) == []
    text = " ".join(output.split())
    assert "measured with threads of Python, which reach less than fio" in text
    assert f"and queue depth {found.queue_depth}" in text
    (chosen,) = (line for line in output.splitlines() if line.rstrip().endswith(" <"))
    (size,) = (size for size in found.sizes if size.block_bytes == found.block_bytes)
    assert f"{size.reads_per_second:,.0f}" in chosen
    assert f"{size.blocks_per_request:.2f}" in chosen
    assert "random writes of 4 KiB a second" in text


def test_an_unreachable_budget_is_said(directory: Path) -> None:
    status, output = run("DIR", "--quick", "--engine", "python", "--p99-us", 0.1)
    if "reach no device" in output or "no direct I/O" in output:
        pytest.skip(output)
    assert status == 0, output
    assert "No depth keeps p99 within" in output
    assert not DeviceProfile.read("device.json").budget_met


def test_the_picture_is_an_extra(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, output = run("DIR", "--quick", "--engine", "python")
    if "reach no device" in output or "no direct I/O" in output:
        pytest.skip(output)
    assert status == 0, output
    assert "no picture: a picture needs matplotlib" in output
    assert Path("device.json").exists()
    assert not Path("device.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/dev/null"], "is a raw device"),
        (["nowhere"], "nowhere: cannot be profiled (No such file"),
        (["DIR", "--out", "nowhere/device.json"], "nowhere is not a directory"),
        (["DIR", "--out", "DIR"], "no ordinary file"),
        (["DIR", "--row-bytes", "128"], "go together"),
        (["DIR", "--log", "nowhere.npz", "--row-bytes", "128"], "no such file"),
        (["DIR", "--p99-us", "-1"], "budget for p99"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    directory: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    status, output = run(*arguments, "--quick", "--engine", "python")
    assert status == 1
    assert output.startswith("error: ")
    assert said in output
    assert output.count("\n") == 1
    assert list(tmp_path.iterdir()) == [directory]
    assert list(directory.iterdir()) == []


def is_running(process: int) -> bool:
    """Return whether a process is there, and not only waits to be noticed by its parent."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_it_leaves_no_file_and_no_fio(
    directory: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    fio = tmp_path / "fio"
    fio.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo fio-9.1 && exit\n'
        f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 20\n"
    )
    fio.chmod(0o755)
    program = (
        "from bandana_kv.device import profiler\n"
        "from bandana_kv.device.sweep import Effort\n"
        "from bandana_kv.tools.profile_device import main\n"
        f"profiler.QUICK = {TINY}\nmain()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(directory), "--quick"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while not (tmp_path / "pid").exists() and process.poll() is None:
            time.sleep(0.02)
        if process.poll() is not None and process.stderr is not None:
            pytest.skip(process.stderr.read())
        process.send_signal(kind)
        child = int((tmp_path / "pid").read_text())
        if kind == signal.SIGKILL:
            process.wait()
            os.kill(child, signal.SIGKILL)  # the real one ends by itself within seconds
        _, said = process.communicate()
    assert list(directory.iterdir()) == []
    assert not (tmp_path / "device.json").exists()
    if kind != signal.SIGKILL:
        assert process.returncode == 130
        assert said == f"error: stopped; no file is left in {directory}\n"
        deadline = time.monotonic() + 5
        while is_running(child):
            assert time.monotonic() < deadline
            time.sleep(0.02)
