"""tools/plan_cache.py from end to end: logs and a budget in, a plan, a table and a picture out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.plan import Plan

TOOL = Path(__file__).parents[2] / "tools" / "plan_cache.py"
ROWS, DIM = 1200, 32


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def log_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Requests for clusters of thirty rows, some clusters far more often than others."""
    rng = np.random.default_rng(3)
    cluster = np.minimum(rng.geometric(0.08, 400) - 1, ROWS // 30 - 1)
    scattered = np.random.default_rng(4).permutation(ROWS)
    log = bandana_kv.AccessLog.from_requests(
        [scattered[first * 30 + rng.integers(0, 30, 12)] for first in cluster]
    )
    path = tmp_path_factory.mktemp("logs") / "log.npz"
    log.write(path)
    return path


def test_a_plan_is_made_loaded_and_obeyed(log_path: Path, tmp_path: Path) -> None:
    plan_path, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    done = run(
        "--log", f"user={log_path}", "--rows", f"user={ROWS}", "--row-bytes", 4 * DIM,
        "--cache-bytes", "16KiB", "--out", plan_path, "--picture", picture,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert picture.stat().st_size > 5000
    choice = Plan.read(plan_path).tables["user"].choice
    assert choice is not None
    assert choice.cache_bytes <= 16 << 10
    written = json.loads(plan_path.read_text())["tables"]["user"]["choice"]
    for key in ("predicted", "runner_up", "confidence", "reason", "policy"):
        assert key in written, f"plan.json does not say {key}"
    assert "user" in done.stdout
    assert f"{choice.predicted.reads_per_lookup:.3f}" in done.stdout

    rows = np.random.default_rng(0).random((ROWS, DIM), np.float32)
    log = bandana_kv.AccessLog.read(log_path)
    bandana_kv.load(tmp_path / "store", {"user": rows}, {"user": log}, plan=Plan.read(plan_path))
    with bandana_kv.open(tmp_path / "store") as store:
        assert store.policy("user") == choice.policy
        assert store.capacity_rows("user") == choice.capacity_rows
        ids = log.request(0)
        assert np.array_equal(store.multi_get("user", ids), rows[ids])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cache-bytes", "lots"), "lots"),
        (("--cache-bytes", "1MiB", "--rows", "item=5"), "item"),
        (("--cache-bytes", "1MiB", "--rows", "user=3"), "3 rows"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(
    log_path: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "plan.json"
    done = run("--log", f"user={log_path}", "--row-bytes", 128, "--out", out, *arguments)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
