"""Modules in the workers of a DataLoader, however those are started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("loader_workers.py")
METHODS = ("fork", "spawn", "forkserver")
GROWTH_BYTES = 32 << 20


def run(path: Path, method: str, workers: int, epochs: int) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, str(path), method, str(workers), str(epochs)],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == 0
    assert found["left"] == 0
    (descriptors, threads, resident), last = found["first"], found["last"]
    assert last[0] <= descriptors
    assert last[1] <= threads
    assert last[2] < resident + GROWTH_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_many_workers_for_many_epochs(path: Path, method: str) -> None:
    run(path, method, 8, 50)
