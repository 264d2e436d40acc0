"""The same placement from any number of workers of Ray, and after one, or its machine, is killed.

Ray runs in namespaces of its own: a network that has nothing but loopback, and processes that all
end with the first of them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ISOLATED = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c")
COMMAND = 'ip link set lo up && exec "$0" "$@"'
LIMIT_S = 600
# Kernels and packages that a worker loads when it first needs them.
CODE_BYTES = 16 << 20


def _can_isolate() -> bool:
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    done = subprocess.run([*ISOLATED, COMMAND, "true"], capture_output=True, check=False)
    return done.returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own needs root"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each scenario."""
    if not _can_isolate():
        pytest.skip("no network of its own: unshare and ip (iproute2) are missing or not allowed")
    directory = tmp_path_factory.mktemp("ray")
    command = [*ISOLATED, COMMAND, sys.executable, str(HERE / "ray_scenarios.py"), str(directory)]
    begun = time.monotonic()
    # unshare's child is the first of its processes: when it goes, by time too, all go.
    # Ray's sockets lie there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env={**os.environ, "RAY_TMPDIR": short},
        )
    print(f"{time.monotonic() - begun:.1f} s\n{done.stdout}\n{done.stderr[-4000:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["what"]: line for line in lines}


def test_there_was_no_network_but_loopback(found: dict[str, dict[str, Any]]) -> None:
    assert found["network"]["interfaces"] == ["lo"]


@pytest.mark.parametrize(
    "what", ["1 workers", "2 workers", "3 workers", "a worker killed", "a raylet killed"]
)
def test_the_bytes_are_those_of_one_process(found: dict[str, dict[str, Any]], what: str) -> None:
    assert found[what]["digest"] == found["in this process"]["digest"]


def test_the_killed_were_gone(found: dict[str, dict[str, Any]]) -> None:
    assert found["a worker killed"]["gone"]
    assert found["a raylet killed"]["replaced"] >= 1


def test_workers_keep_to_their_memory(found: dict[str, dict[str, Any]]) -> None:
    memory = found["memory"]
    assert memory["parts"] > 1  # one machine would need more
    for before, after in zip(memory["before"], memory["after"], strict=True):
        assert after - before <= memory["worker_memory_bytes"] + CODE_BYTES


def test_nothing_is_left_in_the_work_directory(found: dict[str, dict[str, Any]]) -> None:
    left = found["left in the work directory"]["files"]
    assert [name for name in left if name.startswith("bandana-kv-place-")] == []
