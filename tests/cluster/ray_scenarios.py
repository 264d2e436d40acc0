"""Placements of one log by workers of Ray that are killed meanwhile; prints what came of each.

    python tests/cluster/ray_scenarios.py DIRECTORY

Run in a network of its own, where there is nothing but loopback: `test_ray.py` does. Three raylets
of one processor each; the first is this process's own, and lives.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bandana_kv import AccessLog
from bandana_kv.placement import Placement
from bandana_kv.placement.distributed import (
    Figures,
    InProcess,
    OnRay,
    open_log,
    place,
    place_log,
)
from bandana_kv.progress import Progress

ROWS, ROWS_PER_BLOCK, FILES = 3000, 16, 6
WORKER_MEMORY_BYTES = 64 << 20


class AtPass(Progress):
    """Does something in the middle of the cut, when all workers have been at it."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self._passes = 0

    def advance(self, count: int) -> None:
        self._passes += 1
        if self._passes == 5:
            self._do()


def write_log(directory: Path) -> list[Path]:
    """Return files whose requests have 6 rows near a point of a ring, and 2 anywhere."""
    rng = np.random.default_rng(0)
    id_of_point = rng.permutation(ROWS)
    files = []
    for number in range(FILES):
        near = rng.integers(ROWS, size=600)[:, None] + rng.integers(30, size=(600, 6))
        ids = id_of_point[np.concatenate([near, rng.integers(ROWS, size=(600, 2))], axis=1) % ROWS]
        files.append(directory / f"log-{number}.npz")
        AccessLog.from_requests(ids).write(files[-1])
    return files


def digest(placement: Placement) -> str:
    return hashlib.sha256(np.asarray(placement.position_of_id).tobytes()).hexdigest()


def parent_of(pid: int) -> int:
    """Return the process that started another."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def in_little_memory(runner: OnRay, directory: Path) -> dict[str, Any]:
    """Place a log that takes a worker several times its memory; say what workers had at most."""
    ids = np.random.default_rng(1).integers(40_000, size=(60_000, 25))
    log = directory / "large.npz"
    AccessLog.from_requests(ids).write(log)
    before = runner.peak_bytes()
    figures = Figures()
    little = 24 << 20
    with open_log([log], runner, worker_memory_bytes=little, work_dir=directory) as opened:
        place_log(opened, 32, runner=runner, quality="fast", figures=figures)
    after = runner.peak_bytes()
    return {
        "before": before,
        "after": after,
        "parts": figures.parts,
        "worker_memory_bytes": little,
    }


def interfaces() -> list[str]:
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return sorted(line.partition(":")[0].strip() for line in lines)


def main() -> None:
    directory = Path(sys.argv[1])
    files = write_log(directory)

    def placed(runner: Any, progress: Progress | None = None) -> str:
        placement = place(
            files,
            ROWS,
            ROWS_PER_BLOCK,
            runner=runner,
            parts=4,
            worker_memory_bytes=WORKER_MEMORY_BYTES,
            work_dir=directory,
            progress=progress,
        )
        return digest(placement)

    def say(what: str, **found: Any) -> None:
        print(json.dumps({"what": what, **found}), flush=True)

    say("network", interfaces=interfaces())
    say("in this process", digest=placed(InProcess()))

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    # A raylet that refuses connections is given up after two seconds, not after fifteen.
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 1, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    others = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        for workers in (1, 2, 3):
            with OnRay(workers) as runner:
                say(f"{workers} workers", digest=placed(runner), moved=vars(runner.moved))
                if workers == 2:  # what kernels take, they have by now
                    say("memory", **in_little_memory(runner, directory))
        with OnRay(2) as runner:
            before = runner.processes()
            victim = before[0][0]
            found = placed(runner, AtPass(lambda: os.kill(victim, signal.SIGKILL)))
            after = runner.processes()
            say("a worker killed", digest=found, gone=victim not in dict(after))
        raylets = [each.all_processes["raylet"][0].process.pid for each in others]
        for _ in range(20):  # Ray spreads workers as it likes: until one of those has some
            with OnRay(3) as runner:
                before = dict(runner.processes())
                raylet = next((pid for pid in map(parent_of, before) if pid in raylets), None)
                if raylet is None:
                    continue
                begun = time.monotonic()
                found = placed(runner, AtPass(partial(os.kill, raylet, signal.SIGKILL)))
                after = dict(runner.processes())
                say(
                    "a raylet killed",
                    digest=found,
                    replaced=len(before.keys() - after.keys()),
                    seconds=round(time.monotonic() - begun, 1),
                )
                break
        say("left in the work directory", files=sorted(p.name for p in directory.iterdir()))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
